// ibv_alloc_mw(3): a right on a part of a region that work requests give and take.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <memory>
#include <mutex>

#include "provider/ibverbs/lifecycle.h"
#include "provider/ibverbs/memory_region.h"
#include "provider/ibverbs/protection_domain.h"
#include "verbs/verbs.h"

namespace quorate::ibverbs {

class IbvMemoryWindow final : public MemoryWindow {
 public:
  static std::shared_ptr<IbvMemoryWindow> allocate(std::shared_ptr<IbvProtectionDomain> domain, int type);
  ~IbvMemoryWindow() override;

  int type() const override { return type_; }
  uint32_t rkey() const override { return rkey_.load(std::memory_order_acquire); }
  void close() override;
  bool closed() const override { return lifecycle_.closed(); }

  const std::shared_ptr<IbvProtectionDomain>& domain() const { return domain_; }

  // A binding is being posted: fills in what the device wants to know, and holds off close() until it is destroyed.
  // Binding in two threads at once is one after the other.
  class Posting {
   public:
    Posting() = default;
    // Throws QUORATE_CLOSED if the window or the region is. info->mr stays null for a window that was never bound and
    // is
    // to be bound to nothing.
    Posting(IbvMemoryWindow& window, const MwBind& bind, ibv_mw_bind_info* info);
    ibv_mw* handle() const { return window_->handle_; }
    // The device took it: from now on the window is known by this key, and keeps the region.
    void accepted(uint32_t rkey, uint32_t queuePairNumber);

   private:
    IbvMemoryWindow* window_ = nullptr;
    std::shared_lock<std::shared_mutex> use_, regionUse_;
    std::unique_lock<std::mutex> binding_;
    std::shared_ptr<IbvMemoryRegion> region_;
  };
  // Was its last binding posted to that queue pair?
  bool boundThrough(uint32_t queuePairNumber) const { return queuePairNumber_.load() == queuePairNumber; }

 private:
  IbvMemoryWindow(std::shared_ptr<IbvProtectionDomain> domain, ibv_mw* handle)
      : domain_(std::move(domain)), handle_(handle), type_(handle->type), rkey_(handle->rkey) {}

  const std::shared_ptr<IbvProtectionDomain> domain_;
  ibv_mw* const handle_;
  const int type_;
  std::atomic<uint32_t> rkey_;
  std::atomic<uint32_t> queuePairNumber_{0};
  std::mutex bindMutex_;
  // Of the last binding, and of the one before: until the last has been executed the device may still use that.
  // Guarded by bindMutex_.
  std::shared_ptr<IbvMemoryRegion> region_, previous_;
  Lifecycle lifecycle_{"MemoryWindow"};
};

}  // namespace quorate::ibverbs

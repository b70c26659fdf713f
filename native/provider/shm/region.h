// Protection domains and memory regions of the shm provider.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "provider/shm/context.h"
#include "provider/shm/memory.h"
#include "verbs/verbs.h"

namespace quorate::shm {

class ShmProtectionDomain final : public ProtectionDomain {
 public:
  explicit ShmProtectionDomain(std::shared_ptr<ShmContext> context)
      : context_(std::move(context)), id_(context_->nextProtectionDomain()) {}

  std::shared_ptr<MemoryRegion> registerMemory(std::shared_ptr<Memory> memory, size_t offset, size_t length,
                                               uint32_t access) override;
  std::shared_ptr<QueuePair> createQueuePair(const QpInit& init) override;
  std::shared_ptr<AddressHandle> createAddressHandle(const AddressVector& av) override;
  std::shared_ptr<SharedReceiveQueue> createSharedReceiveQueue(uint32_t maxWr, uint32_t maxSge = 1) override;
  std::shared_ptr<MemoryWindow> allocateMemoryWindow(int type) override;
  void close() override;
  bool closed() const override { return closed_.load(); }

  const std::shared_ptr<ShmContext>& context() const { return context_; }
  uint32_t id() const { return id_; }
  Children& children() { return children_; }
  void requireOpen() const;

 private:
  const std::shared_ptr<ShmContext> context_;
  const uint32_t id_;
  Children children_;
  std::atomic<bool> closed_{false};
};

class ShmMemoryRegion final : public MemoryRegion {
 public:
  ShmMemoryRegion(std::shared_ptr<ShmProtectionDomain> domain, std::shared_ptr<ShmMemory> memory, size_t offset,
                  size_t length, uint32_t access);
  ~ShmMemoryRegion() override;

  uint32_t lkey() const override { return key_.load(); }
  uint32_t rkey() const override { return key_.load(); }
  uint64_t address() const override { return address_.load(); }
  size_t length() const override { return length_.load(); }
  uint32_t access() const override { return access_.load(); }
  void reregister(const Changes& changes) override;
  void close() override;
  bool closed() const override { return closed_.load(); }

  // For windows, with the revoker's mutex held. The memory is null once the region was closed.
  const std::shared_ptr<ShmMemory>& memory() const { return memory_; }
  const std::shared_ptr<ShmProtectionDomain>& domain() const { return domain_; }
  size_t offset() const { return offset_; }
  // Whether the revocation of the window at `window`, which is bound to this region no more, failed to be proven: then
  // that of the region proves it.
  void setUnproven(uint32_t window, bool unproven);

 private:
  // With the revoker's mutex held. After revoke() nobody uses the region any more.
  void publish();
  void revoke();
  bool hasWindows() const;

  // These change together, with closeMutex_ and the revoker's mutex held.
  std::shared_ptr<ShmProtectionDomain> domain_;
  std::shared_ptr<ShmMemory> memory_;
  size_t offset_;
  std::atomic<uint64_t> address_{0};
  std::atomic<size_t> length_;
  std::atomic<uint32_t> access_;
  std::atomic<uint32_t> key_{0};
  uint32_t index_ = 0;
  std::vector<uint32_t> unprovenWindows_;
  std::mutex closeMutex_;
  std::atomic<bool> closed_{false};
};

// A window is a region slot of its own, valid while it is bound. Type 2 windows can be used only through the queue pair
// that bound them, and its peer can invalidate them too (requester.cc): whether one is bound is said by the slot's tag.
class ShmMemoryWindow final : public MemoryWindow {
 public:
  ShmMemoryWindow(std::shared_ptr<ShmProtectionDomain> domain, int type);
  ~ShmMemoryWindow() override;

  int type() const override { return type_; }
  uint32_t rkey() const override { return key_.load(); }
  void close() override;
  bool closed() const override { return closed_.load(); }

  const std::shared_ptr<ShmProtectionDomain>& domain() const { return domain_; }

  // All of these with the revoker's mutex held, by the queue pair `queuePair` of domain `domain`. When they return
  // Success, no operation that the window allowed before can store any more.
  // Gives a window of type 1 its next key, at the time of posting.
  uint32_t takeNextKey();
  // What it was bound to before goes to *before, to be let go without that mutex and any post lock.
  struct Held {
    std::shared_ptr<ShmMemoryRegion> region;
    std::shared_ptr<ShmMemory> memory;  // stays alive while the revoker may move it for this window
  };
  WcStatus bind(const MwBind& bind, uint32_t newKey, uint32_t domain, uint32_t queuePair, Held* before);
  WcStatus invalidate(uint32_t domain, uint32_t queuePair);
  bool bound() const;
  bool boundThrough(uint32_t queuePair) const { return bound() && queuePair_ == queuePair; }
  const ShmMemoryRegion* region() const { return held_.region.get(); }  // of the last binding

 private:
  RegionSlot& slot() const { return domain_->context()->control()->regions[index_]; }
  void revoke();

  const std::shared_ptr<ShmProtectionDomain> domain_;
  const int type_;
  uint32_t index_ = 0;
  std::atomic<uint32_t> key_{0};
  Held held_;
  uint32_t queuePair_ = 0;
  std::mutex closeMutex_;
  std::atomic<bool> closed_{false};
};

}  // namespace quorate::shm

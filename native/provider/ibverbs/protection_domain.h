// ibv_alloc_pd(3): the domain whose regions and queue pairs may be used with each other.
#pragma once

#include <infiniband/verbs.h>

#include <memory>

#include "provider/ibverbs/context.h"
#include "provider/ibverbs/lifecycle.h"
#include "verbs/verbs.h"

namespace quorate::ibverbs {

class IbvProtectionDomain final : public ProtectionDomain {
 public:
  static std::shared_ptr<IbvProtectionDomain> allocate(std::shared_ptr<IbvContext> context);
  ~IbvProtectionDomain() override;

  std::shared_ptr<MemoryRegion> registerMemory(std::shared_ptr<Memory> memory, size_t offset, size_t length,
                                               uint32_t access) override;
  std::shared_ptr<QueuePair> createQueuePair(const QpInit& init) override;
  std::shared_ptr<AddressHandle> createAddressHandle(const AddressVector& av) override;
  std::shared_ptr<SharedReceiveQueue> createSharedReceiveQueue(uint32_t maxWr, uint32_t maxSge = 1) override;
  std::shared_ptr<MemoryWindow> allocateMemoryWindow(int type) override;
  void close() override;
  bool closed() const override { return lifecycle_.closed(); }

  const std::shared_ptr<IbvContext>& context() const { return context_; }
  ibv_pd* handle() const { return handle_; }
  Lifecycle& lifecycle() { return lifecycle_; }

 private:
  IbvProtectionDomain(std::shared_ptr<IbvContext> context, ibv_pd* handle)
      : context_(std::move(context)), handle_(handle) {}

  const std::shared_ptr<IbvContext> context_;
  ibv_pd* const handle_;
  Lifecycle lifecycle_{"ProtectionDomain"};
};

}  // namespace quorate::ibverbs

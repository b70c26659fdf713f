// ibv_create_srq(3): receives that several queue pairs draw from.
#pragma once

#include <infiniband/verbs.h>

#include <memory>

#include "provider/ibverbs/lifecycle.h"
#include "provider/ibverbs/protection_domain.h"
#include "provider/ibverbs/shared_work_queue.h"
#include "verbs/verbs.h"

namespace quorate::ibverbs {

class IbvSharedReceiveQueue final : public SharedReceiveQueue {
 public:
  static std::shared_ptr<IbvSharedReceiveQueue> create(std::shared_ptr<IbvProtectionDomain> domain, uint32_t maxWr,
                                                       uint32_t maxSge);
  ~IbvSharedReceiveQueue() override;

  uint32_t maxWr() const override { return maxWr_; }
  void setLimit(uint32_t limit) override;
  SrqAttributes query() override;
  // A receive counts against maxWr until its completion was polled: ENOMEM beyond.
  size_t postReceive(const ReceiveWorkRequest* requests, size_t count, int* errnum) override;
  void close() override;
  bool closed() const override { return lifecycle_.closed(); }

  const std::shared_ptr<IbvProtectionDomain>& domain() const { return domain_; }
  ibv_srq* handle() const { return handle_; }
  const std::shared_ptr<SharedWorkQueue>& queue() const { return queue_; }
  Lifecycle& lifecycle() { return lifecycle_; }

 private:
  explicit IbvSharedReceiveQueue(std::shared_ptr<IbvProtectionDomain> domain) : domain_(std::move(domain)) {}

  const std::shared_ptr<IbvProtectionDomain> domain_;
  ibv_srq* handle_ = nullptr;  // set once, in create(), like the rest of this group
  uint32_t maxWr_ = 0, maxSge_ = 1;
  std::shared_ptr<SharedWorkQueue> queue_;
  Lifecycle lifecycle_{"SharedReceiveQueue"};
  AdaptiveMutex postMutex_;
  bool usable_ = true;  // guarded by postMutex_; false once closed
};

}  // namespace quorate::ibverbs

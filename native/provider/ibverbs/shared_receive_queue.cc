// See shared_receive_queue.h.
#include "provider/ibverbs/shared_receive_queue.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <string>

#include "provider/ibverbs/elements.h"
#include "provider/ibverbs/errors.h"

namespace quorate::ibverbs {
namespace {

constexpr size_t kReceiveChunk = 16;  // receives handed to the device in one ibv_post_srq_recv

}  // namespace

std::shared_ptr<IbvSharedReceiveQueue> IbvSharedReceiveQueue::create(std::shared_ptr<IbvProtectionDomain> domain,
                                                                     uint32_t maxWr, uint32_t maxSge) {
  const IbvContext& context = *domain->context();
  const DeviceAttributes& limits = context.limits();
  if (limits.maxSrq <= 0) {
    throw VerbsError("QUORATE_UNSUPPORTED", "The device " + context.device().name +
                                                " has no shared receive queues (maxSrq is 0); give each queue pair "
                                                "receives of its own.");
  }
  if (maxWr < 1 || maxWr > static_cast<uint32_t>(std::max(limits.maxSrqWr, 0))) {
    throw VerbsError("QUORATE_OUT_OF_RANGE", "maxWr of a SharedReceiveQueue is " + std::to_string(maxWr) +
                                                 ", must be 1 to " + std::to_string(limits.maxSrqWr) + " on " +
                                                 context.device().name + ".");
  }
  if (maxSge < 1 || maxSge > static_cast<uint32_t>(std::max(limits.maxSrqSge, 1))) {
    throw VerbsError("QUORATE_OUT_OF_RANGE", "maxSge of a SharedReceiveQueue is " + std::to_string(maxSge) +
                                                 ", must be 1 to " + std::to_string(limits.maxSrqSge) + " on " +
                                                 context.device().name + ".");
  }
  std::shared_ptr<IbvSharedReceiveQueue> queue(new IbvSharedReceiveQueue(domain));
  const uint32_t number = domain->context()->nextSharedQueueNumber();
  ibv_srq_init_attr init{};
  init.srq_context = queue.get();  // events carry it
  init.attr.max_wr = maxWr;
  init.attr.max_sge = maxSge;
  errno = 0;
  queue->handle_ = context.lib().createSrq(domain->handle(), &init);
  if (queue->handle_ == nullptr) {
    throwPinningError("ibv_create_srq", errno,
                      "Creating a shared receive queue of " + std::to_string(maxWr) + " on " + context.device().name,
                      uint64_t{maxWr} * 64, "The device allows " + std::to_string(limits.maxSrq) + " of them.");
  }
  queue->maxWr_ = std::max(init.attr.max_wr, maxWr);
  queue->maxSge_ = std::max(init.attr.max_sge, maxSge);
  queue->queue_ = std::make_shared<SharedWorkQueue>(number, queue->maxWr_);
  return queue;
}

IbvSharedReceiveQueue::~IbvSharedReceiveQueue() {
  closeInDestructor(this, {domain_});
  if (!closed() && handle_ != nullptr) handle_->srq_context = nullptr;  // it lives on, and events carry this
}

void IbvSharedReceiveQueue::close() {
  lifecycle_.close([this] {
    if (handle_ == nullptr) return;  // create() failed
    std::lock_guard<AdaptiveMutex> lock(postMutex_);
    const int errnum = std::abs(domain_->context()->lib().destroySrq(handle_));
    if (errnum != 0) {
      throwSystemError("ibv_destroy_srq", errnum,
                       "Closing a shared receive queue of " + domain_->context()->device().name, "");
    }
    usable_ = false;
    queue_->end();
  });
}

void IbvSharedReceiveQueue::setLimit(uint32_t limit) {
  const auto lock = lifecycle_.use();
  if (limit > maxWr_) {
    throw VerbsError("QUORATE_OUT_OF_RANGE", "The limit of a SharedReceiveQueue is " + std::to_string(limit) +
                                                 ", must be 0 to " + std::to_string(maxWr_) + ".");
  }
  ibv_srq_attr raw{};
  raw.srq_limit = limit;
  const int errnum = std::abs(domain_->context()->lib().modifySrq(handle_, &raw, IBV_SRQ_LIMIT));
  if (errnum != 0) {
    throwSystemError("ibv_modify_srq", errnum,
                     "Setting the limit of a shared receive queue to " + std::to_string(limit), "");
  }
}

SrqAttributes IbvSharedReceiveQueue::query() {
  const auto lock = lifecycle_.use();
  ibv_srq_attr raw{};
  const int errnum = std::abs(domain_->context()->lib().querySrq(handle_, &raw));
  if (errnum != 0) throwSystemError("ibv_query_srq", errnum, "Querying a shared receive queue", "");
  return {maxWr_, raw.srq_limit};
}

size_t IbvSharedReceiveQueue::postReceive(const ReceiveWorkRequest* requests, size_t count, int* errnum) {
  *errnum = 0;
  std::lock_guard<AdaptiveMutex> lock(postMutex_);
  if (!usable_) throwClosed(kind());
  size_t accepted = 0;
  while (accepted < count && *errnum == 0) {
    ibv_recv_wr chain[kReceiveChunk];
    ibv_sge buffers[kReceiveChunk];
    const uint32_t wanted = static_cast<uint32_t>(std::min(count - accepted, kReceiveChunk));
    uint32_t ready = 0;
    for (; ready < wanted; ready++) {
      const ReceiveWorkRequest& request = requests[accepted + ready];
      uint64_t cookie = 0;
      if (!soundElements(request, maxSge_)) {
        *errnum = EINVAL;
        break;
      }
      if (!queue_->take(request.wrId, &cookie)) break;
      buffers[ready] = {request.localAddress, request.length, request.lkey};
      chain[ready].wr_id = cookie;
      chain[ready].next = nullptr;
      chain[ready].sg_list = elementsOf(request, &buffers[ready], &chain[ready].num_sge);
      if (ready > 0) chain[ready - 1].next = &chain[ready];
    }
    if (ready < wanted && *errnum == 0) *errnum = ENOMEM;
    if (ready == 0) break;
    ibv_recv_wr* bad = nullptr;
    const int result = std::abs(ibv_post_srq_recv(handle_, chain, &bad));
    uint32_t posted = ready;
    if (result != 0) {
      posted = bad >= chain && bad < chain + ready ? static_cast<uint32_t>(bad - chain) : 0;
      uint64_t ignored = 0;
      for (uint32_t i = posted; i < ready; i++) queue_->retire(static_cast<uint32_t>(chain[i].wr_id), &ignored);
      queue_->giveBack(ready - posted);
      *errnum = result;
    }
    accepted += posted;
  }
  return accepted;
}

}  // namespace quorate::ibverbs

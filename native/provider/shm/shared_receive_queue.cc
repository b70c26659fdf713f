// See shared_receive_queue.h.
#include "provider/shm/shared_receive_queue.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>

#include "provider/shm/test_hooks.h"

namespace quorate::shm {
namespace {

constexpr int kMaxClaimAttempts = 8192;  // each fails only because another requester got ahead

uint32_t checkedCapacity(uint32_t maxWr) {
  if (maxWr >= 1 && maxWr <= kMaxReceiveWr) return std::bit_ceil(maxWr);
  throw VerbsError("QUORATE_OUT_OF_RANGE", "maxWr of a shared receive queue is " + std::to_string(maxWr) +
                                               ", must be 1 to " + std::to_string(kMaxReceiveWr));
}

uint32_t checkedSge(uint32_t maxSge) {
  if (maxSge >= 1 && maxSge <= kMaxSge) return maxSge;
  throw VerbsError("QUORATE_OUT_OF_RANGE", "maxSge of a shared receive queue is " + std::to_string(maxSge) +
                                               ", must be 1 to " + std::to_string(kMaxSge));
}

}  // namespace

bool publishScatter(ControlSegment& control, uint32_t base, uint32_t maxSge, uint32_t position,
                    const ReceiveWorkRequest& request) {
  if (request.sgeCount > maxSge) return false;
  uint64_t sum = 0;
  for (uint32_t i = 0; i < request.sgeCount; i++) sum += request.sges[i].length;
  if (sum != request.length) return false;
  for (uint32_t i = 0; i < request.sgeCount && maxSge > 1; i++) {
    ScatterEntry& entry = control.scatter[base + position * maxSge + i];
    entry.address.store(request.sges[i].address, std::memory_order_relaxed);
    entry.length.store(request.sges[i].length, std::memory_order_relaxed);
    entry.lkey.store(request.sges[i].lkey, std::memory_order_relaxed);
  }
  return true;
}

ShmSharedReceiveQueue::ShmSharedReceiveQueue(std::shared_ptr<ShmProtectionDomain> domain, uint32_t maxWr,
                                             uint32_t maxSge)
    : domain_(std::move(domain)),
      capacity_(checkedCapacity(maxWr)),
      maxSge_(checkedSge(maxSge)),
      requests_(capacity_),
      outstanding_(capacity_),
      attached_(kMaxQueuePairs) {
  ShmContext& context = *domain_->context();
  place_ = context.takeSharedPlace(capacity_, maxSge_);
  for (uint32_t i = capacity_; i > 0; i--) {
    free_.push_back(i - 1);
    entry(i - 1).owner.store(kFreeReceive, std::memory_order_relaxed);
  }
  SharedReceiveQueueSlot& slot = this->slot();
  // Counts go on where the last user of the slot left them. Nobody is about to claim a receive of that any more.
  posted_ = slot.claimed.load(std::memory_order_seq_cst);
  slot.posted.store(posted_, std::memory_order_seq_cst);
  slot.limit.store(0);
  slot.limitReached.store(0);
  slot.scatterBase.store(place_.scatterBase, std::memory_order_release);
  slot.maxSge.store(maxSge_, std::memory_order_release);
  slot.base.store(place_.base, std::memory_order_release);
  slot.capacity.store(capacity_, std::memory_order_release);
}

ShmSharedReceiveQueue::~ShmSharedReceiveQueue() {
  try {
    close();
  } catch (const VerbsError&) {
    // A queue pair whose right is not proven revoked still refers to it: nothing of it is used again.
  }
}

void ShmSharedReceiveQueue::close() {
  if (closed()) return;
  ShmContext& context = *domain_->context();
  if (context.forked()) {
    closed_.store(true);
    return;
  }
  children_.closeAll();
  {
    const std::lock_guard<SpinLock> guard(lock_);
    if (closed_.exchange(true)) return;
    slot().capacity.store(0, std::memory_order_release);
  }
  context.giveSharedPlace(place_);
}

void ShmSharedReceiveQueue::setLimit(uint32_t limit) {
  domain_->context()->requireOpen(kind());
  const std::lock_guard<SpinLock> guard(lock_);
  if (closed()) throw VerbsError("QUORATE_CLOSED", "This SharedReceiveQueue was closed");
  if (limit > capacity_) {
    throw VerbsError("QUORATE_OUT_OF_RANGE", "The limit of a shared receive queue is " + std::to_string(limit) +
                                                 ", must be 0 to " + std::to_string(capacity_));
  }
  slot().limit.store(limit, std::memory_order_seq_cst);
}

SrqAttributes ShmSharedReceiveQueue::query() {
  domain_->context()->requireOpen(kind());
  if (closed()) throw VerbsError("QUORATE_CLOSED", "This SharedReceiveQueue was closed");
  return {capacity_, std::min(slot().limit.load(), capacity_)};
}

bool ShmSharedReceiveQueue::takeLimitReached() {
  return !closed() && slot().limitReached.exchange(0, std::memory_order_seq_cst) != 0;
}

size_t ShmSharedReceiveQueue::postReceive(const ReceiveWorkRequest* requests, size_t count, int* errnum) {
  domain_->context()->requireOpen(kind());
  const std::lock_guard<SpinLock> guard(lock_);
  if (closed()) throw VerbsError("QUORATE_CLOSED", "This SharedReceiveQueue was closed");
  *errnum = 0;
  for (size_t i = 0; i < count; i++) {
    if (requests[i].length > kMaxMessageBytes) {
      *errnum = EINVAL;
      return i;
    }
    if (free_.empty()) freeOrphans();
    if (free_.empty()) {
      *errnum = ENOMEM;
      return i;
    }
    const uint32_t index = free_.back();
    if (requests[i].sgeCount > 0 &&
        !publishScatter(*domain_->context()->control(), place_.scatterBase, maxSge_, index, requests[i])) {
      *errnum = EINVAL;
      return i;
    }
    free_.pop_back();
    requests_[index] = requests[i];
    requests_[index].sges = nullptr;
    outstanding_[index] = true;
    SharedReceiveEntry& entry = this->entry(index);
    entry.address.store(requests[i].localAddress, std::memory_order_relaxed);
    entry.length.store(requests[i].length, std::memory_order_relaxed);
    entry.lkey.store(requests[i].lkey, std::memory_order_relaxed);
    entry.sgeCount.store(requests[i].sgeCount, std::memory_order_relaxed);
    entry.owner.store(unclaimedAt(posted_), std::memory_order_release);
    this->entry(posted_ & (capacity_ - 1)).order.store(index, std::memory_order_relaxed);
    slot().posted.store(++posted_, std::memory_order_release);
  }
  return count;
}

void ShmSharedReceiveQueue::free(uint32_t index) {
  entry(index).owner.store(kFreeReceive, std::memory_order_release);
  outstanding_[index] = false;
  free_.push_back(index);
}

void ShmSharedReceiveQueue::attach(uint32_t queuePair) {
  const std::lock_guard<SpinLock> guard(lock_);
  freeOrphans();  // of the slot's last user
  attached_[queuePair] = true;
}

void ShmSharedReceiveQueue::detach(uint32_t queuePair) {
  const std::lock_guard<SpinLock> guard(lock_);
  attached_[queuePair] = false;
  freeOrphans();
}

// What is claimed for queue pairs that are gone.
void ShmSharedReceiveQueue::freeOrphans() {
  for (uint32_t index = 0; index < capacity_; index++) {
    if (!outstanding_[index]) continue;
    const uint32_t owner = entry(index).owner.load(std::memory_order_acquire);
    if (owner >= 1 && owner <= kMaxQueuePairs && !attached_[owner - 1]) free(index);
  }
}

bool ShmSharedReceiveQueue::complete(uint32_t index, uint32_t queuePair, ReceiveWorkRequest* posted) {
  const std::lock_guard<SpinLock> guard(lock_);
  if (index >= capacity_ || !outstanding_[index] ||
      entry(index).owner.load(std::memory_order_acquire) != queuePair + 1) {
    return false;
  }
  *posted = requests_[index];
  free(index);
  return true;
}

void ShmSharedReceiveQueue::reclaim(uint32_t queuePair, size_t max,
                                    const std::function<void(const ReceiveWorkRequest&)>& each) {
  const std::lock_guard<SpinLock> guard(lock_);
  for (uint32_t index = 0; index < capacity_ && max > 0; index++) {
    if (!outstanding_[index] || entry(index).owner.load(std::memory_order_acquire) != queuePair + 1) continue;
    each(requests_[index]);
    free(index);
    max--;
  }
}

uint32_t claimedReceive(const ControlSegment& control, uint32_t base, uint32_t capacity, uint32_t queuePair,
                        uint64_t word) {
  const uint32_t claim = control.queuePairs[queuePair].claimedReceive.load(std::memory_order_acquire);
  const uint32_t index = receive_claim::entryPlusOne(claim) - 1;
  if (!receive_claim::isOf(claim, word) || index >= capacity) return kNoReceive;
  const uint32_t owner = control.sharedReceives[base + index].owner.load(std::memory_order_acquire);
  return owner == queuePair + 1 ? index : kNoReceive;
}

uint32_t claimSharedReceive(ControlSegment& control, SharedReceiveQueueSlot& slot, uint32_t base, uint32_t capacity,
                            uint32_t queuePair, bool* limitReached) {
  for (int attempt = 0; attempt < kMaxClaimAttempts; attempt++) {
    uint32_t position = slot.claimed.load(std::memory_order_acquire);
    if (position == slot.posted.load(std::memory_order_acquire)) return kNoReceive;
    // If the position has been passed meanwhile, the entry was claimed, or is unclaimed at a later one.
    const uint32_t index = control.sharedReceives[base + (position & (capacity - 1))].order.load();
    if (index >= capacity) return kNoReceive;
    reached(HookPoint::BeforeClaim);
    QueuePairSlot& claimer = control.queuePairs[queuePair];
    claimer.claimedReceive.store(receive_claim::make(claimer.word.load(std::memory_order_relaxed), index),
                                 std::memory_order_seq_cst);
    uint32_t unclaimed = unclaimedAt(position);
    const bool mine = control.sharedReceives[base + index].owner.compare_exchange_strong(unclaimed, queuePair + 1,
                                                                                         std::memory_order_seq_cst);
    reached(HookPoint::AfterClaim);
    slot.claimed.compare_exchange_strong(position, position + 1, std::memory_order_seq_cst);
    if (!mine) continue;
    const uint32_t left = slot.posted.load(std::memory_order_relaxed) - slot.claimed.load(std::memory_order_relaxed);
    const uint32_t limit = slot.limit.load(std::memory_order_relaxed);
    if (limit != 0 && left < limit && slot.limit.exchange(0, std::memory_order_seq_cst) != 0) {
      slot.limitReached.store(1, std::memory_order_seq_cst);
    }
    // Also by another requester: that may have died before it could tell.
    *limitReached = slot.limitReached.load(std::memory_order_seq_cst) != 0;
    return index;
  }
  return kNoReceive;
}

}  // namespace quorate::shm

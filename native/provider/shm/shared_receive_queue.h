// Shared receive queues of the shm provider: receives in the control segment that requesters of several queue pairs
// claim, each for the queue pair that it sends to.
//
// A receive is an entry of the queue; `order` says in which order entries are to be claimed. Who claims one first names it
// in the queue pair's slot, then writes into the entry for which queue pair, and then advances the count of claims; so
// whose it is is known should the claimer die at any moment. Who finds an entry claimed and the count behind helps it on.
// The queue pair's slot remembers the claim until the message is complete. The completion is published in the queue pair's own ring, as that
// of any receive.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "provider/shm/region.h"
#include "provider/shm/spin_lock.h"
#include "verbs/verbs.h"

namespace quorate::shm {

class ShmSharedReceiveQueue final : public SharedReceiveQueue {
 public:
  ShmSharedReceiveQueue(std::shared_ptr<ShmProtectionDomain> domain, uint32_t maxWr, uint32_t maxSge);
  ~ShmSharedReceiveQueue() override;

  uint32_t maxWr() const override { return capacity_; }
  void setLimit(uint32_t limit) override;
  SrqAttributes query() override;
  size_t postReceive(const ReceiveWorkRequest* requests, size_t count, int* errnum) override;
  void close() override;
  bool closed() const override { return closed_.load(); }

  // For queue pairs.
  const std::shared_ptr<ShmProtectionDomain>& domain() const { return domain_; }
  Children& children() { return children_; }
  uint32_t index() const { return place_.index; }
  // Slots of queue pairs that draw from it. One that is let go of frees what was claimed for it; a requester that was
  // held up may still claim another for it later, which is free when it is needed.
  void attach(uint32_t queuePair);
  void detach(uint32_t queuePair);
  // The receive at `entry` was completed for the queue pair in slot `queuePair`: gives what was posted and frees the
  // entry. False if that cannot be: the peer broke the rules.
  bool complete(uint32_t entry, uint32_t queuePair, ReceiveWorkRequest* posted);
  // Frees what was claimed for the queue pair and never completed, at most `max` of them; hands each to `each`.
  void reclaim(uint32_t queuePair, size_t max, const std::function<void(const ReceiveWorkRequest&)>& each);
  // The limit was undercut since the last call.
  bool takeLimitReached();

 private:
  SharedReceiveQueueSlot& slot() const { return domain_->context()->control()->sharedQueues[place_.index]; }
  SharedReceiveEntry& entry(uint32_t index) const {
    return domain_->context()->control()->sharedReceives[place_.base + index];
  }
  void free(uint32_t index);
  void freeOrphans();

  const std::shared_ptr<ShmProtectionDomain> domain_;
  const uint32_t capacity_;
  const uint32_t maxSge_;
  ShmContext::SharedQueuePlace place_;
  Children children_;
  SpinLock lock_;                             // guards what follows
  std::vector<ReceiveWorkRequest> requests_;  // as posted: nothing of them is taken from shared memory
  std::vector<bool> outstanding_;
  std::vector<uint32_t> free_;
  std::vector<bool> attached_;
  uint32_t posted_ = 0;
  std::atomic<bool> closed_{false};
};

// Publishes the elements of the receive at `position` of a queue whose elements begin at `base`. False if they are more
// than the queue takes, or do not add up.
bool publishScatter(ControlSegment& control, uint32_t base, uint32_t maxSge, uint32_t position,
                    const ReceiveWorkRequest& request);

constexpr uint32_t kNoReceive = ~0u;

// Requester: the receive that is claimed for the next message to the queue pair in slot `queuePair`, whose word is `word`.
// kNoReceive if none is.
uint32_t claimedReceive(const ControlSegment& control, uint32_t base, uint32_t capacity, uint32_t queuePair,
                        uint64_t word);
// Requester, who holds the word: claims a receive of the queue at `slot` for the queue pair in slot `queuePair`. `base`
// and `capacity` are the queue's, bounded. kNoReceive if none is left. Sets *limitReached if that was armed and undercut
// and its owner does not know yet.
uint32_t claimSharedReceive(ControlSegment& control, SharedReceiveQueueSlot& slot, uint32_t base, uint32_t capacity,
                            uint32_t queuePair, bool* limitReached);

}  // namespace quorate::shm

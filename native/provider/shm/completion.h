// Completion queues and channels of the shm provider.
//
// Completions of send requests are made by this process and wait in a private ring. Those of receive requests are
// made by the requesters: they wait in the queue pairs' own shared rings (so that a requester which stops in the
// middle harms only its own queue pair) and are fetched by poll(), which looks when the doorbell has changed.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "provider/shm/context.h"
#include "provider/shm/spin_lock.h"
#include "verbs/verbs.h"

namespace quorate::shm {

class ShmQueuePair;
class ShmCompletionQueue;

class ShmCompletionChannel final : public CompletionChannel {
 public:
  explicit ShmCompletionChannel(std::shared_ptr<ShmContext> context);
  ~ShmCompletionChannel() override;

  int fd() const override;
  std::shared_ptr<CompletionQueue> getEvent() override;
  void close() override;
  bool closed() const override { return closed_.load(); }

  const std::shared_ptr<ShmContext>& context() const { return context_; }
  uint32_t number() const { return number_; }
  void attach(uint32_t index, const std::shared_ptr<ShmCompletionQueue>& completionQueue);
  void detach(uint32_t index);
  bool write(uint32_t index, uint32_t arming);  // false if the FIFO is full

 private:
  void sendUnsent();

  const std::shared_ptr<ShmContext> context_;
  const uint32_t number_;
  Children children_;
  mutable std::mutex mutex_;
  FileDescriptor fifo_;
  std::unordered_map<uint32_t, std::weak_ptr<ShmCompletionQueue>> completionQueues_;
  std::atomic<bool> closed_{false};
};

class ShmCompletionQueue final : public CompletionQueue {
 public:
  static std::shared_ptr<ShmCompletionQueue> create(std::shared_ptr<ShmContext> context, int depth,
                                                    std::shared_ptr<CompletionChannel> channel, Timestamps timestamps);
  ~ShmCompletionQueue() override;

  int depth() const override { return depth_.load(std::memory_order_relaxed); }
  void resize(int depth) override;
  Timestamps timestamps() const override { return timestamps_; }
  int poll(WorkCompletion* completions, int max) override;
  void requestNotify(bool solicitedOnly) override;
  Doorbell doorbell() override { return {&slot().doorbell, &slot().sleepers}; }
  void close() override;
  bool closed() const override { return closed_.load(); }

  const std::shared_ptr<ShmContext>& context() const { return context_; }
  uint32_t index() const { return index_; }
  Children& children() { return children_; }

  // From queue pairs. push() returns false when the queue overflowed (now or before).
  bool push(const WorkCompletion& completion, ShmQueuePair* queuePair, uint64_t sendIndex);
  void attachReceiver(ShmQueuePair* queuePair);
  void forget(ShmQueuePair* queuePair);  // its completions stay, but refer to it no more
  void forgetSends(ShmQueuePair* queuePair);  // the same for its sends only
  void ring(bool solicited);             // news that poll() has to look for in the queue pairs
  // An event for this queue was taken from the channel. False if it is a duplicate.
  bool takeEvent(uint32_t arming);

 private:
  struct Entry {
    WorkCompletion completion;
    ShmQueuePair* queuePair = nullptr;
    uint64_t sendIndex = 0;
  };

  ShmCompletionQueue(std::shared_ptr<ShmContext> context, int depth, std::shared_ptr<ShmCompletionChannel> channel,
                     Timestamps timestamps);
  int takeLocal(WorkCompletion* completions, int max);
  int takeReceives(WorkCompletion* completions, int max);
  bool wake(uint32_t arming);
  CompletionQueueSlot& slot() { return context_->control()->completionQueues[index_]; }

  const std::shared_ptr<ShmContext> context_;
  const std::shared_ptr<ShmCompletionChannel> channel_;
  std::atomic<int> depth_;  // changes under lock_
  const Timestamps timestamps_;
  uint32_t index_ = 0;
  Children children_;

  SpinLock lock_;  // guards all that follows
  std::vector<Entry> ring_;
  size_t head_ = 0, count_ = 0;
  std::vector<ShmQueuePair*> receivers_;
  uint32_t seenDoorbell_ = 0;
  bool lookAgain_ = true;
  uint32_t pollsSinceLook_ = 0;
  bool overflowed_ = false;
  uint32_t takenArming_ = 0;  // whose event was taken last

  std::atomic<bool> closed_{false};
};

// The time that a completion gets, in the unit that its queue was made for.
uint64_t timestampNow(Timestamps kind);

}  // namespace quorate::shm

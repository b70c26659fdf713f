// ibv_create_cq(3), with one addition: it cannot overflow. A device that completes more requests than the queue has
// entries loses completions (rxe without a word), so each outstanding request holds a *credit* for one entry, from the
// time it is posted until its completion was handed out; a post without a credit is refused with ENOMEM.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <memory>
#include <vector>

#include "provider/ibverbs/completion_channel.h"
#include "provider/ibverbs/context.h"
#include "provider/ibverbs/lifecycle.h"
#include "provider/ibverbs/work_queue.h"
#include "verbs/verbs.h"

namespace quorate::ibverbs {

constexpr size_t kMaxWorkQueuesPerCompletionQueue = 4096;

class IbvCompletionQueue final : public CompletionQueue {
 public:
  static std::shared_ptr<IbvCompletionQueue> create(std::shared_ptr<IbvContext> context, int depth,
                                                    std::shared_ptr<IbvCompletionChannel> channel);
  ~IbvCompletionQueue() override;

  int depth() const override { return depth_; }
  int poll(WorkCompletion* completions, int max) override;
  void requestNotify(bool solicitedOnly) override;
  void close() override;
  bool closed() const override { return lifecycle_.closed(); }

  const std::shared_ptr<IbvContext>& context() const { return context_; }
  ibv_cq* handle() const { return handle_; }
  Lifecycle& lifecycle() { return lifecycle_; }

  // Gives the queue its cookie. Throws QUORATE_LIMIT.
  void attach(std::shared_ptr<WorkQueue> queue);
  // After the queue pair was reset, with nobody posting: takes in what the device still holds, so that completions that
  // happened can still be polled, and frees the credits of the requests that will never complete.
  void abandon(const std::shared_ptr<WorkQueue>& queue);
  // The same after the queue pair was destroyed, for ever.
  void detach(const std::shared_ptr<WorkQueue>& queue);

  // Takes up to `wanted` credits and returns how many it got.
  uint32_t takeCredits(uint32_t wanted) {
    uint32_t available = credits_.load(std::memory_order_relaxed);
    uint32_t taken;
    do {
      taken = available < wanted ? available : wanted;
    } while (taken != 0 && !credits_.compare_exchange_weak(available, available - taken, std::memory_order_acquire));
    return taken;
  }
  void returnCredits(uint32_t count) { credits_.fetch_add(count, std::memory_order_release); }

 private:
  struct Slot {
    std::shared_ptr<WorkQueue> queue;
    uint16_t generation = 0;  // tells a completion of a queue that is gone from one of its successor
  };

  IbvCompletionQueue(std::shared_ptr<IbvContext> context, std::shared_ptr<IbvCompletionChannel> channel);
  // All under pollMutex_.
  Slot& giveUp(const std::shared_ptr<WorkQueue>& queue);
  int pollDevice(WorkCompletion* completions, int max);
  bool translate(const ibv_wc& raw, WorkCompletion* completion);

  const std::shared_ptr<IbvContext> context_;
  const std::shared_ptr<IbvCompletionChannel> channel_;
  ibv_cq* handle_ = nullptr;  // set once, in create()
  int depth_ = 0;
  std::atomic<uint32_t> credits_{0};
  Lifecycle lifecycle_{"CompletionQueue"};

  AdaptiveMutex pollMutex_;  // guards what follows
  bool usable_ = true;       // false once closed
  std::vector<Slot> slots_;
  std::vector<WorkCompletion> takenIn_;  // by giveUp(), to be handed out first; each still holds its credit
  size_t takenInNext_ = 0;
  int failure_ = 0;  // errno of the device's refusal to be polled, or EPROTO for a completion that cannot be
};

}  // namespace quorate::ibverbs

// ibv_create_cq(3), with one addition: it cannot overflow. A device that completes more requests than the queue has
// entries loses completions (rxe without a word), so each outstanding request holds a *credit* for one entry, from the
// time it is posted until its completion was handed out; a post without a credit is refused with ENOMEM.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <memory>
#include <unordered_map>
#include <vector>

#include "provider/ibverbs/completion_channel.h"
#include "provider/ibverbs/context.h"
#include "provider/ibverbs/lifecycle.h"
#include "provider/ibverbs/shared_work_queue.h"
#include "provider/ibverbs/work_queue.h"
#include "verbs/verbs.h"

namespace quorate::ibverbs {

constexpr size_t kMaxWorkQueuesPerCompletionQueue = 4096;

class IbvCompletionQueue final : public CompletionQueue {
 public:
  static std::shared_ptr<IbvCompletionQueue> create(std::shared_ptr<IbvContext> context, int depth,
                                                    std::shared_ptr<IbvCompletionChannel> channel,
                                                    const CqOptions& options);
  ~IbvCompletionQueue() override;

  int depth() const override { return depth_.load(std::memory_order_relaxed); }
  void resize(int depth) override;
  Timestamps timestamps() const override { return timestamps_; }
  int poll(WorkCompletion* completions, int max) override;
  void requestNotify(bool solicitedOnly) override;
  void close() override;
  bool closed() const override { return lifecycle_.closed(); }

  const std::shared_ptr<IbvContext>& context() const { return context_; }
  ibv_cq* handle() const { return handle_; }
  Lifecycle& lifecycle() { return lifecycle_; }

  // A queue pair with a shared receive queue reports here. Keeps as many entries back as the shared queue has receives,
  // once for all queue pairs; throws QUORATE_LIMIT if there are not as many. Undone when the last of them has gone.
  void attachShared(const std::shared_ptr<SharedWorkQueue>& queue, bool datagrams);
  void detachShared(const std::shared_ptr<SharedWorkQueue>& queue);
  // Fetches what the device has reported so far, to be polled later.
  void takeIn();

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

  struct Shared {
    std::shared_ptr<SharedWorkQueue> queue;  // null once it has ended
    uint32_t users = 0;                      // 0: kept for completions that come late
    bool datagrams = false;                  // of UD queue pairs, too
    uint32_t late = 0;                       // entries kept back without users: completions taken in and not handed out
  };

  IbvCompletionQueue(std::shared_ptr<IbvContext> context, std::shared_ptr<IbvCompletionChannel> channel,
                     Timestamps timestamps);
  void createPlain(int depth);
  void createExtended(int depth);
  int pollExtended(ibv_wc* completions, uint64_t* timestamps, int max);
  // All under pollMutex_.
  Slot& giveUp(const std::shared_ptr<WorkQueue>& queue);
  void takeInLocked();
  Shared& sharedOf(const WorkCompletion& completion);  // which must be marked as one's
  bool translateShared(const ibv_wc& raw, WorkCompletion* completion);
  int pollDevice(WorkCompletion* completions, int max);
  bool translate(const ibv_wc& raw, WorkCompletion* completion);
  uint32_t flagsOf(const ibv_wc& raw) const;

  const std::shared_ptr<IbvContext> context_;
  const std::shared_ptr<IbvCompletionChannel> channel_;
  ibv_cq* handle_ = nullptr;       // set once, in create()
  ibv_cq_ex* extended_ = nullptr;  // the same, if it is an extended one
  const Timestamps timestamps_;
  const bool kernelFlags_;     // see flagsOf()
  std::atomic<int> depth_{0};  // changes under pollMutex_
  std::atomic<uint32_t> credits_{0};
  Lifecycle lifecycle_{"CompletionQueue"};

  AdaptiveMutex pollMutex_;  // guards what follows
  bool usable_ = true;       // false once closed
  std::vector<Slot> slots_;
  std::unordered_map<uint32_t, Shared> shared_;  // by number
  std::vector<WorkCompletion> takenIn_;          // by giveUp(), to be handed out first; each still holds its credit
  size_t takenInNext_ = 0;
  int failure_ = 0;  // errno of the device's refusal to be polled, or EPROTO for a completion that cannot be
};

}  // namespace quorate::ibverbs

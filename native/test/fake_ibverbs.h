// A libibverbs without a device: a Library whose functions are made up here, so that failures which real devices show
// once in a year (a refused deregistration, a lost doorbell, a stray completion) happen on demand, and the provider's
// bookkeeping is tested where there is no RDMA at all. It moves no data: posted requests wait until the test completes
// them.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "provider/ibverbs/context.h"
#include "provider/ibverbs/library.h"

namespace quorate::test {

struct PostedRequest {
  uint64_t cookie = 0;
  bool signaled = false;
};

struct FakeQueuePair : ibv_qp {
  std::deque<PostedRequest> sends, receives;
  ibv_qp_attr attributes{};
};

struct FakeSharedReceiveQueue : ibv_srq {
  std::deque<PostedRequest> receives;
};

struct FakeCompletionQueue : ibv_cq {
  std::deque<ibv_wc> completions;
};

// One at a time: the functions of a Library carry no state of their own.
class FakeDevice {
 public:
  FakeDevice();
  ~FakeDevice();
  FakeDevice(const FakeDevice&) = delete;
  FakeDevice& operator=(const FakeDevice&) = delete;

  std::shared_ptr<ibverbs::IbvContext> open();

  // Completes the oldest `count` requests of a queue, unsignaled successful ones without a trace. Receives are those of
  // the shared receive queue, if the queue pair has one.
  void completeSends(uint32_t qpNumber, size_t count, ibv_wc_status status = IBV_WC_SUCCESS);
  void completeReceives(uint32_t qpNumber, size_t count, ibv_wc_status status = IBV_WC_SUCCESS);
  static constexpr uint32_t kSender = 0x77;  // src_qp of all completions
  // Puts any completion into the queue that reports the sends of a queue pair.
  void injectCompletion(uint32_t qpNumber, uint64_t cookie, ibv_wc_status status);
  std::vector<PostedRequest> postedSends(uint32_t qpNumber);
  ibv_qp* handleOf(uint32_t qpNumber);
  size_t largestCompletionQueueFill() const { return largestFill_; }
  void setState(uint32_t qpNumber, ibv_qp_state state);  // as if by an error
  void raise(const ibv_async_event& event);              // asynchronous; the next call for one gives it
  void raiseCompletionEvent(ibv_cq* queue);              // on whatever channel is asked next

  // What the next calls return; 0 is success.
  std::atomic<int> deregResult{0};
  std::atomic<int> destroyQpResult{0};
  std::atomic<int> destroyCqResult{0};
  std::atomic<int> destroySrqResult{0};
  std::atomic<int> deallocMwResult{0};
  std::atomic<int> modifyResult{0};
  std::atomic<int> reregResult{0};  // an ibv_rereg_mr_err_code; errno is then reregErrno
  std::atomic<int> reregErrno{0};
  std::atomic<int> pollResult{0};         // below 0: the completion queue fails
  std::atomic<int> startSendResult{0};    // requests are queued but the device is not told
  std::atomic<int> acceptSends{1 << 30};  // how many more requests the send queue takes
  std::atomic<bool> takesCompletionsOut{false};  // as mlx5: a queue pair's go when it is reset or destroyed
  std::atomic<int> liveObjects{0};        // PDs, MRs, CQs, QPs and channels that exist
  std::atomic<int> deregCalls{0};
  std::atomic<int> insidePosts{0};  // calls in progress now
  std::atomic<int> insidePolls{0};
  // Calls on queues stay inside until some queue is being destroyed (which must not happen) or for 200 ms.
  std::atomic<bool> lingerInCalls{false};
  std::atomic<bool> usedAfterDestroy{false};  // some queue was destroyed while a call was inside it
  // A queue pair was destroyed before the windows that are bound through it: rxe waits for those, without end.
  std::atomic<bool> destroyedBeforeWindows{false};

 private:
  friend struct FakeVerbs;
  void linger();
  FakeQueuePair* find(uint32_t qpNumber);
  void complete(uint32_t qpNumber, bool receive, size_t count, ibv_wc_status status);

  std::mutex mutex_;
  ibverbs::Library library_;
  ibv_device device_{};
  std::vector<std::unique_ptr<FakeQueuePair>> queuePairs_;
  std::set<ibv_mr*> refused_;  // regions that a test left registered
  std::map<ibv_mw*, uint32_t> boundThrough_;
  std::deque<ibv_async_event> asyncEvents_;
  std::deque<ibv_cq*> completionEvents_;
  std::atomic<size_t> largestFill_{0};
  uint32_t nextNumber_ = 17;
};

}  // namespace quorate::test

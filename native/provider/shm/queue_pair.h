// Queue pairs of the shm provider (RC only). queue_pair.cc holds the state machine and the receive side, requester.cc
// the operations that this side starts.
//
// Two sides that share little: as a *responder* the queue pair is a word in the control segment that its peer takes;
// as a *requester* it is a send queue, which is almost always empty because postSend() itself carries out the
// operation. Requests wait in it only when the responder cannot take them yet (no receive posted, memory on the move);
// they are retried by pollers of the context and by its service thread.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "provider/shm/completion.h"
#include "provider/shm/context.h"
#include "provider/shm/region.h"
#include "provider/shm/spin_lock.h"
#include "verbs/verbs.h"

namespace quorate::shm {

class ShmQueuePair final : public QueuePair {
 public:
  static std::shared_ptr<ShmQueuePair> create(std::shared_ptr<ShmProtectionDomain> domain, const QpInit& init);
  ~ShmQueuePair() override;

  uint32_t number() const override { return place_.number; }
  QpType type() const override { return QpType::Rc; }
  const QpCapabilities& capabilities() const override { return capabilities_; }
  void modify(const QpAttributes& attributes) override;
  QpAttributes query() override;
  size_t postSend(const SendWorkRequest* requests, size_t count, int* errnum) override;
  size_t postReceive(const ReceiveWorkRequest* requests, size_t count, int* errnum) override;
  void close() override;
  bool closed() const override { return closed_.load(std::memory_order_acquire); }

  // For the completion queues. takeReceives() also adds to *left how many it leaves.
  int takeReceives(WorkCompletion* completions, int max, size_t* left);
  void retireSends(uint64_t sendIndex) { sendsRetired_.store(sendIndex, std::memory_order_release); }

  // For the context: retries what waits; true if something still does.
  bool attend(bool mayDrain);

 private:
  ShmQueuePair(std::shared_ptr<ShmProtectionDomain> domain, const QpInit& init);

  // State machine. All with modifyMutex_ held.
  void toReset();
  void toInit(const QpAttributes& attributes);
  void toReadyToReceive(const QpAttributes& attributes);
  void toReadyToSend(const QpAttributes& attributes);
  void toError();
  void changeRights();
  void validate(QpState from, const QpAttributes& attributes) const;
  QpState currentState() const;
  uint64_t rights() const;
  void drainResponder(const Revoker::Concerns& concerns);
  void announce();

  // Send side. All with postLock_ held.
  enum class Outcome { Done, Waiting };
  enum class Step { Finished, Again, Wait, NotReady, Failed };
  struct Progress {
    uint64_t offset = 0;           // bytes done
    Step reason = Step::Finished;  // of the wait that is under way: Wait, NotReady; Finished: none
    int64_t deadline_ns = 0;       // of that wait
  };
  struct WaitingRequest {
    SendWorkRequest request;
    uint64_t index = 0;
    Progress progress;
    std::vector<uint8_t> inlineData;
  };
  int refusal(const SendWorkRequest& request) const;
  void enqueue(const SendWorkRequest& request, uint64_t index, const Progress& progress);
  void complete(const SendWorkRequest& request, uint64_t index, WcStatus status);
  void enterError();
  void noticeRemoteError();
  void flushWaiting();
  void retryWaiting();
  void wantAttention();

  // One operation (requester.cc). On Done, *status is how it ended.
  Outcome execute(const SendWorkRequest& request, const uint8_t* inlineData, Progress* progress, WcStatus* status);
  struct Chunk;
  bool connect();
  void disconnect();
  Step runChunk(const Chunk& chunk, WcStatus* status);
  Step waitOrFail(Step step, Progress* progress, WcStatus* status) const;
  bool releaseWord(uint64_t taken, bool receiveDone);
  bool releaseSlowly(uint64_t taken, bool receiveDone);
  void failResponder(uint64_t word, ReceiveEntry* receive, WcStatus receiveStatus);
  bool findMapping(uint32_t region, uint64_t segmentId, uint32_t memory);
  int64_t transportTimeout_ns() const;

  const std::shared_ptr<ShmProtectionDomain> domain_;
  ShmContext& context_;
  const std::shared_ptr<ShmCompletionQueue> sendCq_, receiveCq_;
  const bool signalAll_;
  QpCapabilities capabilities_;
  ShmContext::QueuePairPlace place_;
  QueuePairSlot* slot_ = nullptr;
  Responder responder_;
  std::atomic<bool> closed_{false};

  std::mutex modifyMutex_;
  QpAttributes attributes_;  // what modify() was given, all together; also read under postLock_

  SpinLock postLock_;
  std::atomic<int> state_{static_cast<int>(QpState::Reset)};
  uint64_t sendsPosted_ = 0;
  std::atomic<uint64_t> sendsRetired_{0};
  std::deque<WaitingRequest> waiting_;
  std::atomic<bool> needsAttention_{false};
  std::atomic<bool> needsDrain_{false};

  // The connection as a requester; all but nextPsn_ taken from the responder's slot, and bounded.
  struct CachedSegment {
    uint32_t region = 0;
    uint64_t segmentId = 0;
    std::shared_ptr<Mapping> mapping;
  };
  bool connected_ = false;
  std::shared_ptr<PeerHca> peer_;
  QueuePairSlot* remote_ = nullptr;
  uint64_t remoteConnection_ = 0;
  uint32_t remoteProtectionDomain_ = 0;
  uint32_t remoteReceiveCq_ = 0;
  uint32_t remoteReceiveBase_ = 0;
  uint32_t remoteReceiveCapacity_ = 0;
  uint32_t nextPsn_ = 0;
  std::array<CachedSegment, 8> segments_;

  SpinLock receiveLock_;
  std::vector<ReceiveWorkRequest> receives_;  // ring of what was posted: ids are not taken from shared memory
  uint32_t receivesPosted_ = 0, receivesTaken_ = 0;
  bool flushing_ = false;
};

}  // namespace quorate::shm

// Queue pairs of the shm provider. queue_pair.cc holds the state machine and the receive side, requester.cc the
// operations that this side starts, datagram.cc what is special about UD.
//
// RC reports what went wrong at the responder and puts both ends into ERR; UC and UD drop the message and report
// success. A local error stops the send queue of UC and UD (SQE), and an RC queue pair altogether.
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
#include "provider/shm/shared_receive_queue.h"
#include "provider/shm/spin_lock.h"
#include "verbs/checksum.h"
#include "verbs/verbs.h"

namespace quorate::shm {

class ShmQueuePair final : public QueuePair {
 public:
  static std::shared_ptr<ShmQueuePair> create(std::shared_ptr<ShmProtectionDomain> domain, const QpInit& init);
  ~ShmQueuePair() override;

  uint32_t number() const override { return place_.number; }
  QpType type() const override { return type_; }
  const QpCapabilities& capabilities() const override { return capabilities_; }
  void modify(const QpAttributes& attributes) override;
  QpAttributes query() override;
  size_t postSend(const SendWorkRequest* requests, size_t count, int* errnum) override;
  size_t postReceive(const ReceiveWorkRequest* requests, size_t count, int* errnum) override;
  int bindMemoryWindow(MemoryWindow& window, const MwBind& bind, uint64_t wrId, uint32_t sendFlags,
                       uint32_t* rkey) override;
  void attachMulticast(const Gid& group, uint16_t lid) override;
  void detachMulticast(const Gid& group, uint16_t lid) override;
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
  void toDrained(const QpAttributes& attributes);
  void applyCommon(const QpAttributes& attributes);
  bool isResponding(QpState state) const;
  void toError();
  void changeRights();
  void validate(QpState from, const QpAttributes& attributes) const;
  QpState currentState() const;
  uint64_t rights() const;
  void detachAllMulticast();
  void drainResponder(const Revoker::Concerns& concerns);
  std::vector<std::shared_ptr<VerbsObject>> boundWindows() const;
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
    std::vector<Sge> sges;
    std::shared_ptr<VerbsObject> memoryWindow;
    MwBind bind;
    std::shared_ptr<VerbsObject> addressHandle;  // UD: kept alive while it waits (in SQD only)
    bool begun() const { return progress.offset != 0 || progress.reason != Step::Finished; }
  };
  int refusal(const SendWorkRequest& request) const;
  int refusalOfWindowRequest(const SendWorkRequest& request) const;
  void enqueue(const SendWorkRequest& request, uint64_t index, const Progress& progress, const uint8_t* inlineData);
  // `nextKey`: null, or the request binds a window of type 1, and its next key goes there.
  int post(const SendWorkRequest& request, uint32_t* nextKey, std::unique_lock<SpinLock>& posting,
           std::vector<ShmMemoryWindow::Held>* old);
  [[noreturn]] void throwClosed() const;
  bool headNeedsRevoker() const;
  WcStatus executeOnWindow(const SendWorkRequest& request, std::vector<ShmMemoryWindow::Held>* old);
  const uint8_t* inlineDataOf(const SendWorkRequest& request);
  bool findPieces(const SendWorkRequest& request, uint32_t access);
  void complete(const SendWorkRequest& request, uint64_t index, WcStatus status);
  void enterError();
  void noticeRemoteError();
  void flushWaiting();
  void dropHead();
  void retryWaiting(bool revokerHeld, std::vector<ShmMemoryWindow::Held>* old);
  void wantAttention();

  // One operation (requester.cc). On Done, *status is how it ended.
  Outcome execute(const SendWorkRequest& request, const uint8_t* inlineData, Progress* progress, WcStatus* status);
  struct Chunk;
  bool connect();
  bool adoptRemote();
  void disconnect();
  void unmapPeer();  // disconnects, and lets go of the peer's memory
  template <bool kDatagram>
  Step runChunk(Chunk& chunk, WcStatus* status);
  // The receive that a message fills, as its queue says.
  struct Target {
    uint64_t address = 0;
    uint32_t key = 0;
    uint32_t length = 0;     // of all its elements
    uint32_t scatterAt = 0;  // its first element in the arena, if it has several
    uint32_t sgeCount = 0;
    // The range that is stored to, and where in it.
    uint64_t rangeLength = 0;
    uint64_t rangeOffset = 0;
  };
  uint32_t claimedShared(uint64_t word) const;
  Step claimShared(ControlSegment* control, Chunk* chunk, uint64_t total, uint64_t* taken, Target* target);
  static bool narrow(ControlSegment* control, uint64_t total, Target* target, Chunk* chunk);
  bool invalidateRemoteWindow(ControlSegment* control, uint32_t rkey);
  void copyRead(const Chunk& chunk, uint8_t* to, const uint8_t* from, uint32_t bytes);
  void copyPieces(const Chunk& chunk, uint8_t* target);
  void copyDatagram(const Chunk& chunk, uint8_t* target) const;
  int flushShared(WorkCompletion* completions, int max);
  void violate(uint64_t word, ReceiveEntry* receive, WcStatus receiveStatus);
  // UD (datagram.cc; runDatagram() in requester.cc).
  void sendDatagram(const SendWorkRequest& request, const uint8_t* local);
  void sendMulticast(const SendWorkRequest& request, const uint8_t* local);
  void deliverDatagram(const SendWorkRequest& request, uint32_t number, const uint8_t* local);
  bool addressDatagram(const SendWorkRequest& request, uint32_t number);
  bool claimDatagramSlot();
  void releaseDatagramSlot();
  void runDatagram(const SendWorkRequest& request, const uint8_t* local);
  Step waitOrFail(Step step, Progress* progress, WcStatus* status) const;
  bool releaseWord(uint64_t taken, bool receiveDone);
  bool releaseSlowly(uint64_t taken, bool receiveDone);
  void failResponder(uint64_t word, ReceiveEntry* receive, WcStatus receiveStatus);
  bool findMapping(uint32_t region, uint64_t segmentId, uint32_t memory);
  int64_t transportTimeout_ns() const;

  const std::shared_ptr<ShmProtectionDomain> domain_;
  ShmContext& context_;
  const std::shared_ptr<ShmSharedReceiveQueue> srq_;  // null: receives of its own
  const std::shared_ptr<ShmCompletionQueue> sendCq_, receiveCq_;
  const QpType type_;
  const bool signalAll_;
  QpCapabilities capabilities_;
  ShmContext::QueuePairPlace place_;
  QueuePairSlot* slot_ = nullptr;
  Responder responder_;
  std::atomic<bool> closed_{false};

  std::mutex modifyMutex_;
  int multicastGroups_ = 0;  // it is attached to
  QpAttributes attributes_;  // what modify() was given, all together; also read under postLock_

  SpinLock postLock_;
  std::atomic<int> state_{static_cast<int>(QpState::Reset)};
  uint64_t sendsPosted_ = 0;
  std::atomic<uint64_t> sendsRetired_{0};
  std::deque<WaitingRequest> waiting_;
  std::vector<WaitingRequest> dropped_;  // wait no more, to be let go without a lock: see dropHead()
  std::atomic<bool> needsAttention_{false};
  std::atomic<bool> needsDrain_{false};
  std::atomic<bool> needsRevoker_{false};  // a waiting request binds or invalidates a window
  // The local buffers of the request that is being executed, if they are several; and of one that is inline, gathered.
  struct Piece {
    uint8_t* bytes;
    uint32_t length;
  };
  std::array<Piece, kMaxSge> pieces_;
  uint32_t pieceCount_ = 0;
  std::vector<uint8_t> gathered_;
  Checksum readChecksum_;  // of the READs so far that were to have one

  // The connection as a requester; all but nextPsn_ taken from the responder's slot, and bounded.
  struct CachedSegment {
    uint32_t region = 0;
    uint64_t segmentId = 0;
    const PeerHca* peer = nullptr;  // only compared
    std::shared_ptr<Mapping> mapping;
    std::shared_ptr<PeerHca> owner;  // UD: keeps `peer` from being another instance's address
  };
  bool connected_ = false;
  std::shared_ptr<PeerHca> peer_;
  QueuePairSlot* remote_ = nullptr;
  uint64_t remoteConnection_ = 0;
  uint32_t remoteProtectionDomain_ = 0;
  uint32_t remoteReceiveCq_ = 0;
  uint32_t remoteReceiveBase_ = 0;
  uint32_t remoteReceiveCapacity_ = 0;
  SharedReceiveQueueSlot* remoteShared_ = nullptr;  // null: receives of its own
  uint32_t remoteSharedBase_ = 0;
  uint32_t remoteSharedCapacity_ = 0;
  uint32_t remoteScatterBase_ = 0;
  uint32_t remoteMaxSge_ = 1;
  uint32_t nextPsn_ = 0;
  std::array<CachedSegment, 8> segments_;
  // Of connected queue pairs: what a region of the same place in `segments_` displaced, so that a peer's memory is
  // mapped once however many regions there are.
  std::vector<CachedSegment> displacedSegments_;
  uint64_t datagramClaim_ = 0;
  uint8_t datagramHeader_[kGrhBytes] = {};

  SpinLock receiveLock_;
  std::vector<ReceiveWorkRequest> receives_;  // ring of what was posted: ids are not taken from shared memory
  uint32_t receivesPosted_ = 0, receivesTaken_ = 0;
  bool flushing_ = false;
  bool lastReceiveTold_ = false;  // the event QpLastWqeReached of this connection was raised
};

}  // namespace quorate::shm

// The operations that a queue pair starts: taking the responder's word, validating, copying, letting go.
//
// The order of steps in runChunk() is what makes revocation sound (the other half is in revoker.cc):
//   1. compare-and-swap the word: checks the rights and announces operation and region in one atomic step;
//   2. then read the region's tag: a deregistration first invalidates the tag and then looks at the words, so either
//      it sees this operation or this operation sees the invalid tag;
//   3. then read the word again: if it is still ours, no revoker had passed it over before the segment id was read, so
//      whoever passes it over later also moves the memory away from exactly this segment;
//   4. copy; 5. let go by compare-and-swap: if the word is no longer ours, the operation was passed over, and it is
//      not a success whatever was copied.

#include <algorithm>
#include <atomic>
#include <bit>
#include <cassert>
#include <cerrno>
#include <climits>
#include <cstring>

#include "provider/clock.h"
#include "provider/shm/address_handle.h"
#include "provider/shm/queue_pair.h"
#include "provider/shm/test_hooks.h"

namespace quorate::shm {

// Not in the unnamed namespace: a member of the class below has this type.
struct OperationTraits {
  OperationKind kind;
  uint64_t right;        // of the queue pair
  uint32_t access;       // of the region
  uint32_t localAccess;  // of the local region
  bool consumesReceive;
  bool withImm;
  WcOpcode completed;
};

namespace {

constexpr int kMaxAgain = 64;  // attempts in a row before an operation waits for the responder's process to settle
constexpr int64_t kLeastTransportTimeout_ns = 20'000'000;
constexpr int64_t kMostTransportTimeout_ns = 4'000'000'000;
constexpr uint32_t kPsnMask = 0xffffff;
constexpr uint32_t kMaxQpNum = 0xffffff;
constexpr uint32_t kChecksumFlags = kSendChecksum | kSendChecksumContinued;
constexpr uint32_t kKnownSendFlags = kSendFence | kSendSignaled | kSendSolicited | kSendInline | kChecksumFlags;
// Microseconds for each value of minRnrTimer (InfiniBand specification, "Encoding for RNR NAK Timer Field").
constexpr int64_t kRnrTimer_us[32] = {655360, 10,    20,    30,    40,    60,     80,     120,    160,    240,   320,
                                      480,    640,   960,   1280,  1920,  2560,   3840,   5120,   7680,   10240, 15360,
                                      20480,  30720, 40960, 61440, 81920, 122880, 163840, 245760, 327680, 491520};

void copy(uint8_t* to, const uint8_t* from, uint32_t bytes) {
  if (testHooks.reached.load(std::memory_order_relaxed) != nullptr) [[unlikely]] {
    std::memcpy(to, from, bytes / 2);
    reached(HookPoint::MidCopy);
    std::memcpy(to + bytes / 2, from + bytes / 2, bytes - bytes / 2);
    return;
  }
  std::memcpy(to, from, bytes);
}

const OperationTraits* traitsOf(WrOpcode opcode) {
  static constexpr OperationTraits kTraits[] = {
      {OperationKind::Write, word::kWrite, kAccessRemoteWrite, 0, false, false, WcOpcode::RdmaWrite},
      {OperationKind::Write, word::kWrite, kAccessRemoteWrite, 0, true, true, WcOpcode::RdmaWrite},
      {OperationKind::Send, 0, kAccessLocalWrite, 0, true, false, WcOpcode::Send},
      {OperationKind::Send, 0, kAccessLocalWrite, 0, true, true, WcOpcode::Send},
      {OperationKind::Read, word::kRead, kAccessRemoteRead, kAccessLocalWrite, false, false, WcOpcode::RdmaRead},
      {OperationKind::Atomic, word::kAtomic, kAccessRemoteAtomic, kAccessLocalWrite, false, false,
       WcOpcode::CompareSwap},
      {OperationKind::Atomic, word::kAtomic, kAccessRemoteAtomic, kAccessLocalWrite, false, false, WcOpcode::FetchAdd},
      {OperationKind::None, 0, 0, 0, false, false, WcOpcode::LocalInv},
      {OperationKind::None, 0, 0, 0, false, false, WcOpcode::BindMw},
      {OperationKind::Send, 0, kAccessLocalWrite, 0, true, false, WcOpcode::Send},  // with invalidate
  };
  const int index = static_cast<int>(opcode);
  return index >= 0 && index < static_cast<int>(std::size(kTraits)) ? &kTraits[index] : nullptr;
}

}  // namespace

struct ShmQueuePair::Chunk {
  const SendWorkRequest& request;
  const OperationTraits& traits;
  uint8_t* local;   // null if the buffers are pieces_
  uint64_t offset;  // in the message; with its routing header in front if it is a datagram
  uint32_t bytes;   // may become fewer: as many as fit into one element of the receive
  bool last;
};

// ---------------------------------------------------------------------------------------------------------------
// Posting and completing

int ShmQueuePair::refusal(const SendWorkRequest& request) const {
  const OperationTraits* traits = traitsOf(request.opcode);
  if (traits == nullptr || request.length > kMaxMessageBytes || (request.sendFlags & ~kKnownSendFlags) != 0) {
    return EINVAL;
  }
  const uint32_t checksumFlags = request.sendFlags & kChecksumFlags;
  if (checksumFlags != 0 && (traits->kind != OperationKind::Read || checksumFlags == kSendChecksumContinued))
      [[unlikely]] {
    return EINVAL;
  }
  if (type_ != QpType::Rc) [[unlikely]] {
    if (traits->kind == OperationKind::Read || traits->kind == OperationKind::Atomic) return EINVAL;
    if (type_ == QpType::Ud) {
      if (traits->kind != OperationKind::Send || request.addressHandle == nullptr ||
          request.addressHandle->domain() != domain_.get() || request.remoteQpNum > kMaxQpNum) {
        return EINVAL;
      }
      if (request.addressHandle->closed()) return EBADF;
    }
  }
  if ((request.sendFlags & kSendInline) != 0 &&
      (request.length > capabilities_.maxInlineData || traits->localAccess != 0)) {
    return EINVAL;
  }
  if (request.sgeCount != 0) [[unlikely]] {
    if (request.sgeCount == 1 || request.sgeCount > capabilities_.maxSendSge || traits->kind == OperationKind::Atomic)
      return EINVAL;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < request.sgeCount; i++) sum += request.sges[i].length;
    if (sum != request.length) return EINVAL;
  }
  if (request.opcode == WrOpcode::SendWithInv && type_ != QpType::Rc) [[unlikely]]
    return EINVAL;
  if (traits->kind == OperationKind::None) [[unlikely]]
    return refusalOfWindowRequest(request);
  return 0;
}

int ShmQueuePair::refusalOfWindowRequest(const SendWorkRequest& request) const {
  if (type_ == QpType::Ud || request.length != 0 || (request.sendFlags & kSendInline) != 0) return EINVAL;
  if (request.opcode == WrOpcode::LocalInv) return 0;
  const auto* window = dynamic_cast<ShmMemoryWindow*>(request.memoryWindow);
  if (window == nullptr || request.bind == nullptr || window->domain() != domain_) return EINVAL;
  return window->closed() ? EBADF : 0;
}

size_t ShmQueuePair::postSend(const SendWorkRequest* requests, size_t count, int* errnum) {
  if (context_.forked()) [[unlikely]]
    context_.requireOpen(kind());
  std::vector<ShmMemoryWindow::Held> old;
  std::unique_lock<SpinLock> guard(postLock_);
  *errnum = 0;
  for (size_t i = 0; i < count; i++) {
    if (i > 0 && postLock_.contended()) [[unlikely]]
      postLock_.letOthersIn();
    if (const int refused = post(requests[i], nullptr, guard, &old)) [[unlikely]] {
      if (i == 0 && closed()) throwClosed();  // but not if others have been carried out
      *errnum = refused;
      return i;
    }
  }
  return count;
}

void ShmQueuePair::throwClosed() const {
  throw VerbsError("QUORATE_CLOSED", "This QueuePair was closed");
}

// Posts one request; 0, or the errno that refuses it: EBADF if another thread has closed the queue pair meanwhile. The
// lock is let go for a moment if the request is about a memory window.
inline int ShmQueuePair::post(const SendWorkRequest& request, uint32_t* nextKey, std::unique_lock<SpinLock>& posting,
                              std::vector<ShmMemoryWindow::Held>* old) {
  std::unique_lock<std::mutex> revoking;
  if (request.opcode == WrOpcode::LocalInv || request.opcode == WrOpcode::BindMw) [[unlikely]] {
    if (request.opcode == WrOpcode::BindMw &&
        (request.memoryWindow == nullptr || request.memoryWindow->type() != (nextKey == nullptr ? 2 : 1))) {
      return EINVAL;
    }
    posting.unlock();  // the revoker's mutex comes before a post lock
    revoking = std::unique_lock<std::mutex>(context_.revoker().mutex());
    posting.lock();
  }
  if (closed_.load(std::memory_order_relaxed)) [[unlikely]]
    return EBADF;
  noticeRemoteError();
  const QpState state = static_cast<QpState>(state_.load(std::memory_order_relaxed));
  if (state != QpState::Rts && state != QpState::Err && state != QpState::Sqd && state != QpState::Sqe) [[unlikely]]
    return EINVAL;
  if (const int refused = refusal(request)) [[unlikely]]
    return refused;
  if (sendsPosted_ - sendsRetired_.load(std::memory_order_acquire) >= capabilities_.maxSendWr) [[unlikely]]
    return ENOMEM;
  // Only now, when nothing refuses it any more, and with the revoker's mutex held: no two bindings get one key.
  if (nextKey != nullptr) *nextKey = static_cast<ShmMemoryWindow*>(request.memoryWindow)->takeNextKey();
  const uint64_t index = ++sendsPosted_;
  if (state == QpState::Err || state == QpState::Sqe) [[unlikely]] {
    complete(request, index, WcStatus::WrFlushErr);
    return 0;
  }
  Progress progress;
  const uint8_t* inlineData = inlineDataOf(request);
  if (!waiting_.empty() || state == QpState::Sqd) [[unlikely]] {
    enqueue(request, index, progress, inlineData);
    return 0;
  }
  if (revoking.owns_lock()) [[unlikely]] {
    complete(request, index, executeOnWindow(request, old));
    return 0;
  }
  WcStatus status = WcStatus::Success;
  if (execute(request, inlineData, &progress, &status) == Outcome::Waiting) [[unlikely]] {
    enqueue(request, index, progress, inlineData);
  } else {
    complete(request, index, status);
  }
  return 0;
}

// Null if the request is not inline.
inline const uint8_t* ShmQueuePair::inlineDataOf(const SendWorkRequest& request) {
  if ((request.sendFlags & kSendInline) == 0) [[likely]]
    return nullptr;
  if (request.sgeCount == 0) return reinterpret_cast<const uint8_t*>(request.localAddress);
  gathered_.clear();
  for (uint32_t i = 0; i < request.sgeCount; i++) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(request.sges[i].address);
    gathered_.insert(gathered_.end(), bytes, bytes + request.sges[i].length);
  }
  return gathered_.data();
}

int ShmQueuePair::bindMemoryWindow(MemoryWindow& window, const MwBind& bind, uint64_t wrId, uint32_t sendFlags,
                                   uint32_t* rkey) {
  context_.requireOpen(kind());
  auto* own = dynamic_cast<ShmMemoryWindow*>(&window);
  if (own == nullptr || own->type() != 1) return EINVAL;
  SendWorkRequest request;
  request.opcode = WrOpcode::BindMw;
  request.wrId = wrId;
  request.sendFlags = sendFlags;
  request.memoryWindow = &window;
  request.bind = &bind;
  std::vector<ShmMemoryWindow::Held> old;
  std::unique_lock<SpinLock> guard(postLock_);
  const int refused = post(request, &request.bindRkey, guard, &old);
  if (refused != 0 && closed()) throwClosed();
  if (refused == 0) *rkey = request.bindRkey;
  return refused;
}

// With the revoker's mutex held.
WcStatus ShmQueuePair::executeOnWindow(const SendWorkRequest& request, std::vector<ShmMemoryWindow::Held>* old) {
  if (request.opcode == WrOpcode::LocalInv) {
    const auto found = context_.memoryWindows().find(regionIndexOf(request.invalidateRkey));
    if (found == context_.memoryWindows().end() || found->second->rkey() != request.invalidateRkey)
      return WcStatus::LocQpOpErr;
    return found->second->invalidate(domain_->id(), place_.number);
  }
  auto* window = static_cast<ShmMemoryWindow*>(request.memoryWindow);
  return window->bind(*request.bind, request.bindRkey, domain_->id(), place_.number, &old->emplace_back());
}

void ShmQueuePair::enqueue(const SendWorkRequest& request, uint64_t index, const Progress& progress,
                           const uint8_t* inlineData) {
  WaitingRequest& waiting = waiting_.emplace_back();
  waiting.request = request;
  waiting.index = index;
  waiting.progress = progress;
  if (type_ == QpType::Ud) waiting.addressHandle = request.addressHandle->shared_from_this();
  if (inlineData != nullptr && request.length > 0) {
    waiting.inlineData.assign(inlineData, inlineData + request.length);
  }
  waiting.sges.assign(request.sges, request.sges + request.sgeCount);
  waiting.request.sges = waiting.sges.data();
  if (request.opcode == WrOpcode::BindMw) {
    waiting.memoryWindow = request.memoryWindow->shared_from_this();
    waiting.bind = *request.bind;
    waiting.request.bind = &waiting.bind;
  }
  if (headNeedsRevoker()) needsRevoker_.store(true, std::memory_order_release);
  wantAttention();
}

bool ShmQueuePair::headNeedsRevoker() const {
  const WrOpcode opcode = waiting_.front().request.opcode;
  return opcode == WrOpcode::LocalInv || opcode == WrOpcode::BindMw;
}

void ShmQueuePair::retryWaiting(bool revokerHeld, std::vector<ShmMemoryWindow::Held>* old) {
  noticeRemoteError();
  while (!waiting_.empty()) {
    WaitingRequest& head = waiting_.front();
    if (static_cast<QpState>(state_.load(std::memory_order_relaxed)) == QpState::Sqd && !head.begun()) return;
    const bool ofWindow = headNeedsRevoker();
    needsRevoker_.store(ofWindow, std::memory_order_release);
    if (ofWindow && !revokerHeld) return;
    WcStatus status = WcStatus::Success;
    const uint8_t* inlineData = head.inlineData.empty() ? nullptr : head.inlineData.data();
    if (ofWindow) {
      status = executeOnWindow(head.request, old);
    } else if (execute(head.request, inlineData, &head.progress, &status) == Outcome::Waiting) {
      return;
    }
    const SendWorkRequest request = head.request;
    const uint64_t index = head.index;
    dropHead();
    complete(request, index, status);
  }
  needsRevoker_.store(false, std::memory_order_release);
}

// Its window and its region may have no other owner left, and closing them takes the revoker's mutex, which comes
// before the post lock and may be held already. So they are let go by the next attend(), or with the queue pair.
void ShmQueuePair::dropHead() {
  if (waiting_.front().memoryWindow != nullptr) {
    dropped_.push_back(std::move(waiting_.front()));
    wantAttention();
  }
  waiting_.pop_front();
}

void ShmQueuePair::complete(const SendWorkRequest& request, uint64_t index, WcStatus status) {
  if (status == WcStatus::Success && !signalAll_ && (request.sendFlags & kSendSignaled) == 0) return;
  const OperationTraits& traits = *traitsOf(request.opcode);
  WorkCompletion completion;
  completion.wrId = request.wrId;
  completion.status = static_cast<int>(status);
  completion.opcode = static_cast<int>(request.opcode == WrOpcode::FetchAdd ? WcOpcode::FetchAdd : traits.completed);
  completion.byteLen = request.length;
  completion.qpNum = place_.number;
  if ((request.sendFlags & kSendChecksum) != 0 && status == WcStatus::Success) {
    completion.checksum = readChecksum_.result();
    completion.wcFlags = kWcWithChecksum;
  }
  const bool fits = sendCq_->push(completion, this, index);
  if (status == WcStatus::Success ? !fits : status != WcStatus::WrFlushErr) [[unlikely]] {
    if (type_ == QpType::Rc || !fits) {
      enterError();
    } else {
      state_.store(static_cast<int>(QpState::Sqe), std::memory_order_release);
      flushWaiting();
    }
  }
}

void ShmQueuePair::flushWaiting() {
  while (!waiting_.empty()) {
    const SendWorkRequest request = waiting_.front().request;
    const uint64_t index = waiting_.front().index;
    dropHead();
    complete(request, index, WcStatus::WrFlushErr);
  }
}

void ShmQueuePair::enterError() {
  state_.store(static_cast<int>(QpState::Err), std::memory_order_release);
  closeWord(*slot_);
  disconnect();
  flushWaiting();
  announce();  // posted receives are flushed by whoever polls next
}

void ShmQueuePair::noticeRemoteError() {
  if ((slot_->word.load(std::memory_order_acquire) & word::kError) == 0) [[likely]]
    return;
  const QpState state = static_cast<QpState>(state_.load(std::memory_order_relaxed));
  if (isResponding(state)) enterError();
}

// ---------------------------------------------------------------------------------------------------------------
// Connection

int64_t ShmQueuePair::transportTimeout_ns() const {
  if (attributes_.timeout == 0) return kMostTransportTimeout_ns;
  const int64_t once_ns = int64_t{4096} << attributes_.timeout;
  return std::clamp(once_ns * (attributes_.retryCnt + 1), kLeastTransportTimeout_ns, kMostTransportTimeout_ns);
}

bool ShmQueuePair::connect() {
  uint64_t peerId = 0;
  if (!parseGid(attributes_.av.dgid, &peerId)) return false;
  std::shared_ptr<PeerHca> peer;
  try {
    peer = context_.peer(peerId);
  } catch (const VerbsError&) {
    return false;  // it cannot be mapped: as good as unreachable
  }
  if (peer == nullptr || !peer->alive()) return false;
  if (peer != peer_) unmapPeer();
  QueuePairSlot& remote = peer->control()->queuePairs[attributes_.destQpNum & (kMaxQueuePairs - 1)];
  const uint64_t w = remote.word.load(std::memory_order_acquire);
  if ((w & word::kOpen) == 0 || remote.number.load(std::memory_order_acquire) != attributes_.destQpNum ||
      remote.peerHca.load(std::memory_order_acquire) != context_.hcaId() ||
      remote.peerNumber.load(std::memory_order_acquire) != place_.number ||
      remote.type.load(std::memory_order_acquire) != static_cast<uint32_t>(type_) ||
      // The responder of an unreliable connection takes up whatever number a message begins with.
      (type_ == QpType::Rc && remote.expectedPsn.load(std::memory_order_acquire) != nextPsn_)) {
    return false;
  }
  remote_ = &remote;
  peer_ = std::move(peer);
  connected_ = adoptRemote();
  if (!connected_) disconnect();
  return connected_;
}

// Takes over, bounded, what remote_ says about itself.
bool ShmQueuePair::adoptRemote() {
  QueuePairSlot& remote = *remote_;
  const uint64_t w = remote.word.load(std::memory_order_acquire);
  if ((w & word::kOpen) == 0) return false;
  remoteReceiveBase_ = remote.receiveBase.load(std::memory_order_acquire);
  remoteReceiveCapacity_ = remote.receiveCapacity.load(std::memory_order_acquire);
  remoteReceiveCq_ = remote.receiveCq.load(std::memory_order_acquire);
  remoteProtectionDomain_ = remote.protectionDomain.load(std::memory_order_acquire);
  remoteScatterBase_ = remote.scatterBase.load(std::memory_order_acquire);
  remoteMaxSge_ = remote.maxSge.load(std::memory_order_acquire);
  if (remoteReceiveCapacity_ > kMaxReceiveWr || remoteReceiveBase_ > kReceiveArenaEntries - remoteReceiveCapacity_ ||
      (remoteReceiveCapacity_ != 0 && !std::has_single_bit(remoteReceiveCapacity_)) ||
      remoteReceiveCq_ >= kMaxCompletionQueues) {
    return false;
  }
  remoteShared_ = nullptr;
  if (const uint32_t shared = remote.sharedQueue.load(std::memory_order_acquire); shared != 0) {
    if (shared > kMaxSharedReceiveQueues || remoteReceiveCapacity_ == 0) return false;
    remoteShared_ = &peer_->control()->sharedQueues[shared - 1];
    remoteSharedBase_ = remoteShared_->base.load(std::memory_order_acquire);
    remoteSharedCapacity_ = remoteShared_->capacity.load(std::memory_order_acquire);
    if (!std::has_single_bit(remoteSharedCapacity_) || remoteSharedCapacity_ > remoteReceiveCapacity_ ||
        remoteSharedBase_ > kSharedReceiveEntries - remoteSharedCapacity_) {
      return false;
    }
    remoteScatterBase_ = remoteShared_->scatterBase.load(std::memory_order_acquire);
    remoteMaxSge_ = remoteShared_->maxSge.load(std::memory_order_acquire);
  }
  const uint32_t receives = remoteShared_ != nullptr ? remoteSharedCapacity_ : remoteReceiveCapacity_;
  if (remoteMaxSge_ > kMaxSge ||
      (remoteMaxSge_ > 1 &&
       (receives * remoteMaxSge_ > kScatterEntries || remoteScatterBase_ > kScatterEntries - receives * remoteMaxSge_)))
    return false;
  // All of this was of one connection.
  const uint64_t again = remote.word.load(std::memory_order_acquire);
  if ((again & word::kOpen) == 0 || ((again ^ w) & word::kConnectionMask) != 0) return false;
  remoteConnection_ = w & word::kConnectionMask;
  return true;
}

// What is mapped stays so: unmapping interrupts every processor that the process runs on, and connections break when a
// peer has died and its successor is waited for.
void ShmQueuePair::disconnect() {
  connected_ = false;
  remote_ = nullptr;
}

void ShmQueuePair::unmapPeer() {
  disconnect();
  segments_ = {};
  displacedSegments_.clear();
  peer_.reset();
}

// Remembers the segment; forgets those that their regions no longer use, so that their memory can go.
bool ShmQueuePair::findMapping(uint32_t region, uint64_t segmentId, uint32_t memory) {
  CachedSegment found;
  const auto displaced =
      std::find_if(displacedSegments_.begin(), displacedSegments_.end(), [&](const CachedSegment& cached) {
        return cached.region == region && cached.segmentId == segmentId && cached.peer == peer_.get();
      });
  if (displaced != displacedSegments_.end()) {
    found = std::move(*displaced);
    displacedSegments_.erase(displaced);
  } else {
    std::shared_ptr<Mapping> mapping = peer_->mapSegment(memory, segmentId);
    if (mapping == nullptr) return false;
    found = CachedSegment{region, segmentId, peer_.get(), std::move(mapping), type_ == QpType::Ud ? peer_ : nullptr};
  }
  // What is of no use any more goes only now: it may have been a mapping of the same segment, for another region.
  const auto isOutdated = [this](const CachedSegment& cached) {
    if (cached.mapping == nullptr || cached.peer != peer_.get()) return false;
    const RegionSlot& slot = peer_->control()->regions[cached.region];
    return (slot.tag.load(std::memory_order_relaxed) & region_tag::kValid) == 0 ||
           slot.segmentId.load(std::memory_order_relaxed) != cached.segmentId;
  };
  for (CachedSegment& cached : segments_) {
    if (isOutdated(cached)) cached = CachedSegment();
  }
  std::erase_if(displacedSegments_, isOutdated);
  CachedSegment& place = segments_[region % segments_.size()];
  if (place.mapping != nullptr && type_ != QpType::Ud && displacedSegments_.size() < kMaxMemories) {
    displacedSegments_.push_back(std::move(place));
  }
  place = std::move(found);
  return true;
}

// ---------------------------------------------------------------------------------------------------------------
// One operation

ShmQueuePair::Step ShmQueuePair::waitOrFail(Step step, Progress* progress, WcStatus* status) const {
  const int64_t now = monotonic_ns();
  if (progress->reason != step) {
    progress->reason = step;
    if (step == Step::Wait) {
      progress->deadline_ns = now + transportTimeout_ns();
    } else if (attributes_.rnrRetry == 7) {
      progress->deadline_ns = INT64_MAX;  // 7 means forever (ibv_modify_qp(3)): until a receive is posted
    } else {
      const int64_t timer_ns = kRnrTimer_us[remote_->minRnrTimer.load(std::memory_order_relaxed) & 31] * 1000;
      progress->deadline_ns = now + attributes_.rnrRetry * timer_ns;
    }
  }
  if (now < progress->deadline_ns) return step;
  *status = step == Step::Wait ? WcStatus::RetryExcErr : WcStatus::RnrRetryExcErr;
  return Step::Failed;
}

ShmQueuePair::Outcome ShmQueuePair::execute(const SendWorkRequest& request, const uint8_t* inlineData,
                                            Progress* progress, WcStatus* status) {
  const OperationTraits& traits = *traitsOf(request.opcode);
  if (traits.kind == OperationKind::Atomic && request.length != sizeof(uint64_t)) {
    *status = WcStatus::LocLenErr;
    return Outcome::Done;
  }
  if ((traits.kind == OperationKind::Atomic || traits.kind == OperationKind::Read) && attributes_.maxRdAtomic == 0) {
    *status = WcStatus::LocQpOpErr;
    return Outcome::Done;
  }
  auto* local = const_cast<uint8_t*>(inlineData);
  pieceCount_ = 0;
  if (local == nullptr && request.length > 0) {
    if (request.sgeCount > 0) [[unlikely]] {
      if (!findPieces(request, traits.localAccess)) {
        *status = WcStatus::LocProtErr;
        return Outcome::Done;
      }
    } else {
      local =
          context_.localBytes(request.lkey, request.localAddress, request.length, traits.localAccess, domain_->id());
      if (local == nullptr) [[unlikely]] {
        *status = WcStatus::LocProtErr;
        return Outcome::Done;
      }
    }
  }
  if (type_ == QpType::Ud) [[unlikely]] {
    // Whatever becomes of a datagram, its sender is not told.
    if (request.addressHandle->enter()) {
      if (pieceCount_ > 0) {
        gathered_.clear();
        for (uint32_t i = 0; i < pieceCount_; i++) {
          gathered_.insert(gathered_.end(), pieces_[i].bytes, pieces_[i].bytes + pieces_[i].length);
        }
        local = gathered_.data();
      }
      sendDatagram(request, local);
      request.addressHandle->leave();
    }
    *status = WcStatus::Success;
    return Outcome::Done;
  }
  if (!connected_ && !connect()) [[unlikely]] {
    if (type_ == QpType::Uc) return Outcome::Done;
    *status = WcStatus::RetryExcErr;
    return Outcome::Done;
  }
  if ((request.sendFlags & kChecksumFlags) == kSendChecksum && progress->offset == 0) [[unlikely]] {
    readChecksum_ = Checksum(request.checksumBefore);
  }
  for (int again = 0;;) {
    const uint64_t left = request.length - progress->offset;
    const bool last = left <= kChunkBytes;
    Chunk chunk{request, traits, local, progress->offset, static_cast<uint32_t>(last ? left : kChunkBytes), last};
    Step step = runChunk<false>(chunk, status);
    if (step == Step::Finished) [[likely]] {
      if (chunk.last) return Outcome::Done;
      progress->offset += chunk.bytes;
      progress->reason = Step::Finished;
      again = 0;
      continue;
    }
    if (step == Step::Again) {
      if (++again < kMaxAgain) continue;
      step = Step::Wait;
    }
    if (type_ == QpType::Uc && (step == Step::Failed || step == Step::NotReady)) [[unlikely]] {
      // The message is lost. The next one finds the responder anew, should this one have left.
      if (step == Step::Failed) disconnect();
      *status = WcStatus::Success;
      return Outcome::Done;
    }
    if (step == Step::Wait || step == Step::NotReady) step = waitOrFail(step, progress, status);
    if (step != Step::Failed) return Outcome::Waiting;
    if (type_ == QpType::Uc) *status = WcStatus::Success;
    assert(type_ == QpType::Uc || *status != WcStatus::Success);
    return Outcome::Done;
  }
}

// Resolves the local buffers. False if one of them may not be used so.
bool ShmQueuePair::findPieces(const SendWorkRequest& request, uint32_t access) {
  for (uint32_t i = 0; i < request.sgeCount; i++) {
    const Sge& sge = request.sges[i];
    if (sge.length == 0) continue;
    uint8_t* bytes = context_.localBytes(sge.lkey, sge.address, sge.length, access, domain_->id());
    if (bytes == nullptr) return false;
    pieces_[pieceCount_++] = {bytes, sge.length};
  }
  return true;
}

// What a READ brings.
void ShmQueuePair::copyRead(const Chunk& chunk, uint8_t* to, const uint8_t* from, uint32_t bytes) {
  if ((chunk.request.sendFlags & kSendChecksum) == 0) [[likely]] {
    copy(to, from, bytes);
  } else {
    readChecksum_.takeCopying(to, from, bytes);
  }
}

// Between the local pieces and `target`, in the direction of the operation.
void ShmQueuePair::copyPieces(const Chunk& chunk, uint8_t* target) {
  uint64_t skip = chunk.offset;
  uint32_t left = chunk.bytes;
  for (uint32_t i = 0; i < pieceCount_ && left > 0; i++) {
    if (skip >= pieces_[i].length) {
      skip -= pieces_[i].length;
      continue;
    }
    uint8_t* const local = pieces_[i].bytes + skip;
    const uint32_t bytes = std::min(left, static_cast<uint32_t>(pieces_[i].length - skip));
    if (chunk.traits.kind == OperationKind::Read) {
      copyRead(chunk, local, target, bytes);
    } else {
      copy(target, local, bytes);
    }
    target += bytes;
    left -= bytes;
    skip = 0;
  }
  assert(left == 0);
}

void ShmQueuePair::copyDatagram(const Chunk& chunk, uint8_t* target) const {
  uint64_t offset = chunk.offset;
  uint32_t left = chunk.bytes;
  if (offset < kGrhBytes) {
    const uint32_t bytes = std::min(left, static_cast<uint32_t>(kGrhBytes - offset));
    std::memcpy(target, datagramHeader_ + offset, bytes);
    target += bytes;
    offset += bytes;
    left -= bytes;
  }
  if (left > 0) copy(target, chunk.local + (offset - kGrhBytes), left);
}

void ShmQueuePair::runDatagram(const SendWorkRequest& request, const uint8_t* local) {
  const uint32_t total = request.length + kGrhBytes;
  uint32_t done = 0;
  for (int again = 0; again < kMaxAgain; again++) {
    Chunk chunk{request, *traitsOf(request.opcode), const_cast<uint8_t*>(local), done, total - done, true};
    WcStatus ignored = WcStatus::Success;
    const Step step = runChunk<true>(chunk, &ignored);
    if (step == Step::Again) continue;
    if (step != Step::Finished || chunk.last) return;
    done += chunk.bytes;
    again = 0;
  }
}

// Finds the element of the receive that the chunk goes to, and cuts the chunk down to what fits into it. False if the
// elements do not hold the message: then the peer's tables contradict each other.
bool ShmQueuePair::narrow(ControlSegment* control, uint64_t total, Target* target, Chunk* chunk) {
  assert(target->sgeCount <= kMaxSge);
  uint64_t start = 0;
  for (uint32_t i = 0; i < target->sgeCount; i++) {
    const ScatterEntry& entry = control->scatter[target->scatterAt + i];
    const uint64_t length = entry.length.load(std::memory_order_relaxed);
    if (chunk->offset < start + length) {
      target->address = entry.address.load(std::memory_order_relaxed);
      target->key = entry.lkey.load(std::memory_order_relaxed);
      target->rangeOffset = chunk->offset - start;
      target->rangeLength = std::min(length, total - start);
      const uint64_t room = target->rangeLength - target->rangeOffset;
      if (chunk->bytes > room) {
        chunk->bytes = static_cast<uint32_t>(room);
        chunk->last = false;
      }
      return true;
    }
    start += length;
  }
  return total == 0;
}

// A datagram has its routing header in front, and is one chunk unless its receive has several elements.
template <bool kDatagram>
ShmQueuePair::Step ShmQueuePair::runChunk(Chunk& chunk, WcStatus* status) {
  const SendWorkRequest& request = chunk.request;
  const OperationTraits& traits = chunk.traits;
  const auto fail = [status](WcStatus reason) {
    *status = reason;
    return Step::Failed;
  };
  ControlSegment* const control = peer_->control();
  if (!peer_->alive()) [[unlikely]]
    return fail(WcStatus::RetryExcErr);
  uint64_t w = remote_->word.load(std::memory_order_acquire);
  if ((w & (word::kOpen | word::kError | word::kStuck | word::kKindMask | word::kConnectionMask)) !=
      (word::kOpen | remoteConnection_)) [[unlikely]] {
    return fail(WcStatus::RetryExcErr);
  }
  if ((w & traits.right) != traits.right ||
      (traits.kind == OperationKind::Atomic && request.remoteAddress % sizeof(uint64_t) != 0)) [[unlikely]] {
    violate(w, nullptr, WcStatus::Success);
    return fail(WcStatus::RemInvReqErr);
  }

  const uint64_t needed = kDatagram ? uint64_t{request.length} + kGrhBytes : request.length;
  Target place;
  place.address = request.remoteAddress;
  place.key = request.rkey;
  place.rangeLength = needed;
  place.rangeOffset = chunk.offset;
  ReceiveEntry* receive = nullptr;
  if (traits.consumesReceive && remoteShared_ != nullptr) [[unlikely]] {
    receive = &control->receives[remoteReceiveBase_ + (word::received(w) & (remoteReceiveCapacity_ - 1))];
    if (claimedShared(w) == kNoReceive &&
        remoteShared_->claimed.load(std::memory_order_acquire) ==
            remoteShared_->posted.load(std::memory_order_acquire)) {
      return Step::NotReady;
    }
  } else if (traits.consumesReceive) {
    const uint16_t available = static_cast<uint16_t>(
        static_cast<uint16_t>(remote_->postedReceives.load(std::memory_order_acquire)) - word::received(w));
    if (available == 0) return Step::NotReady;
    if (available > remoteReceiveCapacity_) return fail(WcStatus::RetryExcErr);
    const uint32_t position = word::received(w) & (remoteReceiveCapacity_ - 1);
    receive = &control->receives[remoteReceiveBase_ + position];
    if (traits.kind == OperationKind::Send) {
      place.address = receive->address.load(std::memory_order_relaxed);
      place.key = receive->lkey.load(std::memory_order_relaxed);
      place.sgeCount = receive->info.load(std::memory_order_relaxed);
      bool fits = needed <= receive->length.load(std::memory_order_relaxed);
      if (place.sgeCount > 1 && fits) [[unlikely]] {
        place.scatterAt = remoteScatterBase_ + position * remoteMaxSge_;
        // Not among those of a queue that takes one element: the entry has been completed, and the word has changed.
        if (place.sgeCount > remoteMaxSge_ || remoteMaxSge_ == 1) return Step::Again;
        fits = narrow(control, needed, &place, &chunk);
      }
      if (!fits) {
        violate(w, receive, WcStatus::LocLenErr);
        return fail(WcStatus::RemInvReqErr);
      }
    }
  }

  uint32_t index = regionIndexOf(place.key);
  uint64_t taken = word::taken(w, traits.kind, index);
  if (!remote_->word.compare_exchange_strong(w, taken, std::memory_order_seq_cst, std::memory_order_relaxed))
    return Step::Again;
  if (traits.consumesReceive && remoteShared_ != nullptr) [[unlikely]] {
    place.length = UINT32_MAX;
    const Step step = claimShared(control, &chunk, needed, &taken, &place);
    if (step != Step::Finished) return step == Step::Failed ? fail(WcStatus::RetryExcErr) : step;
    index = regionIndexOf(place.key);
    if (needed > place.length) {
      violate(taken, receive, WcStatus::LocLenErr);
      return fail(WcStatus::RemInvReqErr);
    }
  }
  reached(HookPoint::AfterTake);

  uint8_t* target = nullptr;
  if (needed > 0) [[likely]] {
    RegionSlot& region = control->regions[index];
    const uint64_t tag = region.tag.load(std::memory_order_seq_cst);
    const auto accessViolation = [&] {
      const bool send = traits.kind == OperationKind::Send;
      violate(taken, send ? receive : nullptr, WcStatus::LocProtErr);
      return fail(send ? WcStatus::RemOpErr : WcStatus::RemAccessErr);
    };
    if (region_tag::key(tag) != place.key || (tag & region_tag::kValid) == 0) [[unlikely]]
      return accessViolation();
    const auto letGo = [&](Step step) { return releaseWord(taken, false) ? step : fail(WcStatus::RetryExcErr); };
    if ((tag & region_tag::kMoving) != 0) [[unlikely]]
      return letGo(Step::Wait);
    // Acquiring: none of these is read after the tag and the word are read again.
    const uint64_t base = region.address.load(std::memory_order_acquire);
    const uint64_t length = region.length.load(std::memory_order_acquire);
    const uint64_t segmentOffset = region.segmentOffset.load(std::memory_order_acquire);
    const uint64_t segmentId = region.segmentId.load(std::memory_order_acquire);
    const uint32_t access = region.access.load(std::memory_order_acquire);
    const uint32_t domain = region.protectionDomain.load(std::memory_order_acquire);
    const uint32_t memory = region.memory.load(std::memory_order_acquire);
    const uint32_t onlyThrough = region.queuePair.load(std::memory_order_acquire);
    if (region.tag.load(std::memory_order_relaxed) != tag || remote_->word.load(std::memory_order_acquire) != taken)
        [[unlikely]] {
      return letGo(Step::Again);
    }
    const uint64_t address = place.address, rangeLength = place.rangeLength;
    if (address < base || rangeLength > length || address - base > length - rangeLength ||
        (access & traits.access) != traits.access || domain != remoteProtectionDomain_ ||
        (onlyThrough != 0 && onlyThrough != remote_->number.load(std::memory_order_relaxed))) [[unlikely]] {
      return accessViolation();
    }
    CachedSegment& cached = segments_[index % segments_.size()];
    if (cached.segmentId != segmentId || cached.peer != peer_.get() || cached.mapping == nullptr) [[unlikely]] {
      // Not while the word is held: mapping takes long.
      if (!releaseWord(taken, false)) return fail(WcStatus::RetryExcErr);
      return findMapping(index, segmentId, memory) ? Step::Again : Step::Wait;
    }
    // The region's fields are the peer's: what counts here is the mapping.
    const uint64_t start = address - base + place.rangeOffset;
    const uint64_t mapped = cached.mapping->size();
    const uint64_t bytes = chunk.bytes;
    if (segmentOffset > mapped || start > mapped - segmentOffset || bytes > mapped - segmentOffset - start)
        [[unlikely]] {
      return accessViolation();
    }
    target = cached.mapping->data() + segmentOffset + start;
  }

  reached(HookPoint::BeforeCopy);
  uint8_t* const local = chunk.local + chunk.offset;
  switch (traits.kind) {
    case OperationKind::Write:
    case OperationKind::Send:
      if constexpr (kDatagram) {
        copyDatagram(chunk, target);
      } else if (pieceCount_ > 0) [[unlikely]] {
        copyPieces(chunk, target);
      } else if (chunk.bytes > 0) {
        copy(target, local, chunk.bytes);
      }
      break;
    case OperationKind::Read:
      if (pieceCount_ > 0) [[unlikely]] {
        copyPieces(chunk, target);
      } else if (chunk.bytes > 0) {
        copyRead(chunk, local, target, chunk.bytes);
      }
      break;
    case OperationKind::Atomic: {
      if (reinterpret_cast<uintptr_t>(target) % sizeof(uint64_t) != 0) {
        violate(taken, nullptr, WcStatus::Success);
        return fail(WcStatus::RemInvReqErr);
      }
      std::atomic_ref<uint64_t> value(*reinterpret_cast<uint64_t*>(target));
      uint64_t previous = request.compareAdd;
      if (request.opcode == WrOpcode::CompareSwap) {
        value.compare_exchange_strong(previous, request.swap, std::memory_order_seq_cst);
      } else {
        previous = value.fetch_add(request.compareAdd, std::memory_order_seq_cst);
      }
      std::memcpy(local, &previous, sizeof(previous));
      break;
    }
    case OperationKind::None:
      assert(false);
  }

  if (chunk.last && request.opcode == WrOpcode::SendWithInv && !invalidateRemoteWindow(control, request.invalidateRkey))
      [[unlikely]] {
    violate(taken, receive, WcStatus::RemInvReqErr);
    return fail(WcStatus::RemAccessErr);
  }
  const bool receiveDone = chunk.last && receive != nullptr;
  if (receiveDone && remoteShared_ != nullptr) [[unlikely]] {
    const uint32_t claim = remote_->claimedReceive.load(std::memory_order_relaxed);
    receive->address.store(receive_claim::entryPlusOne(claim) - 1, std::memory_order_relaxed);
  }
  if (chunk.last) {
    nextPsn_ = (nextPsn_ + 1) & kPsnMask;
    if constexpr (!kDatagram) remote_->expectedPsn.store(nextPsn_, std::memory_order_relaxed);
    if (receiveDone) {
      receive->byteLen.store(static_cast<uint32_t>(needed), std::memory_order_relaxed);
      if constexpr (kDatagram) receive->srcQp.store(place_.number, std::memory_order_relaxed);
      const bool withInv = request.opcode == WrOpcode::SendWithInv;
      receive->immData.store(withInv ? request.invalidateRkey : request.immData, std::memory_order_relaxed);
      const uint32_t timestamps =
          control->completionQueues[remoteReceiveCq_].timestamps.load(std::memory_order_relaxed);
      if (timestamps != 0) [[unlikely]] {
        const uint64_t time = timestampNow(static_cast<Timestamps>(timestamps));
        receive->length.store(static_cast<uint32_t>(time), std::memory_order_relaxed);
        receive->lkey.store(static_cast<uint32_t>(time >> 32), std::memory_order_relaxed);
      }
      receive->info.store((kDatagram ? kReceiveWithGrh : 0) | (traits.withImm ? kReceiveWithImm : 0) |
                              (withInv ? kReceiveWithInv : 0) |
                              (traits.kind == OperationKind::Write ? kReceiveOfWrite : 0),
                          std::memory_order_relaxed);
    }
  }
  reached(HookPoint::BeforeRelease);
  if (!releaseWord(taken, receiveDone)) [[unlikely]]
    return fail(WcStatus::RetryExcErr);
  if (receiveDone) peer_->ring(remoteReceiveCq_, (request.sendFlags & kSendSolicited) != 0);
  return Step::Finished;
}

// The receive of the shared queue that an earlier attempt claimed for the next message; kNoReceive if none did.
uint32_t ShmQueuePair::claimedShared(uint64_t word) const {
  ControlSegment* const control = peer_->control();
  return claimedReceive(*control, remoteSharedBase_, remoteSharedCapacity_,
                        static_cast<uint32_t>(remote_ - control->queuePairs), word);
}

// With the word taken: gets the receive of the shared queue that this message fills, claimed now or by an earlier
// attempt, and for a SEND names its region in the word, so that who deregisters that sees this operation. Finished,
// or the word has been let go.
ShmQueuePair::Step ShmQueuePair::claimShared(ControlSegment* control, Chunk* chunk, uint64_t total, uint64_t* taken,
                                             Target* target) {
  const auto letGo = [&](Step step) { return releaseWord(*taken, false) ? step : Step::Failed; };
  uint32_t claimed = claimedShared(*taken);
  if (claimed == kNoReceive) {
    bool limitReached = false;
    const uint32_t queuePair = static_cast<uint32_t>(remote_ - control->queuePairs);
    claimed = claimSharedReceive(*control, *remoteShared_, remoteSharedBase_, remoteSharedCapacity_, queuePair,
                                 &limitReached);
    if (limitReached) peer_->ringAsync();
    if (claimed == kNoReceive) return letGo(Step::NotReady);
  }
  if (chunk->traits.kind != OperationKind::Send) return Step::Finished;
  const SharedReceiveEntry& entry = control->sharedReceives[remoteSharedBase_ + claimed];
  target->address = entry.address.load(std::memory_order_relaxed);
  target->key = entry.lkey.load(std::memory_order_relaxed);
  target->length = entry.length.load(std::memory_order_relaxed);
  target->sgeCount = entry.sgeCount.load(std::memory_order_relaxed);
  if (target->sgeCount > 1 && total <= target->length) {
    target->scatterAt = remoteScatterBase_ + claimed * remoteMaxSge_;
    if (target->sgeCount > remoteMaxSge_ || !narrow(control, total, target, chunk)) return letGo(Step::Failed);
  }
  const uint64_t named = word::withRegion(*taken, regionIndexOf(target->key));
  uint64_t expected = *taken;
  if (!remote_->word.compare_exchange_strong(expected, named, std::memory_order_seq_cst)) return letGo(Step::Again);
  *taken = named;
  return Step::Finished;
}

// The last act of a SEND that invalidates a window of its receiver: that must be one of type 2, bound through the queue
// pair that the message goes to. So nobody but this side can be using it, and with the word held it is not doing so.
bool ShmQueuePair::invalidateRemoteWindow(ControlSegment* control, uint32_t rkey) {
  RegionSlot& region = control->regions[regionIndexOf(rkey)];
  uint64_t tag = region.tag.load(std::memory_order_seq_cst);
  do {
    if (region_tag::key(tag) != rkey || (tag & region_tag::kValid) == 0 ||
        region.queuePair.load(std::memory_order_acquire) != remote_->number.load(std::memory_order_relaxed) ||
        region.protectionDomain.load(std::memory_order_acquire) != remoteProtectionDomain_) {
      return false;
    }
  } while (!region.tag.compare_exchange_weak(tag, region_tag::make(rkey, tag, 0), std::memory_order_seq_cst));
  return true;
}

// True if the word was still ours, and so the operation counts. When it returns false, this process has made its last
// store into the responder's slot.
bool ShmQueuePair::releaseWord(uint64_t taken, bool receiveDone) {
  const uint64_t idle = word::idle(receiveDone ? word::withOneMoreReceived(taken) : taken);
  uint64_t expected = taken;
  if (remote_->word.compare_exchange_strong(expected, idle, std::memory_order_seq_cst)) [[likely]]
    return true;
  return releaseSlowly(taken, receiveDone);
}

bool ShmQueuePair::releaseSlowly(uint64_t taken, bool receiveDone) {
  uint64_t current = remote_->word.load(std::memory_order_seq_cst);
  // Rights were taken away meanwhile, but the revoker still waits for us: what was copied came before the revocation.
  while (word::sameOperation(current, taken)) {
    const uint64_t idle = word::idle(receiveDone ? word::withOneMoreReceived(current) : current);
    if (remote_->word.compare_exchange_weak(current, idle, std::memory_order_seq_cst)) return true;
  }
  // Passed over. The mark keeps the slot from being reused until here.
  if (((current ^ taken) & word::kConnectionMask) == 0) {
    remote_->word.fetch_and(~word::kStuck, std::memory_order_seq_cst);
  }
  return false;
}

// The request broke a rule. `word` is what was seen or, if busy, what we hold.
void ShmQueuePair::violate(uint64_t word, ReceiveEntry* receive, WcStatus receiveStatus) {
  if (type_ == QpType::Rc) {
    failResponder(word, receive, receiveStatus);
  } else if (word::busy(word)) {
    releaseWord(word, false);  // the message is dropped, and the posted receive stays for the next
  }
}

// The request broke a rule: the responder goes to ERR, too. `word` is what was seen or, if busy, what we hold.
// `receive`: the request also ends this posted receive, with receiveStatus.
void ShmQueuePair::failResponder(uint64_t word, ReceiveEntry* receive, WcStatus receiveStatus) {
  if (!word::busy(word)) {
    // Take it first: so nobody else can be at the receive entry, and a revocation in the meantime wins.
    const uint64_t taken = word::taken(word, OperationKind::Read, 0);
    if (!remote_->word.compare_exchange_strong(word, taken, std::memory_order_seq_cst)) return;
    word = taken;
  }
  if (receive != nullptr && remoteShared_ != nullptr) {
    const uint32_t claimed = claimedShared(word);
    if (claimed == kNoReceive) receive = nullptr;  // none was claimed, so none ends
    if (receive != nullptr) receive->address.store(claimed, std::memory_order_relaxed);
  }
  if (receive != nullptr) {
    receive->byteLen.store(0, std::memory_order_relaxed);
    receive->info.store(static_cast<uint32_t>(receiveStatus), std::memory_order_relaxed);
  }
  uint64_t current = word;
  while (word::sameOperation(current, word)) {
    const uint64_t counted = word::idle(receive != nullptr ? word::withOneMoreReceived(current) : current);
    const uint64_t failed = (counted & ~(word::kOpen | word::kRights)) | word::kError;
    if (remote_->word.compare_exchange_weak(current, failed, std::memory_order_seq_cst)) {
      peer_->ring(remoteReceiveCq_, true);
      return;
    }
  }
  if (((current ^ word) & word::kConnectionMask) == 0) {
    remote_->word.fetch_and(~word::kStuck, std::memory_order_seq_cst);
  }
}

}  // namespace quorate::shm

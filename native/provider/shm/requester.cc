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
#include <time.h>

#include <atomic>
#include <bit>
#include <cassert>
#include <cerrno>
#include <climits>
#include <cstring>

#include "provider/shm/address_handle.h"
#include "provider/shm/queue_pair.h"
#include "provider/shm/test_hooks.h"

namespace quorate::shm {
namespace {

constexpr int kMaxAgain = 64;  // attempts in a row before an operation waits for the responder's process to settle
constexpr int64_t kLeastTransportTimeout_ns = 20'000'000;
constexpr int64_t kMostTransportTimeout_ns = 4'000'000'000;
constexpr uint32_t kPsnMask = 0xffffff;
constexpr uint32_t kMaxQpNum = 0xffffff;
constexpr uint32_t kKnownSendFlags = kSendFence | kSendSignaled | kSendSolicited | kSendInline;
// Microseconds for each value of minRnrTimer (InfiniBand specification, "Encoding for RNR NAK Timer Field").
constexpr int64_t kRnrTimer_us[32] = {655360, 10,    20,    30,    40,    60,     80,     120,    160,    240,   320,
                                      480,    640,   960,   1280,  1920,  2560,   3840,   5120,   7680,   10240, 15360,
                                      20480,  30720, 40960, 61440, 81920, 122880, 163840, 245760, 327680, 491520};

int64_t now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

void reached(HookPoint point) {
  if (auto* hook = testHooks.reached.load(std::memory_order_relaxed)) [[unlikely]]
    hook(point);
}

void copy(uint8_t* to, const uint8_t* from, uint32_t bytes) {
  if (testHooks.reached.load(std::memory_order_relaxed) != nullptr) [[unlikely]] {
    std::memcpy(to, from, bytes / 2);
    reached(HookPoint::MidCopy);
    std::memcpy(to + bytes / 2, from + bytes / 2, bytes - bytes / 2);
    return;
  }
  std::memcpy(to, from, bytes);
}

struct OperationTraits {
  OperationKind kind;
  uint64_t right;        // of the queue pair
  uint32_t access;       // of the region
  uint32_t localAccess;  // of the local region
  bool consumesReceive;
  bool withImm;
  WcOpcode completed;
};

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
  };
  const int index = static_cast<int>(opcode);
  return index >= 0 && index < static_cast<int>(std::size(kTraits)) ? &kTraits[index] : nullptr;
}

}  // namespace

struct ShmQueuePair::Chunk {
  const SendWorkRequest& request;
  const OperationTraits& traits;
  uint8_t* local;
  uint64_t offset;
  uint32_t bytes;
  bool last;
};

// ---------------------------------------------------------------------------------------------------------------
// Posting and completing

int ShmQueuePair::refusal(const SendWorkRequest& request) const {
  const OperationTraits* traits = traitsOf(request.opcode);
  if (traits == nullptr || request.length > kMaxMessageBytes || (request.sendFlags & ~kKnownSendFlags) != 0) {
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
  return 0;
}

size_t ShmQueuePair::postSend(const SendWorkRequest* requests, size_t count, int* errnum) {
  if (context_.forked()) [[unlikely]]
    context_.requireOpen(kind());
  const std::lock_guard<SpinLock> guard(postLock_);
  *errnum = 0;
  for (size_t i = 0; i < count; i++) {
    if (i > 0 && postLock_.contended()) [[unlikely]]
      postLock_.letOthersIn();
    if (closed_.load(std::memory_order_relaxed)) [[unlikely]]
      throw VerbsError("QUORATE_CLOSED", "This QueuePair was closed");
    noticeRemoteError();
    const QpState state = static_cast<QpState>(state_.load(std::memory_order_relaxed));
    if (state != QpState::Rts && state != QpState::Err && state != QpState::Sqd && state != QpState::Sqe) [[unlikely]] {
      *errnum = EINVAL;
      return i;
    }
    const SendWorkRequest& request = requests[i];
    if (const int refused = refusal(request)) [[unlikely]] {
      *errnum = refused;
      return i;
    }
    if (sendsPosted_ - sendsRetired_.load(std::memory_order_acquire) >= capabilities_.maxSendWr) [[unlikely]] {
      *errnum = ENOMEM;
      return i;
    }
    const uint64_t index = ++sendsPosted_;
    if (state == QpState::Err || state == QpState::Sqe) [[unlikely]] {
      complete(request, index, WcStatus::WrFlushErr);
      continue;
    }
    Progress progress;
    if (!waiting_.empty() || state == QpState::Sqd) [[unlikely]] {
      enqueue(request, index, progress);
      continue;
    }
    WcStatus status = WcStatus::Success;
    const uint8_t* inlineData =
        (request.sendFlags & kSendInline) != 0 ? reinterpret_cast<const uint8_t*>(request.localAddress) : nullptr;
    if (execute(request, inlineData, &progress, &status) == Outcome::Waiting) [[unlikely]] {
      enqueue(request, index, progress);
    } else {
      complete(request, index, status);
    }
  }
  return count;
}

void ShmQueuePair::enqueue(const SendWorkRequest& request, uint64_t index, const Progress& progress) {
  WaitingRequest& waiting = waiting_.emplace_back();
  waiting.request = request;
  waiting.index = index;
  waiting.progress = progress;
  if (type_ == QpType::Ud) waiting.addressHandle = request.addressHandle->shared_from_this();
  if ((request.sendFlags & kSendInline) != 0 && request.length > 0) {
    const auto* data = reinterpret_cast<const uint8_t*>(request.localAddress);
    waiting.inlineData.assign(data, data + request.length);
  }
  wantAttention();
}

void ShmQueuePair::retryWaiting() {
  noticeRemoteError();
  while (!waiting_.empty()) {
    WaitingRequest& head = waiting_.front();
    if (static_cast<QpState>(state_.load(std::memory_order_relaxed)) == QpState::Sqd && !head.begun()) return;
    WcStatus status = WcStatus::Success;
    const uint8_t* inlineData = head.inlineData.empty() ? nullptr : head.inlineData.data();
    if (execute(head.request, inlineData, &head.progress, &status) == Outcome::Waiting) return;
    const SendWorkRequest request = head.request;
    const uint64_t index = head.index;
    waiting_.pop_front();
    complete(request, index, status);
  }
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
    waiting_.pop_front();
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
  }
  // All of this was of one connection.
  const uint64_t again = remote.word.load(std::memory_order_acquire);
  if ((again & word::kOpen) == 0 || ((again ^ w) & word::kConnectionMask) != 0) return false;
  remoteConnection_ = w & word::kConnectionMask;
  return true;
}

void ShmQueuePair::disconnect() {
  connected_ = false;
  remote_ = nullptr;
  segments_ = {};
  peer_.reset();
}

// Remembers the segment; forgets those that their regions no longer use, so that their memory can go.
bool ShmQueuePair::findMapping(uint32_t region, uint64_t segmentId, uint32_t memory) {
  for (CachedSegment& cached : segments_) {
    if (cached.mapping != nullptr && cached.peer == peer_.get() &&
        peer_->control()->regions[cached.region].segmentId.load(std::memory_order_relaxed) != cached.segmentId) {
      cached = CachedSegment();
    }
  }
  std::shared_ptr<Mapping> mapping = peer_->mapSegment(memory, segmentId);
  if (mapping == nullptr) return false;
  segments_[region % segments_.size()] =
      CachedSegment{region, segmentId, peer_.get(), std::move(mapping), type_ == QpType::Ud ? peer_ : nullptr};
  return true;
}

// ---------------------------------------------------------------------------------------------------------------
// One operation

ShmQueuePair::Step ShmQueuePair::waitOrFail(Step step, Progress* progress, WcStatus* status) const {
  const int64_t now = now_ns();
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
  if (local == nullptr && request.length > 0) {
    if (!context_.checkLocal(request.lkey, request.localAddress, request.length, traits.localAccess, domain_->id())) {
      *status = WcStatus::LocProtErr;
      return Outcome::Done;
    }
    local = reinterpret_cast<uint8_t*>(request.localAddress);
  }
  if (type_ == QpType::Ud) [[unlikely]] {
    // Whatever becomes of a datagram, its sender is not told.
    if (request.addressHandle->enter()) {
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
  for (int again = 0;;) {
    const uint64_t left = request.length - progress->offset;
    const bool last = left <= kChunkBytes;
    const Chunk chunk{request, traits, local, progress->offset, static_cast<uint32_t>(last ? left : kChunkBytes), last};
    Step step = runChunk<false>(chunk, status);
    if (step == Step::Finished) [[likely]] {
      if (last) return Outcome::Done;
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

void ShmQueuePair::runDatagram(const SendWorkRequest& request, const uint8_t* local) {
  const Chunk chunk{request, *traitsOf(request.opcode), const_cast<uint8_t*>(local), 0, request.length, true};
  for (int again = 0; again < kMaxAgain; again++) {
    WcStatus ignored = WcStatus::Success;
    if (runChunk<true>(chunk, &ignored) != Step::Again) return;
  }
}

// A datagram is one chunk, and its routing header goes in front of it.
template <bool kDatagram>
ShmQueuePair::Step ShmQueuePair::runChunk(const Chunk& chunk, WcStatus* status) {
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
  uint64_t address = request.remoteAddress;
  uint32_t key = request.rkey;
  ReceiveEntry* receive = nullptr;
  if (traits.consumesReceive && remoteShared_ != nullptr) [[unlikely]] {
    receive = &control->receives[remoteReceiveBase_ + (word::received(w) & (remoteReceiveCapacity_ - 1))];
    if (remote_->claimedReceive.load(std::memory_order_acquire) == 0 &&
        remoteShared_->claimed.load(std::memory_order_acquire) ==
            remoteShared_->posted.load(std::memory_order_acquire)) {
      return Step::NotReady;
    }
  } else if (traits.consumesReceive) {
    const uint16_t available = static_cast<uint16_t>(
        static_cast<uint16_t>(remote_->postedReceives.load(std::memory_order_acquire)) - word::received(w));
    if (available == 0) return Step::NotReady;
    if (available > remoteReceiveCapacity_) return fail(WcStatus::RetryExcErr);
    receive = &control->receives[remoteReceiveBase_ + (word::received(w) & (remoteReceiveCapacity_ - 1))];
    if (traits.kind == OperationKind::Send) {
      address = receive->address.load(std::memory_order_relaxed);
      key = receive->lkey.load(std::memory_order_relaxed);
      if (needed > receive->length.load(std::memory_order_relaxed)) {
        violate(w, receive, WcStatus::LocLenErr);
        return fail(WcStatus::RemInvReqErr);
      }
    }
  }

  uint32_t index = key & (kMaxMemoryRegions - 1);
  uint64_t taken = word::taken(w, traits.kind, index);
  if (!remote_->word.compare_exchange_strong(w, taken, std::memory_order_seq_cst, std::memory_order_relaxed))
    return Step::Again;
  if (traits.consumesReceive && remoteShared_ != nullptr) [[unlikely]] {
    uint32_t room = UINT32_MAX;
    const Step step = claimShared(control, traits.kind, &taken, &address, &key, &room);
    if (step != Step::Finished) return step == Step::Failed ? fail(WcStatus::RetryExcErr) : step;
    index = key & (kMaxMemoryRegions - 1);
    if (needed > room) {
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
    if (region_tag::key(tag) != key || (tag & region_tag::kValid) == 0) [[unlikely]]
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
    if (region.tag.load(std::memory_order_relaxed) != tag || remote_->word.load(std::memory_order_acquire) != taken)
        [[unlikely]] {
      return letGo(Step::Again);
    }
    if (address < base || needed > length || address - base > length - needed ||
        (access & traits.access) != traits.access || domain != remoteProtectionDomain_) [[unlikely]] {
      return accessViolation();
    }
    CachedSegment& cached = segments_[index % segments_.size()];
    if (cached.segmentId != segmentId || cached.peer != peer_.get() || cached.mapping == nullptr) [[unlikely]] {
      // Not while the word is held: mapping takes long.
      if (!releaseWord(taken, false)) return fail(WcStatus::RetryExcErr);
      return findMapping(index, segmentId, memory) ? Step::Again : Step::Wait;
    }
    // The region's fields are the peer's: what counts here is the mapping.
    const uint64_t start = address - base + chunk.offset;
    const uint64_t mapped = cached.mapping->size();
    const uint64_t bytes = kDatagram ? needed : chunk.bytes;
    if (segmentOffset > mapped || start > mapped - segmentOffset || bytes > mapped - segmentOffset - start)
        [[unlikely]] {
      return accessViolation();
    }
    target = cached.mapping->data() + segmentOffset + start;
  }

  reached(HookPoint::BeforeCopy);
  if constexpr (kDatagram) {
    std::memcpy(target, datagramHeader_, kGrhBytes);
    target += kGrhBytes;
  }
  uint8_t* const local = chunk.local + chunk.offset;
  switch (traits.kind) {
    case OperationKind::Write:
    case OperationKind::Send:
      if (chunk.bytes > 0) copy(target, local, chunk.bytes);
      break;
    case OperationKind::Read:
      if (chunk.bytes > 0) copy(local, target, chunk.bytes);
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

  const bool receiveDone = chunk.last && receive != nullptr;
  if (receiveDone && remoteShared_ != nullptr) [[unlikely]] {
    receive->address.store(remote_->claimedReceive.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
    remote_->claimedReceive.store(0, std::memory_order_relaxed);
  }
  if (chunk.last) {
    nextPsn_ = (nextPsn_ + 1) & kPsnMask;
    if constexpr (!kDatagram) remote_->expectedPsn.store(nextPsn_, std::memory_order_relaxed);
    if (receiveDone) {
      receive->byteLen.store(static_cast<uint32_t>(needed), std::memory_order_relaxed);
      if constexpr (kDatagram) receive->srcQp.store(place_.number, std::memory_order_relaxed);
      receive->immData.store(request.immData, std::memory_order_relaxed);
      receive->info.store((kDatagram ? kReceiveWithGrh : 0) | (traits.withImm ? kReceiveWithImm : 0) |
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

// With the word taken: gets the receive of the shared queue that this message fills, claimed now or by an earlier
// attempt, and for a SEND names its region in the word, so that who deregisters that sees this operation. Finished,
// or the word has been let go.
ShmQueuePair::Step ShmQueuePair::claimShared(ControlSegment* control, OperationKind kind, uint64_t* taken,
                                             uint64_t* address, uint32_t* key, uint32_t* length) {
  const auto letGo = [&](Step step) { return releaseWord(*taken, false) ? step : Step::Failed; };
  const uint32_t queuePair = static_cast<uint32_t>(remote_ - control->queuePairs);
  uint32_t claimed = remote_->claimedReceive.load(std::memory_order_acquire);
  if (claimed == 0) {
    bool limitReached = false;
    const uint32_t entry = claimSharedReceive(*control, *remoteShared_, remoteSharedBase_, remoteSharedCapacity_,
                                              queuePair, &limitReached);
    if (limitReached) peer_->ringAsync();
    if (entry == kNoReceive) return letGo(Step::NotReady);
    claimed = entry + 1;
    remote_->claimedReceive.store(claimed, std::memory_order_release);
  }
  if (claimed > remoteSharedCapacity_) return letGo(Step::Failed);
  if (kind != OperationKind::Send) return Step::Finished;
  const SharedReceiveEntry& entry = control->sharedReceives[remoteSharedBase_ + claimed - 1];
  *address = entry.address.load(std::memory_order_relaxed);
  *key = entry.lkey.load(std::memory_order_relaxed);
  *length = entry.length.load(std::memory_order_relaxed);
  const uint64_t named = word::withRegion(*taken, *key & (kMaxMemoryRegions - 1));
  uint64_t expected = *taken;
  if (!remote_->word.compare_exchange_strong(expected, named, std::memory_order_seq_cst)) return letGo(Step::Again);
  *taken = named;
  return Step::Finished;
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
    const uint32_t claimed = remote_->claimedReceive.exchange(0, std::memory_order_relaxed);
    if (claimed == 0) receive = nullptr;  // none was claimed, so none ends
    if (receive != nullptr) receive->address.store(claimed - 1, std::memory_order_relaxed);
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

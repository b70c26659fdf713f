// Queue pairs: creation, state machine, receive side, closing.
#include "provider/shm/queue_pair.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>
#include <cstdio>

#include "verbs/qp_state_table.h"

namespace quorate::shm {
namespace {

VerbsError limitError(const char* name, uint32_t value, uint32_t most) {
  return VerbsError("QUORATE_OUT_OF_RANGE", std::string(name) + " is " + std::to_string(value) +
                                                ", the shm provider has at most " + std::to_string(most) +
                                                " per queue pair");
}

std::shared_ptr<ShmCompletionQueue> ownCompletionQueue(const std::shared_ptr<CompletionQueue>& queue, const char* name,
                                                       const std::shared_ptr<ShmContext>& context) {
  auto own = std::dynamic_pointer_cast<ShmCompletionQueue>(queue);
  if (own == nullptr || own->context() != context) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     std::string(name) + " of a queue pair must be a completion queue of the same shm context");
  }
  if (own->closed()) throw VerbsError("QUORATE_CLOSED", std::string(name) + " of the queue pair was closed");
  return own;
}

std::shared_ptr<ShmSharedReceiveQueue> ownSharedQueue(const std::shared_ptr<SharedReceiveQueue>& queue,
                                                      const std::shared_ptr<ShmProtectionDomain>& domain) {
  if (queue == nullptr) return nullptr;
  auto own = std::dynamic_pointer_cast<ShmSharedReceiveQueue>(queue);
  if (own == nullptr || own->domain() != domain) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     "srq of a queue pair must be a shared receive queue of the same protection domain");
  }
  if (own->closed()) throw VerbsError("QUORATE_CLOSED", "srq of the queue pair was closed");
  return own;
}

QpCapabilities checkedCapabilities(QpCapabilities cap, bool shared) {
  if (shared) cap.maxRecvWr = 0;
  if (cap.maxSendWr > kMaxSendWr) throw limitError("maxSendWr", cap.maxSendWr, kMaxSendWr);
  if (cap.maxRecvWr > kMaxReceiveWr) throw limitError("maxRecvWr", cap.maxRecvWr, kMaxReceiveWr);
  if (cap.maxSendSge > kMaxSge) throw limitError("maxSendSge", cap.maxSendSge, kMaxSge);
  if (cap.maxRecvSge > kMaxSge) throw limitError("maxRecvSge", cap.maxRecvSge, kMaxSge);
  if (cap.maxInlineData > kMaxInlineBytes) throw limitError("maxInlineData", cap.maxInlineData, kMaxInlineBytes);
  if (cap.maxRecvWr > 0) cap.maxRecvWr = std::bit_ceil(cap.maxRecvWr);
  return cap;
}

}  // namespace

std::shared_ptr<ShmQueuePair> ShmQueuePair::create(std::shared_ptr<ShmProtectionDomain> domain, const QpInit& init) {
  if (init.type != QpType::Rc && init.type != QpType::Uc && init.type != QpType::Ud) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT", "A queue pair of type " + std::to_string(static_cast<int>(init.type)) +
                                                     " is not known; use RC, UC or UD");
  }
  std::shared_ptr<ShmQueuePair> queuePair(new ShmQueuePair(std::move(domain), init));
  queuePair->sendCq_->children().add(queuePair);
  queuePair->receiveCq_->children().add(queuePair);
  if (queuePair->srq_ != nullptr) queuePair->srq_->children().add(queuePair);
  return queuePair;
}

ShmQueuePair::ShmQueuePair(std::shared_ptr<ShmProtectionDomain> domain, const QpInit& init)
    : domain_(std::move(domain)),
      context_(*domain_->context()),
      srq_(ownSharedQueue(init.srq, domain_)),
      sendCq_(ownCompletionQueue(init.sendCq, "sendCq", domain_->context())),
      receiveCq_(ownCompletionQueue(init.recvCq, "recvCq", domain_->context())),
      type_(init.type),
      signalAll_(init.signalAll),
      capabilities_(checkedCapabilities(init.cap, srq_ != nullptr)),
      // With a shared queue the ring takes completions only, and as many as that queue can have outstanding.
      place_(context_.takePlace(srq_ != nullptr ? srq_->maxWr() : capabilities_.maxRecvWr,
                                srq_ != nullptr ? 1 : capabilities_.maxRecvSge)) {
  place_.sharedQueue = srq_ == nullptr ? 0 : srq_->index() + 1;
  slot_ = &context_.control()->queuePairs[place_.index];
  receives_.resize(capabilities_.maxRecvWr);
  // A new connection number: whoever still remembers the slot's last user cannot take the word any more.
  const uint64_t previous = slot_->word.load(std::memory_order_seq_cst);
  slot_->word.store(word::withNextConnection(previous) & word::kOperationMask, std::memory_order_seq_cst);
  slot_->postedReceives.store(0, std::memory_order_relaxed);
  slot_->peerHca.store(0, std::memory_order_release);
  slot_->peerNumber.store(0, std::memory_order_release);
  slot_->type.store(static_cast<uint32_t>(type_), std::memory_order_release);
  slot_->qkey.store(0, std::memory_order_release);
  slot_->sender.store(0, std::memory_order_release);
  slot_->sharedQueue.store(place_.sharedQueue, std::memory_order_release);
  slot_->claimedReceive.store(0, std::memory_order_release);
  slot_->scatterBase.store(place_.scatterBase, std::memory_order_release);
  slot_->maxSge.store(place_.scatterEntries > 0 ? capabilities_.maxRecvSge : 1, std::memory_order_release);
  slot_->protectionDomain.store(domain_->id(), std::memory_order_release);
  slot_->receiveCq.store(receiveCq_->index(), std::memory_order_release);
  slot_->receiveBase.store(place_.receiveBase, std::memory_order_release);
  slot_->receiveCapacity.store(place_.receiveCapacity, std::memory_order_release);
  if (srq_ != nullptr) srq_->attach(place_.index);
  slot_->number.store(place_.number, std::memory_order_release);
  responder_.slot = slot_;
  responder_.postLock = &postLock_;
  responder_.announce = [this] { announce(); };
  responder_.datagram = type_ == QpType::Ud;
  try {
    receiveCq_->attachReceiver(this);
  } catch (...) {
    slot_->number.store(0);
    if (srq_ != nullptr) srq_->detach(place_.index);
    context_.givePlace(place_, nullptr);
    throw;
  }
  {
    const std::lock_guard<std::mutex> guard(context_.revoker().mutex());
    context_.revoker().addResponder(place_.index, &responder_);
  }
  context_.registerQueuePair(this);
}

ShmQueuePair::~ShmQueuePair() {
  try {
    close();
  } catch (const VerbsError& error) {
    // Nothing of it may be reused while a stopped requester might still store through it.
    std::fprintf(stderr, "quorate: a queue pair was dropped without a proven revocation: %s\n", error.what());
    context_.unregisterQueuePair(this);
    receiveCq_->forget(this);
    sendCq_->forget(this);
    const std::lock_guard<std::mutex> guard(context_.revoker().mutex());
    closeWord(*slot_);  // if it was a window that could not be closed
    context_.revoker().leaveResponder(place_.index);
  }
}

void ShmQueuePair::close() {
  const std::lock_guard<std::mutex> modifying(modifyMutex_);
  if (closed()) return;
  if (context_.forked()) {
    closed_.store(true);
    return;
  }
  detachAllMulticast();
  std::shared_ptr<PeerHca> lastPeer;
  std::vector<WaitingRequest> dropped;  // let go without a lock
  {
    Revoker& revoker = context_.revoker();
    std::unique_lock<std::mutex> guard(revoker.mutex());
    // Closing a window takes that mutex, and another thread may bind one meanwhile. From when there is none until this
    // queue pair is closed the mutex is held.
    for (auto windows = boundWindows(); !windows.empty(); windows = boundWindows()) {
      guard.unlock();
      for (const auto& window : windows) window->close();
      windows.clear();
      guard.lock();
    }
    closeWord(*slot_);
    revoker.drain([this](const Responder& responder, uint64_t) { return &responder == &responder_; });
    {
      const std::lock_guard<SpinLock> posting(postLock_);
      const std::lock_guard<SpinLock> receiving(receiveLock_);
      closed_.store(true, std::memory_order_release);
      state_.store(static_cast<int>(QpState::Err));
      while (!waiting_.empty()) dropHead();
      dropped.swap(dropped_);
      unmapPeer();
    }
    revoker.removeResponder(place_.index);
    lastPeer = std::move(responder_.peer);
  }
  context_.unregisterQueuePair(this);
  receiveCq_->forget(this);
  sendCq_->forget(this);
  slot_->number.store(0, std::memory_order_release);
  if (srq_ != nullptr) srq_->detach(place_.index);
  context_.givePlace(place_, std::move(lastPeer));
}

// With the revoker's mutex held, and not to be let go with it: closing a window takes it.
std::vector<std::shared_ptr<VerbsObject>> ShmQueuePair::boundWindows() const {
  std::vector<std::shared_ptr<VerbsObject>> bound;
  for (const auto& [index, window] : context_.memoryWindows()) {
    if (!window->boundThrough(place_.number)) continue;
    // Where there is none, its destructor waits for the mutex, and closes it.
    if (auto object = window->weak_from_this().lock()) bound.push_back(std::move(object));
  }
  return bound;
}

// ---------------------------------------------------------------------------------------------------------------
// State machine

// Is the word open in this state, unless an error closed it?
bool ShmQueuePair::isResponding(QpState state) const {
  return state == QpState::Rtr || state == QpState::Rts || state == QpState::Sqd || state == QpState::Sqe;
}

QpState ShmQueuePair::currentState() const {
  const QpState state = static_cast<QpState>(state_.load(std::memory_order_acquire));
  if (isResponding(state) && (slot_->word.load(std::memory_order_acquire) & word::kError) != 0) {
    return QpState::Err;
  }
  return state;
}

void ShmQueuePair::validate(QpState from, const QpAttributes& attributes) const {
  if (const std::optional<std::string> problem = explainQpTransition(type_, from, attributes)) {
    throw VerbsError("QUORATE_QP_STATE", *problem, EINVAL, "ibv_modify_qp");
  }
  const QpState to = (attributes.mask & kQpState) != 0 ? attributes.state : from;
  std::string problem;
  const uint32_t mask = attributes.mask;
  uint64_t ignored = 0;
  if ((mask & kQpPort) != 0 && attributes.portNum != 1) {
    problem = "portNum is " + std::to_string(attributes.portNum) + ", the only port is 1";
  } else if ((mask & kQpPkeyIndex) != 0 && attributes.pkeyIndex != 0) {
    problem = "pkeyIndex is " + std::to_string(attributes.pkeyIndex) + ", the only one is 0";
  } else if ((mask & kQpAv) != 0 && (!attributes.av.isGlobal || !parseGid(attributes.av.dgid, &ignored))) {
    problem = "av must be global with the dgid of an shm device; " + attributes.av.dgid.toString() + " is none";
  } else if ((mask & kQpAv) != 0 && (attributes.av.sgidIndex != 0 || attributes.av.portNum != 1)) {
    problem = "av.sgidIndex must be 0 and av.portNum 1: there is no other GID and port";
  } else if (from == QpState::Sqd && (mask & kQpAv) != 0 && !(attributes.av.dgid == attributes_.av.dgid)) {
    problem = "av has another dgid than the connection; a connection to another device takes a new queue pair";
  } else if ((mask & kQpMaxQpRdAtomic) != 0 && attributes.maxRdAtomic > kMaxRdAtomic) {
    problem = "maxRdAtomic is " + std::to_string(attributes.maxRdAtomic) + ", at most " + std::to_string(kMaxRdAtomic);
  } else if ((mask & kQpMaxDestRdAtomic) != 0 && attributes.maxDestRdAtomic > kMaxRdAtomic) {
    problem = "maxDestRdAtomic is " + std::to_string(attributes.maxDestRdAtomic) + ", at most " +
              std::to_string(kMaxRdAtomic);
  }
  if (!problem.empty()) {
    throw VerbsError("QUORATE_QP_STATE",
                     "Queue pair " + std::to_string(place_.number) + " in state " + qpStateName(from) +
                         " cannot be modified to " + qpStateName(to) + ": " + problem,
                     EINVAL, "ibv_modify_qp");
  }
}

void ShmQueuePair::modify(const QpAttributes& attributes) {
  context_.requireOpen(kind());
  const std::lock_guard<std::mutex> modifying(modifyMutex_);
  if (closed()) throw VerbsError("QUORATE_CLOSED", "This QueuePair was closed");
  const QpState from = currentState();
  validate(from, attributes);
  const QpState to = (attributes.mask & kQpState) != 0 ? attributes.state : from;
  switch (to) {
    case QpState::Reset:
      return toReset();
    case QpState::Init:
      return toInit(attributes);
    case QpState::Rtr:
      return toReadyToReceive(attributes);
    case QpState::Rts:
    case QpState::Sqe:  // without a change of state
      return toReadyToSend(attributes);
    case QpState::Sqd:
      return toDrained(attributes);
    default:
      assert(to == QpState::Err);
      return toError();
  }
}

QpAttributes ShmQueuePair::query() {
  context_.requireOpen(kind());
  const std::lock_guard<std::mutex> modifying(modifyMutex_);
  if (closed()) throw VerbsError("QUORATE_CLOSED", "This QueuePair was closed");
  QpAttributes attributes = attributes_;
  attributes.mask |= kQpState | kQpCurState;
  attributes.state = attributes.curState = currentState();
  return attributes;
}

// What the word grants to the peer.
uint64_t ShmQueuePair::rights() const {
  uint64_t rights = 0;
  if ((attributes_.accessFlags & kAccessRemoteWrite) != 0) rights |= word::kWrite;
  if (attributes_.maxDestRdAtomic > 0) {
    if ((attributes_.accessFlags & kAccessRemoteRead) != 0) rights |= word::kRead;
    if ((attributes_.accessFlags & kAccessRemoteAtomic) != 0) rights |= word::kAtomic;
  }
  return rights;
}

void ShmQueuePair::drainResponder(const Revoker::Concerns& concerns) {
  const std::lock_guard<std::mutex> guard(context_.revoker().mutex());
  context_.revoker().drain([&](const Responder& responder, uint64_t word) {
    return &responder == &responder_ && concerns(responder, word);
  });
}

void ShmQueuePair::announce() {
  receiveCq_->ring(true);
}

void ShmQueuePair::toReset() {
  closeWord(*slot_);
  drainResponder([](const Responder&, uint64_t) { return true; });
  if ((slot_->word.load(std::memory_order_seq_cst) & word::kStuck) != 0) {
    throw VerbsError("QUORATE_QP_STATE",
                     "Queue pair " + std::to_string(place_.number) +
                         " cannot be reset: a requester that was stopped in the middle of an operation still refers to "
                         "it. It is in ERR and all rights are revoked; close it and create a new one.",
                     EBUSY, "ibv_modify_qp");
  }
  const std::lock_guard<SpinLock> posting(postLock_);
  // Polled later they would undo that all has been retired. A poller takes the receive lock: so before that.
  sendCq_->forgetSends(this);
  const std::lock_guard<SpinLock> receiving(receiveLock_);
  while (!waiting_.empty()) dropHead();
  unmapPeer();
  sendsRetired_.store(sendsPosted_);
  receivesPosted_ = receivesTaken_ = 0;
  flushing_ = lastReceiveTold_ = false;
  slot_->claimedReceive.store(0, std::memory_order_relaxed);
  slot_->sender.store(0, std::memory_order_relaxed);  // it may have died in another PID namespace
  if (srq_ != nullptr) srq_->reclaim(place_.index, SIZE_MAX, [](const ReceiveWorkRequest&) {});
  needsDrain_.store(false);
  slot_->postedReceives.store(0, std::memory_order_relaxed);
  const uint64_t w = slot_->word.load(std::memory_order_seq_cst);
  slot_->word.store(word::withNextConnection(w) & word::kOperationMask, std::memory_order_seq_cst);
  attributes_ = QpAttributes();
  state_.store(static_cast<int>(QpState::Reset), std::memory_order_release);
}

// Attributes that only have to be remembered or published, whatever the transition. With postLock_ held.
void ShmQueuePair::applyCommon(const QpAttributes& attributes) {
  const uint32_t mask = attributes.mask;
  attributes_.mask |= mask;
  if ((mask & kQpAccessFlags) != 0) attributes_.accessFlags = attributes.accessFlags;
  if ((mask & kQpPort) != 0) attributes_.portNum = attributes.portNum;
  if ((mask & kQpPkeyIndex) != 0) attributes_.pkeyIndex = attributes.pkeyIndex;
  if ((mask & kQpAv) != 0) attributes_.av = attributes.av;
  if ((mask & kQpPathMtu) != 0) attributes_.pathMtuBytes = attributes.pathMtuBytes;
  if ((mask & kQpDestQpn) != 0) attributes_.destQpNum = attributes.destQpNum;
  if ((mask & kQpRqPsn) != 0) attributes_.rqPsn = attributes.rqPsn;
  if ((mask & kQpTimeout) != 0) attributes_.timeout = attributes.timeout;
  if ((mask & kQpRetryCnt) != 0) attributes_.retryCnt = attributes.retryCnt;
  if ((mask & kQpRnrRetry) != 0) attributes_.rnrRetry = attributes.rnrRetry;
  if ((mask & kQpMaxQpRdAtomic) != 0) attributes_.maxRdAtomic = attributes.maxRdAtomic;
  if ((mask & kQpMaxDestRdAtomic) != 0) attributes_.maxDestRdAtomic = attributes.maxDestRdAtomic;
  if ((mask & kQpMinRnrTimer) != 0) {
    attributes_.minRnrTimer = attributes.minRnrTimer;
    slot_->minRnrTimer.store(static_cast<uint32_t>(attributes.minRnrTimer), std::memory_order_relaxed);
  }
  if ((mask & kQpQkey) != 0) {
    attributes_.qkey = attributes.qkey;
    slot_->qkey.store(attributes.qkey, std::memory_order_release);
  }
}

void ShmQueuePair::toInit(const QpAttributes& attributes) {
  const std::lock_guard<SpinLock> posting(postLock_);
  applyCommon(attributes);
  state_.store(static_cast<int>(QpState::Init), std::memory_order_release);
}

void ShmQueuePair::toReadyToReceive(const QpAttributes& attributes) {
  uint64_t peerId = 0;
  if (type_ != QpType::Ud) {
    parseGid(attributes.av.dgid, &peerId);
    // Whose process to look at, should it be stopped or killed in the middle of an operation. It may not be there yet.
    const std::lock_guard<std::mutex> guard(context_.revoker().mutex());
    responder_.peer = context_.peer(peerId);
  }
  const std::lock_guard<SpinLock> posting(postLock_);
  applyCommon(attributes);
  slot_->peerHca.store(peerId, std::memory_order_release);
  slot_->peerNumber.store(type_ == QpType::Ud ? 0 : attributes.destQpNum, std::memory_order_release);
  slot_->expectedPsn.store(attributes.rqPsn, std::memory_order_release);
  state_.store(static_cast<int>(QpState::Rtr), std::memory_order_release);
  // Nobody takes a word that is not open, so it can simply be written.
  const uint64_t w = word::withNextConnection(slot_->word.load(std::memory_order_seq_cst));
  slot_->word.store((w & (word::kOperationMask | word::kReceivedMask)) | word::kOpen | rights(),
                    std::memory_order_seq_cst);
}

void ShmQueuePair::toReadyToSend(const QpAttributes& attributes) {
  {
    const std::lock_guard<SpinLock> posting(postLock_);
    applyCommon(attributes);
    if ((attributes.mask & kQpSqPsn) != 0) {
      attributes_.sqPsn = attributes.sqPsn;
      nextPsn_ = attributes.sqPsn;
    }
    // A requester may have put the word into error meanwhile; that is noticed with the next use.
    const QpState state = static_cast<QpState>(state_.load(std::memory_order_acquire));
    if ((attributes.mask & kQpState) != 0 && isResponding(state)) {
      state_.store(static_cast<int>(QpState::Rts), std::memory_order_release);
      if (!waiting_.empty()) wantAttention();  // what was held back in SQD
    }
  }
  if ((attributes.mask & kQpAccessFlags) != 0) changeRights();
}

// Requests that wait and have not begun stay where they are until RTS, and so do those that are posted from now on.
void ShmQueuePair::toDrained(const QpAttributes& attributes) {
  {
    const std::lock_guard<SpinLock> posting(postLock_);
    applyCommon(attributes);
    const QpState state = static_cast<QpState>(state_.load(std::memory_order_acquire));
    if (isResponding(state)) state_.store(static_cast<int>(QpState::Sqd), std::memory_order_release);
  }
  if ((attributes.mask & (kQpAccessFlags | kQpMaxDestRdAtomic)) != 0) changeRights();
}

// Grants and revokes. When it returns, no operation that the rights do not allow can store any more.
void ShmQueuePair::changeRights() {
  const uint64_t granted = rights();
  uint64_t w = slot_->word.load(std::memory_order_seq_cst);
  while ((w & word::kOpen) != 0 &&
         !slot_->word.compare_exchange_weak(w, (w & ~word::kRights) | granted, std::memory_order_seq_cst)) {
  }
  // Whether or not this call dropped them: an earlier one may have failed to prove it.
  drainResponder([granted](const Responder&, uint64_t operation) {
    switch (word::kind(operation)) {
      case OperationKind::Read:
        return (granted & word::kRead) == 0;
      case OperationKind::Write:
        return (granted & word::kWrite) == 0;
      case OperationKind::Atomic:
        return (granted & word::kAtomic) == 0;
      default:
        return false;  // a SEND needs no right but the posted receive
    }
  });
}

void ShmQueuePair::toError() {
  closeWord(*slot_);
  drainResponder([](const Responder&, uint64_t) { return true; });
  {
    const std::lock_guard<SpinLock> posting(postLock_);
    enterError();
  }
  announce();
}

// ---------------------------------------------------------------------------------------------------------------
// Receive side

size_t ShmQueuePair::postReceive(const ReceiveWorkRequest* requests, size_t count, int* errnum) {
  if (context_.forked()) [[unlikely]]
    context_.requireOpen(kind());
  const std::lock_guard<SpinLock> guard(receiveLock_);
  if (closed()) throw VerbsError("QUORATE_CLOSED", "This QueuePair was closed");
  const QpState state = static_cast<QpState>(state_.load(std::memory_order_acquire));
  *errnum = 0;
  size_t posted = 0;
  for (; posted < count; posted++) {
    const uint32_t sges = requests[posted].sgeCount;
    if (srq_ != nullptr || state == QpState::Reset || requests[posted].length > kMaxMessageBytes || sges == 1 ||
        sges > capabilities_.maxRecvSge) {
      *errnum = EINVAL;
      break;
    }
    if (receivesPosted_ - receivesTaken_ >= place_.receiveCapacity) {
      *errnum = ENOMEM;
      break;
    }
    const uint32_t at = receivesPosted_ & (place_.receiveCapacity - 1);
    if (sges > 0 && !publishScatter(*context_.control(), place_.scatterBase, capabilities_.maxRecvSge, at,
                                    requests[posted])) [[unlikely]] {
      *errnum = EINVAL;
      break;
    }
    ReceiveWorkRequest& request = receives_[at] = requests[posted];
    request.sges = nullptr;
    ReceiveEntry& entry = context_.control()->receives[place_.receiveBase + at];
    entry.address.store(request.localAddress, std::memory_order_relaxed);
    entry.length.store(request.length, std::memory_order_relaxed);
    entry.lkey.store(request.lkey, std::memory_order_relaxed);
    entry.info.store(sges, std::memory_order_relaxed);
    receivesPosted_++;
    slot_->postedReceives.store(receivesPosted_, std::memory_order_release);
  }
  // In ERR they are flushed by the next poll, which must not overlook them.
  if (posted > 0 && (slot_->word.load(std::memory_order_seq_cst) & word::kError) != 0) receiveCq_->ring(true);
  return posted;
}

int ShmQueuePair::takeReceives(WorkCompletion* completions, int max, size_t* left) {
  const std::lock_guard<SpinLock> guard(receiveLock_);
  uint64_t w = slot_->word.load(std::memory_order_seq_cst);
  const uint32_t outstanding = srq_ != nullptr ? srq_->maxWr() : receivesPosted_ - receivesTaken_;
  if (outstanding == 0) return 0;
  uint32_t done = flushing_ ? 0 : static_cast<uint16_t>(word::received(w) - static_cast<uint16_t>(receivesTaken_));
  if (done > outstanding) {
    // More completed than was posted: the peer broke the rules. Nothing it says about this queue pair counts any more.
    closeWord(*slot_);
    w = slot_->word.load(std::memory_order_seq_cst);
    flushing_ = true;
    done = 0;
  }
  int taken = 0;
  for (; done > 0 && taken < max; done--) {
    const uint32_t at = receivesTaken_ & (place_.receiveCapacity - 1);
    const ReceiveEntry& entry = context_.control()->receives[place_.receiveBase + at];
    // All of it before a shared receive is free: the next message may use that, and then this place in the ring, too.
    const uint32_t info = entry.info.load(std::memory_order_relaxed);
    const uint32_t byteLen = entry.byteLen.load(std::memory_order_relaxed);
    const uint32_t srcQp = entry.srcQp.load(std::memory_order_relaxed);
    const uint32_t immData = entry.immData.load(std::memory_order_relaxed);
    const uint64_t stamp =
        uint64_t{entry.lkey.load(std::memory_order_relaxed)} << 32 | entry.length.load(std::memory_order_relaxed);
    ReceiveWorkRequest shared;
    if (srq_ != nullptr) {
      const uint64_t index = entry.address.load(std::memory_order_relaxed);
      if (index >= srq_->maxWr() || !srq_->complete(static_cast<uint32_t>(index), place_.index, &shared)) {
        closeWord(*slot_);  // the same breach as above
        w = slot_->word.load(std::memory_order_seq_cst);
        flushing_ = true;
        done = 0;
        break;
      }
    }
    const ReceiveWorkRequest& posted = srq_ != nullptr ? shared : receives_[at];
    WorkCompletion& completion = completions[taken++];
    completion = WorkCompletion();
    completion.wrId = posted.wrId;
    completion.qpNum = place_.number;
    completion.status = static_cast<int>(info & kReceiveStatusMask);
    completion.opcode = static_cast<int>((info & kReceiveOfWrite) != 0 ? WcOpcode::RecvRdmaWithImm : WcOpcode::Recv);
    // The length is the peer's word for it: whoever uses it to read the buffer must not be led beyond it.
    completion.byteLen = std::min(byteLen, (info & kReceiveOfWrite) != 0 ? kMaxMessageBytes : posted.length);
    if ((info & kReceiveWithGrh) != 0) {
      completion.wcFlags = kWcGrh;
      completion.srcQpNum = srcQp;
    }
    if ((info & kReceiveWithImm) != 0) {
      completion.wcFlags |= kWcWithImm;
      completion.immData = immData;
    } else if ((info & kReceiveWithInv) != 0) {
      completion.wcFlags |= kWcWithInv;
      completion.immData = immData;
    }
    if (receiveCq_->timestamps() != Timestamps::None) [[unlikely]] {
      completion.timestamp = completion.status == 0 ? stamp : timestampNow(receiveCq_->timestamps());
    }
    receivesTaken_++;
  }
  if (done == 0 && (w & word::kError) != 0) {
    // Flushed only when nothing can be stored any more: a flush completion proves that.
    if (word::busy(w)) {
      needsDrain_.store(true);
      wantAttention();
    } else if (!responder_.revoking.load(std::memory_order_seq_cst)) {
      flushing_ = true;
      if (srq_ != nullptr) {
        taken += flushShared(completions + taken, max - taken);
        if (taken == max) announce();  // there may be more: look again
        return taken;
      }
      for (; receivesTaken_ != receivesPosted_ && taken < max; receivesTaken_++) {
        WorkCompletion& completion = completions[taken++];
        completion = WorkCompletion();
        completion.wrId = receives_[receivesTaken_ & (place_.receiveCapacity - 1)].wrId;
        completion.qpNum = place_.number;
        completion.status = static_cast<int>(WcStatus::WrFlushErr);
        completion.opcode = static_cast<int>(WcOpcode::Recv);
      }
      done = receivesPosted_ - receivesTaken_;
    }
  }
  *left += done;
  return taken;
}

// What was claimed for this queue pair and will never be filled. The rest of the shared queue is for the others.
int ShmQueuePair::flushShared(WorkCompletion* completions, int max) {
  int taken = 0;
  srq_->reclaim(place_.index, static_cast<size_t>(max), [&](const ReceiveWorkRequest& posted) {
    WorkCompletion& completion = completions[taken++];
    completion = WorkCompletion();
    completion.wrId = posted.wrId;
    completion.qpNum = place_.number;
    completion.status = static_cast<int>(WcStatus::WrFlushErr);
    completion.opcode = static_cast<int>(WcOpcode::Recv);
  });
  if (taken < max && !lastReceiveTold_) {
    lastReceiveTold_ = true;
    context_.asyncEvents().post(AsyncEventType::QpLastWqeReached, weak_from_this());
  }
  return taken;
}

// ---------------------------------------------------------------------------------------------------------------
// Attention

void ShmQueuePair::wantAttention() {
  needsAttention_.store(true, std::memory_order_seq_cst);
  context_.requestAttention();
}

bool ShmQueuePair::attend(bool mayDrain) {
  if (!needsAttention_.load(std::memory_order_acquire)) return false;
  if (needsDrain_.load(std::memory_order_acquire)) {
    if (!mayDrain) return true;
    try {
      drainResponder([](const Responder&, uint64_t) { return true; });
      needsDrain_.store(false);
      announce();
    } catch (const VerbsError&) {
      return true;  // no room to move the memory just now: the receives stay unflushed, and it is tried again
    }
  }
  // The revoker's mutex comes before a post lock.
  std::vector<ShmMemoryWindow::Held> old;
  std::vector<WaitingRequest> dropped;
  std::unique_lock<std::mutex> revoking;
  if (needsRevoker_.load(std::memory_order_acquire)) {
    if (!mayDrain) return true;
    revoking = std::unique_lock<std::mutex>(context_.revoker().mutex());
  }
  if (!postLock_.try_lock()) return true;
  needsAttention_.store(false, std::memory_order_seq_cst);
  retryWaiting(revoking.owns_lock(), &old);
  // What SQD holds back waits for modify(), not for attention.
  const bool held = static_cast<QpState>(state_.load(std::memory_order_relaxed)) == QpState::Sqd && !waiting_.empty() &&
                    !waiting_.front().begun();
  const bool waits = (!waiting_.empty() && !held) || needsDrain_.load();
  dropped.swap(dropped_);
  if (waits) needsAttention_.store(true, std::memory_order_seq_cst);
  postLock_.unlock();
  return waits;
}

}  // namespace quorate::shm

// See queue_pair.h.
#include "provider/ibverbs/queue_pair.h"

#include <endian.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "provider/ibverbs/address_handle.h"
#include "provider/ibverbs/elements.h"
#include "provider/ibverbs/errors.h"
#include "verbs/qp_state_table.h"

namespace quorate::ibverbs {
namespace {

constexpr size_t kPostChunk = 16;  // requests handed to the device in one ibv_post_send
constexpr uint32_t kMaxQpNum = 0xffffff;
constexpr uint32_t kKnownSendFlags = kSendFence | kSendSignaled | kSendSolicited | kSendInline;

// The numbers of verbs.h are the device's own, so values are passed through.
template <typename Ours, typename Theirs>
constexpr bool same(Ours ours, Theirs theirs) {
  return static_cast<uint64_t>(ours) == static_cast<uint64_t>(theirs);
}
static_assert(same(WrOpcode::RdmaWrite, IBV_WR_RDMA_WRITE) &&
              same(WrOpcode::RdmaWriteWithImm, IBV_WR_RDMA_WRITE_WITH_IMM) && same(WrOpcode::Send, IBV_WR_SEND) &&
              same(WrOpcode::SendWithImm, IBV_WR_SEND_WITH_IMM) && same(WrOpcode::RdmaRead, IBV_WR_RDMA_READ) &&
              same(WrOpcode::CompareSwap, IBV_WR_ATOMIC_CMP_AND_SWP) &&
              same(WrOpcode::FetchAdd, IBV_WR_ATOMIC_FETCH_AND_ADD) && same(WrOpcode::LocalInv, IBV_WR_LOCAL_INV) &&
              same(WrOpcode::BindMw, IBV_WR_BIND_MW) && same(WrOpcode::SendWithInv, IBV_WR_SEND_WITH_INV));
static_assert(same(kSendFence, IBV_SEND_FENCE) && same(kSendSignaled, IBV_SEND_SIGNALED) &&
              same(kSendSolicited, IBV_SEND_SOLICITED) && same(kSendInline, IBV_SEND_INLINE));
static_assert(same(kQpState, IBV_QP_STATE) && same(kQpCurState, IBV_QP_CUR_STATE) &&
              same(kQpAccessFlags, IBV_QP_ACCESS_FLAGS) && same(kQpPkeyIndex, IBV_QP_PKEY_INDEX) &&
              same(kQpPort, IBV_QP_PORT) && same(kQpQkey, IBV_QP_QKEY) && same(kQpAv, IBV_QP_AV) &&
              same(kQpPathMtu, IBV_QP_PATH_MTU) && same(kQpTimeout, IBV_QP_TIMEOUT) &&
              same(kQpRetryCnt, IBV_QP_RETRY_CNT) && same(kQpRnrRetry, IBV_QP_RNR_RETRY) &&
              same(kQpRqPsn, IBV_QP_RQ_PSN) && same(kQpMaxQpRdAtomic, IBV_QP_MAX_QP_RD_ATOMIC) &&
              same(kQpMinRnrTimer, IBV_QP_MIN_RNR_TIMER) && same(kQpSqPsn, IBV_QP_SQ_PSN) &&
              same(kQpMaxDestRdAtomic, IBV_QP_MAX_DEST_RD_ATOMIC) && same(kQpDestQpn, IBV_QP_DEST_QPN));
static_assert(same(QpState::Rts, IBV_QPS_RTS) && same(QpState::Err, IBV_QPS_ERR) && same(QpType::Rc, IBV_QPT_RC) &&
              same(QpType::Ud, IBV_QPT_UD));
static_assert(same(WcStatus::RemAccessErr, IBV_WC_REM_ACCESS_ERR) && same(WcOpcode::Recv, IBV_WC_RECV) &&
              same(WcOpcode::FetchAdd, IBV_WC_FETCH_ADD) && same(kWcWithImm, IBV_WC_WITH_IMM) &&
              same(kWcGrh, IBV_WC_GRH) && same(kWcWithInv, IBV_WC_WITH_INV) && same(WcOpcode::BindMw, IBV_WC_BIND_MW) &&
              same(WcOpcode::LocalInv, IBV_WC_LOCAL_INV));

constexpr uint32_t kAllAttributes = kQpState | kQpCurState | kQpAccessFlags | kQpPkeyIndex | kQpPort | kQpAv |
                                    kQpPathMtu | kQpTimeout | kQpRetryCnt | kQpRnrRetry | kQpRqPsn | kQpMaxQpRdAtomic |
                                    kQpMinRnrTimer | kQpSqPsn | kQpMaxDestRdAtomic | kQpDestQpn;

ibv_mtu toIbvMtu(int bytes) {
  switch (bytes) {
    case 256:
      return IBV_MTU_256;
    case 512:
      return IBV_MTU_512;
    case 1024:
      return IBV_MTU_1024;
    case 2048:
      return IBV_MTU_2048;
    default:
      return IBV_MTU_4096;
  }
}

int toMtuBytes(ibv_mtu mtu) {
  return mtu >= IBV_MTU_256 && mtu <= IBV_MTU_4096 ? 128 << static_cast<int>(mtu) : 0;
}

std::shared_ptr<IbvCompletionQueue> ownCompletionQueue(const std::shared_ptr<CompletionQueue>& queue,
                                                       const IbvContext& context, const char* name) {
  auto own = std::dynamic_pointer_cast<IbvCompletionQueue>(queue);
  if (own == nullptr || own->context().get() != &context) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     std::string(name) + " of a QueuePair is " +
                         (queue == nullptr ? "missing" : "a CompletionQueue of another Context") +
                         "; give one made by the Context of the ProtectionDomain.");
  }
  return own;
}

void checkCapabilities(const IbvContext& context, const QpCapabilities& cap) {
  const DeviceAttributes& limits = context.limits();
  const auto within = [&](const char* name, uint32_t value, uint32_t least, int most) {
    if (value >= least && value <= static_cast<uint32_t>(std::max(most, 0))) return;
    throw VerbsError("QUORATE_OUT_OF_RANGE", std::string(name) + " of a QueuePair is " + std::to_string(value) +
                                                 ", must be " + std::to_string(least) + " to " + std::to_string(most) +
                                                 " on " + context.device().name + ".");
  };
  within("maxSendWr", cap.maxSendWr, 0, limits.maxQpWr);
  within("maxRecvWr", cap.maxRecvWr, 0, limits.maxQpWr);
  within("maxSendSge", cap.maxSendSge, 1, limits.maxSge);
  within("maxRecvSge", cap.maxRecvSge, 1, limits.maxSge);
}

}  // namespace

IbvQueuePair::IbvQueuePair(std::shared_ptr<IbvProtectionDomain> domain, std::shared_ptr<IbvCompletionQueue> sendCq,
                           std::shared_ptr<IbvCompletionQueue> receiveCq, std::shared_ptr<IbvSharedReceiveQueue> srq,
                           QpType type, bool signalAll)
    : domain_(std::move(domain)),
      sendCq_(std::move(sendCq)),
      receiveCq_(std::move(receiveCq)),
      srq_(std::move(srq)),
      type_(type),
      signalAll_(signalAll) {}

std::shared_ptr<IbvQueuePair> IbvQueuePair::create(std::shared_ptr<IbvProtectionDomain> domain, const QpInit& init) {
  const IbvContext& context = *domain->context();
  if (init.type != QpType::Rc && init.type != QpType::Uc && init.type != QpType::Ud) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT", "A QueuePair of type " + std::to_string(static_cast<int>(init.type)) +
                                                     " is not known; use RC, UC or UD.");
  }
  auto sendCq = ownCompletionQueue(init.sendCq, context, "sendCq");
  auto receiveCq = ownCompletionQueue(init.recvCq, context, "recvCq");
  checkCapabilities(context, init.cap);
  // Neither queue may close until the device knows that the queue pair uses it. One lock if they are one queue: a
  // shared lock must not be taken twice by a thread.
  const auto sendCqLock = sendCq->lifecycle().useAsParent();
  std::shared_lock<std::shared_mutex> receiveCqLock;
  if (receiveCq != sendCq) receiveCqLock = receiveCq->lifecycle().useAsParent();

  std::shared_ptr<IbvSharedReceiveQueue> srq;
  std::shared_lock<std::shared_mutex> srqLock;
  if (init.srq != nullptr) {
    srq = std::dynamic_pointer_cast<IbvSharedReceiveQueue>(init.srq);
    if (srq == nullptr || srq->domain()->context() != domain->context()) {
      throw VerbsError("QUORATE_INVALID_ARGUMENT",
                       "srq of a QueuePair is a SharedReceiveQueue of another Context; give one of this Context.");
    }
    srqLock = srq->lifecycle().useAsParent();
  }

  std::shared_ptr<IbvQueuePair> queuePair(new IbvQueuePair(domain, sendCq, receiveCq, srq, init.type, init.signalAll));
  ibv_qp_init_attr raw{};
  raw.qp_context = queuePair.get();  // asynchronous events carry it
  raw.srq = srq != nullptr ? srq->handle() : nullptr;
  raw.send_cq = sendCq->handle();
  raw.recv_cq = receiveCq->handle();
  raw.qp_type = static_cast<ibv_qp_type>(init.type);
  raw.sq_sig_all = init.signalAll ? 1 : 0;
  raw.cap.max_send_wr = init.cap.maxSendWr;
  raw.cap.max_recv_wr = srq != nullptr ? 0 : init.cap.maxRecvWr;
  raw.cap.max_send_sge = init.cap.maxSendSge;
  raw.cap.max_recv_sge = init.cap.maxRecvSge;
  raw.cap.max_inline_data = init.cap.maxInlineData;
  errno = 0;
  ibv_qp* handle = context.lib().createQp(domain->handle(), &raw);
  if (handle == nullptr) {
    const int errnum = errno;
    const std::string what = "Creating a queue pair of type " + qpTypeName(init.type) + " on " + context.device().name;
    if (errnum == EOPNOTSUPP || errnum == ENOSYS) {
      throw VerbsError("QUORATE_UNSUPPORTED",
                       what + " failed: the device does not have that type (" + errnoText(errnum) + "). Use RC.",
                       errnum, "ibv_create_qp");
    }
    throwPinningError("ibv_create_qp", errnum, what,
                      (uint64_t{init.cap.maxSendWr} + init.cap.maxRecvWr) * (64 + uint64_t{init.cap.maxInlineData}),
                      errnum == EINVAL ? "The usual cause is a capability beyond the device's: maxInlineData " +
                                             std::to_string(init.cap.maxInlineData) + ", maxSendWr " +
                                             std::to_string(init.cap.maxSendWr) + ", maxRecvWr " +
                                             std::to_string(init.cap.maxRecvWr) + "; ask for less."
                                       : "The device allows " + std::to_string(context.limits().maxQp) + " of them.");
  }
  queuePair->handle_ = handle;
  queuePair->number_ = handle->qp_num;
  queuePair->capabilities_ = {raw.cap.max_send_wr, raw.cap.max_recv_wr, raw.cap.max_send_sge, raw.cap.max_recv_sge,
                              raw.cap.max_inline_data};
  auto sendQueue = std::make_shared<WorkQueue>(false, raw.cap.max_send_wr);
  auto receiveQueue = std::make_shared<WorkQueue>(true, raw.cap.max_recv_wr, init.type == QpType::Ud);
  // If attaching fails, the destructor destroys the queue pair and detaches what was attached.
  sendCq->attach(sendQueue);
  queuePair->sendQueue_ = std::move(sendQueue);
  receiveCq->attach(receiveQueue);
  queuePair->receiveQueue_ = std::move(receiveQueue);
  if (srq != nullptr) {
    receiveCq->attachShared(srq->queue(), init.type == QpType::Ud);
    queuePair->sharedAttached_ = true;
    srq->lifecycle().addChild(queuePair);
  }
  sendCq->lifecycle().addChild(queuePair);
  if (receiveCq != sendCq) receiveCq->lifecycle().addChild(queuePair);
  return queuePair;
}

IbvQueuePair::~IbvQueuePair() {
  closeInDestructor(this, {domain_, sendCq_, receiveCq_});
  if (!closed() && handle_ != nullptr) handle_->qp_context = nullptr;  // it lives on, and events carry this
}

void IbvQueuePair::close() {
  lifecycle_.close([this] {
    if (handle_ == nullptr) return;  // create() failed
    detachAllMulticast();
    {
      std::lock_guard<AdaptiveMutex> sending(sendMutex_);
      closeWindows();
      std::lock_guard<AdaptiveMutex> receiving(receiveMutex_);
      takeInCompletions();
      const int errnum = domain_->context()->lib().destroyQp(handle_);
      if (errnum != 0) {
        throw VerbsError("QUORATE_REVOKE_FAILED",
                         "Destroying queue pair " + std::to_string(number_) + " of " +
                             domain_->context()->device().name + " failed: " + errnoText(errnum) +
                             ". Its peer can still do what the queue pair allows. Detach it from multicast groups and "
                             "try again; if that fails, deregister the memory it reaches or end the process.",
                         errnum, "ibv_destroy_qp");
      }
      sendUsable_ = false;
      receiveUsable_ = false;
    }
    if (sendQueue_ != nullptr) sendCq_->detach(sendQueue_);
    if (receiveQueue_ != nullptr) receiveCq_->detach(receiveQueue_);
    if (sharedAttached_) receiveCq_->detachShared(srq_->queue());
  });
}

// The libraries of some devices (mlx5) take a queue pair's completions out of the queues when it is destroyed or reset:
// that those requests have ended would never be told, and the shared receives among them would never be free again.
void IbvQueuePair::takeInCompletions() {
  sendCq_->takeIn();
  if (receiveCq_ != sendCq_) receiveCq_->takeIn();
}

// ---------------------------------------------------------------------------------------------------------------
// Multicast

void IbvQueuePair::attachMulticast(const Gid& group, uint16_t lid) {
  const auto lock = lifecycle_.use();
  std::lock_guard<std::mutex> guard(multicastMutex_);
  const std::pair<Gid, uint16_t> entry(group, lid);
  const std::string what = "Attaching queue pair " + std::to_string(number_) + " of " +
                           domain_->context()->device().name + " to multicast group " + group.toString();
  if (type_ != QpType::Ud) throw VerbsError("QUORATE_INVALID_ARGUMENT", what + " failed: only UD queue pairs can be.");
  if (std::find(multicastGroups_.begin(), multicastGroups_.end(), entry) != multicastGroups_.end()) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT", what + " failed: it is attached already.");
  }
  ibv_gid raw;
  std::memcpy(raw.raw, group.raw, sizeof(raw.raw));
  const int errnum = std::abs(domain_->context()->lib().attachMcast(handle_, &raw, lid));
  if (errnum != 0) {
    throwSystemError("ibv_attach_mcast", errnum, what,
                     errnum == EINVAL ? "A group is ff..., or ::ffff:224.0.0.0 to ::ffff:239.255.255.255 on RoCE v2 "
                                        "over IPv4; the queue pair must have left RESET."
                                      : "");
  }
  multicastGroups_.push_back(entry);
}

void IbvQueuePair::detachMulticast(const Gid& group, uint16_t lid) {
  const auto lock = lifecycle_.use();
  std::lock_guard<std::mutex> guard(multicastMutex_);
  const auto found = std::find(multicastGroups_.begin(), multicastGroups_.end(), std::pair<Gid, uint16_t>(group, lid));
  if (found == multicastGroups_.end()) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT", "Queue pair " + std::to_string(number_) +
                                                     " is not attached to multicast group " + group.toString() + ".");
  }
  ibv_gid raw;
  std::memcpy(raw.raw, group.raw, sizeof(raw.raw));
  const int errnum = std::abs(domain_->context()->lib().detachMcast(handle_, &raw, lid));
  if (errnum != 0) {
    throwSystemError("ibv_detach_mcast", errnum,
                     "Detaching queue pair " + std::to_string(number_) + " from multicast group " + group.toString(),
                     "");
  }
  multicastGroups_.erase(found);
}

// What cannot be detached makes the device refuse to destroy the queue pair, which says so.
void IbvQueuePair::detachAllMulticast() {
  std::lock_guard<std::mutex> guard(multicastMutex_);
  std::erase_if(multicastGroups_, [this](const std::pair<Gid, uint16_t>& entry) {
    ibv_gid raw;
    std::memcpy(raw.raw, entry.first.raw, sizeof(raw.raw));
    return domain_->context()->lib().detachMcast(handle_, &raw, entry.second) == 0;
  });
}

// ---------------------------------------------------------------------------------------------------------------
// Memory windows

// A queue pair with windows of type 2 bound through it cannot be destroyed (rxe waits for them in vain). With
// sendMutex_ held until it is: another thread could bind one meanwhile. Who waits for that mutex holds off no window's
// end.
void IbvQueuePair::closeWindows() {
  // One that the device refuses to free ends this: it, and those behind it, stay known, and are the next attempt's.
  for (const auto& entry : windows_) {
    const std::shared_ptr<IbvMemoryWindow> window = entry.lock();
    if (window != nullptr && window->boundThrough(number_)) window->close();
  }
  forgetWindows();
}

// With sendMutex_ held: those that are gone, or are bound through another queue pair by now.
void IbvQueuePair::forgetWindows() {
  std::erase_if(windows_, [this](const std::weak_ptr<IbvMemoryWindow>& entry) {
    const std::shared_ptr<IbvMemoryWindow> one = entry.lock();
    return one == nullptr || one->closed() || !one->boundThrough(number_);
  });
}

// With sendMutex_ held.
int IbvQueuePair::postBinding(IbvMemoryWindow& window, const MwBind& bind, uint32_t* rkey, uint64_t wrId,
                              uint32_t sendFlags) {
  if (sendStartFailed_) return EIO;
  if (window.domain()->context() != domain_->context() || (sendFlags & ~kKnownSendFlags) != 0) return EINVAL;
  if (bind.region != nullptr && std::dynamic_pointer_cast<IbvMemoryRegion>(bind.region) == nullptr) return EINVAL;
  if (sendQueue_->freeEntries() == 0 || sendCq_->takeCredits(1) == 0) return ENOMEM;
  const uint32_t position = sendQueue_->nextPosition();
  const uint64_t cookie = sendQueue_->prepare(position, wrId);
  const auto flags = sendFlags | (signalAll_ ? static_cast<uint32_t>(IBV_SEND_SIGNALED) : 0u);
  int result = EBADF;
  try {
    ibv_mw_bind_info info;
    IbvMemoryWindow::Posting posting(window, bind, &info);
    if (info.mr == nullptr) {
      sendCq_->returnCredits(1);
      return EINVAL;
    }
    sendQueue_->publish(position + 1);
    if (window.type() == 1) {
      ibv_mw_bind request{};
      request.wr_id = cookie;
      request.send_flags = flags;
      request.bind_info = info;
      result = std::abs(ibv_bind_mw(handle_, posting.handle(), &request));
      if (result == 0) posting.accepted(*rkey = posting.handle()->rkey, number_);
    } else {
      ibv_send_wr request{};
      request.wr_id = cookie;
      request.opcode = IBV_WR_BIND_MW;
      request.send_flags = flags;
      request.bind_mw.mw = posting.handle();
      request.bind_mw.rkey = *rkey;
      request.bind_mw.bind_info = info;
      ibv_send_wr* bad = nullptr;
      result = std::abs(ibv_post_send(handle_, &request, &bad));
      if (result == 0) posting.accepted(*rkey, number_);
    }
  } catch (const VerbsError&) {
    // closed: EBADF
  }
  if (result != 0) {
    sendQueue_->publish(position);
    sendCq_->returnCredits(1);
    return result;
  }
  if (window.type() == 2) {
    forgetWindows();
    const auto known = std::find_if(windows_.begin(), windows_.end(),
                                    [&window](const auto& entry) { return entry.lock().get() == &window; });
    if (known == windows_.end()) {
      windows_.push_back(std::static_pointer_cast<IbvMemoryWindow>(window.shared_from_this()));
    }
  }
  return 0;
}

int IbvQueuePair::bindMemoryWindow(MemoryWindow& window, const MwBind& bind, uint64_t wrId, uint32_t sendFlags,
                                   uint32_t* rkey) {
  auto* own = dynamic_cast<IbvMemoryWindow*>(&window);
  if (own == nullptr || own->type() != 1 || type_ == QpType::Ud || (sendFlags & kSendInline) != 0) return EINVAL;
  std::lock_guard<AdaptiveMutex> lock(sendMutex_);
  if (!sendUsable_) throwClosed(kind());
  const QpState state = state_.load(std::memory_order_acquire);
  if (state != QpState::Rts && state != QpState::Sqd && state != QpState::Sqe && state != QpState::Err) return EINVAL;
  return postBinding(*own, bind, rkey, wrId, sendFlags);
}

// ---------------------------------------------------------------------------------------------------------------
// Modify and query

ibv_qp_attr IbvQueuePair::toDevice(const QpAttributes& a) const {
  ibv_qp_attr raw;
  std::memset(&raw, 0, sizeof(raw));
  raw.qp_state = static_cast<ibv_qp_state>(a.state);
  raw.cur_qp_state = static_cast<ibv_qp_state>(a.curState);
  raw.qp_access_flags = a.accessFlags;
  raw.pkey_index = static_cast<uint16_t>(a.pkeyIndex);
  raw.port_num = static_cast<uint8_t>(a.portNum);
  raw.qkey = a.qkey;
  raw.path_mtu = toIbvMtu(a.pathMtuBytes);
  raw.timeout = static_cast<uint8_t>(a.timeout);
  raw.retry_cnt = static_cast<uint8_t>(a.retryCnt);
  raw.rnr_retry = static_cast<uint8_t>(a.rnrRetry);
  raw.rq_psn = a.rqPsn;
  raw.sq_psn = a.sqPsn;
  raw.max_rd_atomic = static_cast<uint8_t>(a.maxRdAtomic);
  raw.max_dest_rd_atomic = static_cast<uint8_t>(a.maxDestRdAtomic);
  raw.min_rnr_timer = static_cast<uint8_t>(a.minRnrTimer);
  raw.dest_qp_num = a.destQpNum;
  raw.ah_attr = ibverbs::toDevice(a.av);
  return raw;
}

void IbvQueuePair::refuse(const std::string& explanation, int errnum) const {
  throw VerbsError("QUORATE_QP_STATE",
                   "Modifying queue pair " + std::to_string(number_) + " of " + domain_->context()->device().name +
                       " was refused: " + explanation + ".",
                   errnum, "ibv_modify_qp");
}

// What the table cannot know: the limits of this device. Empty if all is within them.
std::string IbvQueuePair::beyondDeviceLimits(const QpAttributes& a) const {
  const DeviceAttributes& limits = domain_->context()->limits();
  std::string problems;
  const auto atMost = [&](uint32_t bit, const char* name, int value, int most) {
    if ((a.mask & bit) == 0 || value <= most) return;
    problems += (problems.empty() ? "" : "; ") + std::string(name) + " is " + std::to_string(value) +
                ", the device allows at most " + std::to_string(most);
  };
  atMost(kQpPort, "portNum", a.portNum, limits.physPortCnt);
  atMost(kQpAv, "av.portNum", a.av.portNum, limits.physPortCnt);
  atMost(kQpMaxQpRdAtomic, "maxRdAtomic", a.maxRdAtomic, limits.maxQpInitRdAtom);
  atMost(kQpMaxDestRdAtomic, "maxDestRdAtomic", a.maxDestRdAtomic, limits.maxQpRdAtom);
  return problems;
}

void IbvQueuePair::explainRefusal(const QpAttributes& attributes, int errnum) {
  const IbvContext& context = *domain_->context();
  const QpState from = queryDevice().state;
  if (from != state_.load(std::memory_order_relaxed)) {
    if (const auto explanation = explainQpTransition(type_, from, attributes)) {
      refuse(*explanation + " (an error moved it to " + qpStateName(from) + " since it was last modified)", errnum);
    }
  }
  const std::string transition =
      "queue pair " + std::to_string(number_) + " of " + context.device().name + " from " + qpStateName(from) +
      ((attributes.mask & kQpState) != 0 ? " to " + qpStateName(attributes.state) : std::string(" in place")) +
      " with " + qpAttributeNames(attributes.mask);
  const bool noSuchGid = (attributes.mask & kQpAv) != 0 && (errnum == ENODATA || errnum == ENOENT);
  if (errnum != EINVAL && !noSuchGid) {
    throwSystemError("ibv_modify_qp", errnum, "Modifying " + transition,
                     errnum == ETIMEDOUT || errnum == EHOSTUNREACH || errnum == ENETUNREACH
                         ? "The peer's GID " + attributes.av.dgid.toString() +
                               " could not be resolved to a link address: check that the peer is up and reachable "
                               "(ip neighbour, ping), and that the GID index fits its network."
                         : "");
  }
  std::string causes;
  if (from == QpState::Sqd) {
    causes =
        " While the send queue still drains only ERR and RESET are allowed: wait until outstanding requests complete.";
  } else if ((attributes.mask & kQpAv) != 0) {
    try {
      const int port = attributes.av.portNum;
      ibv_port_attr raw{};
      if (context.lib().queryPortAttributes(context.handle(), static_cast<uint8_t>(port), &raw) == 0) {
        if (raw.link_layer == IBV_LINK_LAYER_ETHERNET && !attributes.av.isGlobal) {
          causes += " An Ethernet port needs a global address vector (av.isGlobal with a GID).";
        }
        if (noSuchGid) {
          causes += " There is no GID at av.sgidIndex " + std::to_string(attributes.av.sgidIndex) + ".";
        } else if (attributes.av.isGlobal && attributes.av.sgidIndex >= raw.gid_tbl_len) {
          causes += " av.sgidIndex " + std::to_string(attributes.av.sgidIndex) + " is beyond the port's table of " +
                    std::to_string(raw.gid_tbl_len) + " GIDs.";
        }
        if ((attributes.mask & kQpPathMtu) != 0 && attributes.pathMtuBytes > toMtuBytes(raw.active_mtu)) {
          causes += " pathMtuBytes " + std::to_string(attributes.pathMtuBytes) + " exceeds the port's active MTU of " +
                    std::to_string(toMtuBytes(raw.active_mtu)) + ".";
        }
      }
    } catch (const VerbsError&) {
      // Only the hint is lost; the refusal itself is reported below.
    }
    if (causes.empty()) {
      causes =
          " The usual causes: no GID at av.sgidIndex, a destination GID without a route from it, or a path MTU above "
          "the port's.";
    }
  }
  throw VerbsError("QUORATE_QP_STATE",
                   "Modifying " + transition + " was refused by the device: " + errnoText(errnum) +
                       ". The attributes are those that the transition takes, so a value is at fault." + causes,
                   errnum, "ibv_modify_qp");
}

void IbvQueuePair::modify(const QpAttributes& attributes) {
  const auto lock = lifecycle_.use();
  std::lock_guard<std::mutex> modifying(modifyMutex_);
  if (explainQpTransition(type_, state_.load(std::memory_order_relaxed), attributes)) {
    // The device may have left that state on its own; judge by the state it is in.
    const QpState from = queryDevice().state;
    if (const auto explanation = explainQpTransition(type_, from, attributes)) refuse(*explanation, EINVAL);
  }
  const std::string beyond = beyondDeviceLimits(attributes);
  if (!beyond.empty()) refuse(beyond, EINVAL);
  ibv_qp_attr raw = toDevice(attributes);
  const bool toReset = (attributes.mask & kQpState) != 0 && attributes.state == QpState::Reset;
  int errnum;
  if (toReset) {
    // The device forgets what is outstanding, so nothing may be posted meanwhile.
    std::lock_guard<AdaptiveMutex> sending(sendMutex_);
    std::lock_guard<AdaptiveMutex> receiving(receiveMutex_);
    takeInCompletions();
    errnum = domain_->context()->lib().modifyQp(handle_, &raw, static_cast<int>(attributes.mask));
    if (errnum == 0) {
      state_.store(QpState::Reset, std::memory_order_release);
      sendCq_->abandon(sendQueue_);
      receiveCq_->abandon(receiveQueue_);
    }
  } else {
    errnum = domain_->context()->lib().modifyQp(handle_, &raw, static_cast<int>(attributes.mask));
    if (errnum == 0 && (attributes.mask & kQpState) != 0) {
      state_.store(attributes.state, std::memory_order_release);
    }
  }
  if (errnum != 0) explainRefusal(attributes, std::abs(errnum));
}

QpAttributes IbvQueuePair::queryDevice() {
  ibv_qp_attr raw;
  ibv_qp_init_attr init;
  std::memset(&raw, 0, sizeof(raw));
  std::memset(&init, 0, sizeof(init));
  const int mask = static_cast<int>(kAllAttributes | (type_ == QpType::Ud ? kQpQkey : 0u));
  const int errnum = domain_->context()->lib().queryQp(handle_, &raw, mask, &init);
  if (errnum != 0) {
    throwSystemError("ibv_query_qp", std::abs(errnum), "Querying queue pair " + std::to_string(number_), "");
  }
  QpAttributes a;
  a.mask = static_cast<uint32_t>(mask);
  a.state = static_cast<QpState>(raw.qp_state);
  a.curState = static_cast<QpState>(raw.cur_qp_state);
  a.accessFlags = raw.qp_access_flags;
  a.pkeyIndex = raw.pkey_index;
  a.portNum = raw.port_num;
  a.qkey = raw.qkey;
  a.pathMtuBytes = toMtuBytes(raw.path_mtu);
  a.timeout = raw.timeout;
  a.retryCnt = raw.retry_cnt;
  a.rnrRetry = raw.rnr_retry;
  a.rqPsn = raw.rq_psn;
  a.sqPsn = raw.sq_psn;
  a.maxRdAtomic = raw.max_rd_atomic;
  a.maxDestRdAtomic = raw.max_dest_rd_atomic;
  a.minRnrTimer = raw.min_rnr_timer;
  a.destQpNum = raw.dest_qp_num;
  a.av = fromDevice(raw.ah_attr);
  return a;
}

QpAttributes IbvQueuePair::query() {
  const auto lock = lifecycle_.use();
  return queryDevice();
}

// ---------------------------------------------------------------------------------------------------------------
// Posting

// 0, or the errno that refuses the request. Everything here either crashes or misleads some device's library.
int IbvQueuePair::checkSend(const SendWorkRequest& request) const {
  if ((request.sendFlags & ~kKnownSendFlags) != 0) return EINVAL;
  if (request.length > domain_->context()->maxMessageBytes()) return EINVAL;
  const bool isInline = (request.sendFlags & kSendInline) != 0;
  if (!soundElements(request, capabilities_.maxSendSge)) return EINVAL;
  if (type_ == QpType::Ud) {
    if (request.opcode != WrOpcode::Send && request.opcode != WrOpcode::SendWithImm) return EINVAL;
    if (request.addressHandle == nullptr || request.addressHandle->domain() != domain_.get()) return EINVAL;
    if (request.remoteQpNum > kMaxQpNum) return EINVAL;
  }
  switch (request.opcode) {
    case WrOpcode::RdmaWrite:
    case WrOpcode::RdmaWriteWithImm:
    case WrOpcode::Send:
    case WrOpcode::SendWithImm:
      return isInline && request.length > capabilities_.maxInlineData ? EINVAL : 0;
    case WrOpcode::SendWithInv:
      return type_ != QpType::Rc || (isInline && request.length > capabilities_.maxInlineData) ? EINVAL : 0;
    case WrOpcode::LocalInv:
      return isInline || request.length != 0 ? EINVAL : 0;
    case WrOpcode::BindMw: {
      const auto* window = dynamic_cast<const IbvMemoryWindow*>(request.memoryWindow);
      return isInline || request.length != 0 || window == nullptr || window->type() != 2 || request.bind == nullptr
                 ? EINVAL
                 : 0;
    }
    case WrOpcode::RdmaRead:
      return isInline || type_ != QpType::Rc ? EINVAL : 0;
    case WrOpcode::CompareSwap:
    case WrOpcode::FetchAdd:
      return isInline || type_ != QpType::Rc || request.length != sizeof(uint64_t) || request.sgeCount != 0 ||
                     request.remoteAddress % sizeof(uint64_t) != 0
                 ? EINVAL
                 : 0;
  }
  return EINVAL;
}

size_t IbvQueuePair::postSend(const SendWorkRequest* requests, size_t count, int* errnum) {
  *errnum = 0;
  std::lock_guard<AdaptiveMutex> lock(sendMutex_);
  if (!sendUsable_) throwClosed(kind());
  size_t accepted = 0;
  while (accepted < count) {
    if (sendStartFailed_) {
      *errnum = EIO;
      return accepted;
    }
    const QpState state = state_.load(std::memory_order_acquire);
    if (state != QpState::Rts && state != QpState::Sqd && state != QpState::Sqe && state != QpState::Err) {
      *errnum = EINVAL;
      return accepted;
    }
    if (requests[accepted].opcode == WrOpcode::BindMw) [[unlikely]] {
      const SendWorkRequest& request = requests[accepted];
      int refused = checkSend(request);
      if (refused == 0) {
        uint32_t rkey = request.bindRkey;
        refused = postBinding(*static_cast<IbvMemoryWindow*>(request.memoryWindow), *request.bind, &rkey, request.wrId,
                              request.sendFlags);
      }
      if (refused != 0) {
        *errnum = refused;
        return accepted;
      }
      accepted++;
      continue;
    }
    // Room in the send queue and in the completion queue, then a chain of requests that are all sound.
    uint32_t room = static_cast<uint32_t>(std::min<size_t>(count - accepted, kPostChunk));
    room = std::min(room, sendQueue_->freeEntries());
    room = sendCq_->takeCredits(room);
    if (room == 0) {
      *errnum = ENOMEM;
      return accepted;
    }
    ibv_send_wr chain[kPostChunk];
    ibv_sge buffers[kPostChunk];
    const uint32_t first = sendQueue_->nextPosition();
    uint32_t ready = 0;
    int refusal = 0;
    for (; ready < room; ready++) {
      const SendWorkRequest& request = requests[accepted + ready];
      if (request.opcode == WrOpcode::BindMw) [[unlikely]]
        break;  // goes alone
      refusal = checkSend(request);
      if (refusal == 0 && type_ == QpType::Ud && !request.addressHandle->enter()) refusal = EBADF;
      if (refusal != 0) break;
      ibv_send_wr& wr = chain[ready];
      wr.wr_id = sendQueue_->prepare(first + ready, request.wrId);
      wr.next = &chain[ready + 1];
      wr.sg_list = elementsOf(request, &buffers[ready], &wr.num_sge);
      wr.opcode = static_cast<ibv_wr_opcode>(request.opcode);
      wr.send_flags = request.sendFlags | (signalAll_ ? static_cast<uint32_t>(IBV_SEND_SIGNALED) : 0u);
      if (request.opcode == WrOpcode::SendWithInv || request.opcode == WrOpcode::LocalInv) [[unlikely]] {
        wr.invalidate_rkey = request.invalidateRkey;
      } else {
        wr.imm_data = htobe32(request.immData);
      }
      if (type_ == QpType::Ud) {
        wr.wr.ud.ah = static_cast<const IbvAddressHandle*>(request.addressHandle)->handle();
        wr.wr.ud.remote_qpn = request.remoteQpNum;
        wr.wr.ud.remote_qkey = request.remoteQkey;
      } else if (request.opcode == WrOpcode::CompareSwap || request.opcode == WrOpcode::FetchAdd) {
        wr.wr.atomic.remote_addr = request.remoteAddress;
        wr.wr.atomic.rkey = request.rkey;
        wr.wr.atomic.compare_add = request.compareAdd;
        wr.wr.atomic.swap = request.swap;
      } else {
        wr.wr.rdma.remote_addr = request.remoteAddress;
        wr.wr.rdma.rkey = request.rkey;
      }
    }
    uint32_t posted = 0;
    if (ready > 0) {
      chain[ready - 1].next = nullptr;
      sendQueue_->publish(first + ready);
      ibv_send_wr* bad = nullptr;
      const int result = std::abs(ibv_post_send(handle_, chain, &bad));
      if (type_ == QpType::Ud) {
        for (uint32_t i = 0; i < ready; i++) requests[accepted + i].addressHandle->leave();
      }
      posted = ready;
      if (result != 0 && bad >= chain && bad < chain + ready) {
        posted = static_cast<uint32_t>(bad - chain);
        sendQueue_->publish(first + posted);
        refusal = result;
      } else if (result != 0) {
        // The library queued the requests but could not start the device. They may run with the next start, so they
        // must not be reported as refused; nothing more is posted here.
        sendStartFailed_ = true;
      }
    }
    sendCq_->returnCredits(room - posted);
    accepted += posted;
    if (refusal != 0) {
      *errnum = refusal;
      return accepted;
    }
  }
  return accepted;
}

size_t IbvQueuePair::postReceive(const ReceiveWorkRequest* requests, size_t count, int* errnum) {
  *errnum = 0;
  std::lock_guard<AdaptiveMutex> lock(receiveMutex_);
  if (!receiveUsable_) throwClosed(kind());
  size_t accepted = 0;
  while (accepted < count) {
    if (srq_ != nullptr || state_.load(std::memory_order_acquire) == QpState::Reset) {
      *errnum = EINVAL;
      break;
    }
    uint32_t room = static_cast<uint32_t>(std::min<size_t>(count - accepted, kPostChunk));
    room = std::min(room, receiveQueue_->freeEntries());
    room = receiveCq_->takeCredits(room);
    if (room == 0) {
      *errnum = ENOMEM;
      break;
    }
    ibv_recv_wr chain[kPostChunk];
    ibv_sge buffers[kPostChunk];
    const uint32_t first = receiveQueue_->nextPosition();
    uint32_t sound = 0;
    for (uint32_t i = 0; i < room; i++, sound++) {
      const ReceiveWorkRequest& request = requests[accepted + i];
      if (!soundElements(request, capabilities_.maxRecvSge)) break;
      chain[i].wr_id = receiveQueue_->prepare(first + i, request.wrId);
      chain[i].next = nullptr;
      if (i > 0) chain[i - 1].next = &chain[i];
      chain[i].sg_list = elementsOf(request, &buffers[i], &chain[i].num_sge);
    }
    const bool malformed = sound < room;
    if (malformed) {
      receiveCq_->returnCredits(room - sound);
      room = sound;
      if (room == 0) {
        *errnum = EINVAL;
        break;
      }
    }
    receiveQueue_->publish(first + room);
    ibv_recv_wr* bad = nullptr;
    const int result = std::abs(ibv_post_recv(handle_, chain, &bad));
    uint32_t posted = room;
    if (result != 0) {
      posted = bad >= chain && bad < chain + room ? static_cast<uint32_t>(bad - chain) : 0;
      receiveQueue_->publish(first + posted);
      receiveCq_->returnCredits(room - posted);
    }
    accepted += posted;
    if (result != 0 || malformed) {
      *errnum = result != 0 ? result : EINVAL;
      break;
    }
  }
  if (accepted > 0 && state_.load(std::memory_order_relaxed) == QpState::Err) {
    // rxe is not told of receives, so those that come in ERR would never be flushed; told once more that it is in ERR,
    // it looks. Where that fails the receives just stay as they are.
    ibv_qp_attr raw;
    std::memset(&raw, 0, sizeof(raw));
    raw.qp_state = IBV_QPS_ERR;
    domain_->context()->lib().modifyQp(handle_, &raw, IBV_QP_STATE);
  }
  return accepted;
}

}  // namespace quorate::ibverbs

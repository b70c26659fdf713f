// See fake_ibverbs.h.
#include "test/fake_ibverbs.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

namespace quorate::test {
namespace {
FakeDevice* g_device = nullptr;
}

struct FakeVerbs {
  static const char* name(ibv_device*) { return "fake0"; }
  static __be64 guid(ibv_device*) { return 0; }
  static int forkInit() { return 0; }
  static ibv_context* open(ibv_device* device) {
    auto* context = new ibv_context();
    context->device = device;
    context->ops.poll_cq = poll;
    context->ops.req_notify_cq = [](ibv_cq*, int) { return 0; };
    context->ops.post_send = postSend;
    context->ops.post_recv = postReceive;
    context->ops.post_srq_recv = postSharedReceive;
    context->ops.alloc_mw = allocMw;
    context->ops.dealloc_mw = deallocMw;
    return context;
  }
  static int close(ibv_context* context) {
    delete context;
    return 0;
  }
  static int queryDevice(ibv_context*, ibv_device_attr* attributes) {
    std::memset(attributes, 0, sizeof(*attributes));
    attributes->max_mr_size = 1u << 30;
    attributes->max_qp_wr = 4096;
    attributes->max_sge = 4;
    attributes->max_cqe = 4096;
    attributes->max_srq = 16;
    attributes->max_srq_wr = 4096;
    attributes->max_srq_sge = 4;
    attributes->max_qp_rd_atom = attributes->max_qp_init_rd_atom = 16;
    attributes->atomic_cap = IBV_ATOMIC_HCA;
    attributes->phys_port_cnt = 1;
    return 0;
  }
  static int queryPort(ibv_context*, uint8_t, _compat_ibv_port_attr* compat) {
    auto* attributes = reinterpret_cast<ibv_port_attr*>(compat);
    attributes->max_msg_sz = 1u << 20;
    attributes->active_mtu = attributes->max_mtu = IBV_MTU_1024;
    attributes->link_layer = IBV_LINK_LAYER_ETHERNET;
    attributes->gid_tbl_len = 2;
    return 0;
  }
  template <typename Object>
  static Object* made(Object* object) {
    g_device->liveObjects++;
    return object;
  }
  template <typename Object>
  static int gone(Object* object) {
    g_device->liveObjects--;
    delete object;
    return 0;
  }
  static ibv_pd* allocPd(ibv_context* context) {
    auto* pd = new ibv_pd();
    pd->context = context;
    return made(pd);
  }
  static int deallocPd(ibv_pd* pd) { return gone(pd); }
  static ibv_mr* regMr(ibv_pd* pd, void* address, size_t length, int) {
    auto* mr = new ibv_mr();
    mr->pd = pd;
    mr->addr = address;
    mr->length = length;
    mr->lkey = mr->rkey = 0x1234;
    return made(mr);
  }
  static int deregMr(ibv_mr* mr) {
    g_device->deregCalls++;
    const int result = g_device->deregResult;
    if (result != 0) {
      std::lock_guard<std::mutex> lock(g_device->mutex_);
      g_device->refused_.insert(mr);
      return result;
    }
    {
      std::lock_guard<std::mutex> lock(g_device->mutex_);
      g_device->refused_.erase(mr);
    }
    return gone(mr);
  }
  static int reregMr(ibv_mr* mr, int, ibv_pd*, void* address, size_t length, int) {
    if (g_device->reregResult != 0) {
      errno = g_device->reregErrno;
      return g_device->reregResult;
    }
    mr->addr = address;
    mr->length = length;
    return 0;
  }
  static ibv_mw* allocMw(ibv_pd* pd, ibv_mw_type type) {
    auto* mw = new ibv_mw();
    mw->context = pd->context;
    mw->pd = pd;
    mw->type = type;
    mw->rkey = 0x5600;
    return made(mw);
  }
  static int deallocMw(ibv_mw* mw) {
    if (g_device->deallocMwResult != 0) return g_device->deallocMwResult;
    {
      std::lock_guard<std::mutex> lock(g_device->mutex_);
      g_device->boundThrough_.erase(mw);
    }
    return gone(mw);
  }
  static ibv_comp_channel* createChannel(ibv_context* context) {
    auto* channel = new ibv_comp_channel();
    channel->context = context;
    channel->fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    return made(channel);
  }
  static int destroyChannel(ibv_comp_channel* channel) {
    ::close(channel->fd);
    return gone(channel);
  }
  static ibv_cq* createCq(ibv_context* context, int depth, void* cookie, ibv_comp_channel* channel, int) {
    auto* cq = new FakeCompletionQueue();
    cq->context = context;
    cq->cqe = depth;
    cq->cq_context = cookie;
    cq->channel = channel;
    return made(cq);
  }
  static int destroyCq(ibv_cq* cq) {
    if (g_device->destroyCqResult != 0) return g_device->destroyCqResult;
    if (g_device->insidePolls != 0) g_device->usedAfterDestroy = true;
    return gone(static_cast<FakeCompletionQueue*>(cq));
  }
  static ibv_srq* createSrq(ibv_pd* pd, ibv_srq_init_attr* init) {
    auto* srq = new FakeSharedReceiveQueue();
    srq->context = pd->context;
    srq->pd = pd;
    srq->srq_context = init->srq_context;
    return made(srq);
  }
  static int destroySrq(ibv_srq* srq) {
    if (g_device->destroySrqResult != 0) return g_device->destroySrqResult;
    return gone(static_cast<FakeSharedReceiveQueue*>(srq));
  }
  static int getAsyncEvent(ibv_context*, ibv_async_event* event) {
    std::lock_guard<std::mutex> lock(g_device->mutex_);
    if (g_device->asyncEvents_.empty()) {
      errno = EAGAIN;
      return -1;
    }
    *event = g_device->asyncEvents_.front();
    g_device->asyncEvents_.pop_front();
    return 0;
  }
  static int getCqEvent(ibv_comp_channel*, ibv_cq** queue, void** cookie) {
    std::lock_guard<std::mutex> lock(g_device->mutex_);
    if (g_device->completionEvents_.empty()) {
      errno = EAGAIN;
      return -1;
    }
    *queue = g_device->completionEvents_.front();
    *cookie = (*queue)->cq_context;
    g_device->completionEvents_.pop_front();
    return 0;
  }
  static int postSharedReceive(ibv_srq* base, ibv_recv_wr* wr, ibv_recv_wr** bad) {
    std::lock_guard<std::mutex> lock(g_device->mutex_);
    *bad = nullptr;
    for (; wr != nullptr; wr = wr->next) {
      static_cast<FakeSharedReceiveQueue*>(base)->receives.push_back({wr->wr_id, true});
    }
    return 0;
  }
  static ibv_qp* createQp(ibv_pd* pd, ibv_qp_init_attr* init) {
    auto owned = std::make_unique<FakeQueuePair>();
    FakeQueuePair* qp = owned.get();
    qp->context = pd->context;
    qp->qp_context = init->qp_context;
    qp->pd = pd;
    qp->send_cq = init->send_cq;
    qp->recv_cq = init->recv_cq;
    qp->srq = init->srq;
    qp->qp_type = init->qp_type;
    qp->state = IBV_QPS_RESET;
    std::lock_guard<std::mutex> lock(g_device->mutex_);
    qp->qp_num = g_device->nextNumber_++;
    g_device->queuePairs_.push_back(std::move(owned));
    return made(qp);
  }
  static void takeCompletionsOut(ibv_qp* qp) {
    for (ibv_cq* cq : {qp->send_cq, qp->recv_cq}) {
      std::erase_if(static_cast<FakeCompletionQueue*>(cq)->completions,
                    [qp](const ibv_wc& one) { return one.qp_num == qp->qp_num; });
    }
  }
  static int modifyQp(ibv_qp* qp, ibv_qp_attr* attributes, int mask) {
    if (g_device->modifyResult != 0) return g_device->modifyResult;
    std::lock_guard<std::mutex> lock(g_device->mutex_);
    if ((mask & IBV_QP_STATE) != 0) qp->state = attributes->qp_state;
    if (qp->state == IBV_QPS_RESET) {
      static_cast<FakeQueuePair*>(qp)->sends.clear();
      static_cast<FakeQueuePair*>(qp)->receives.clear();
      if (g_device->takesCompletionsOut) takeCompletionsOut(qp);
    }
    return 0;
  }
  static int queryQp(ibv_qp* qp, ibv_qp_attr* attributes, int, ibv_qp_init_attr*) {
    std::lock_guard<std::mutex> lock(g_device->mutex_);
    attributes->qp_state = attributes->cur_qp_state = qp->state;
    return 0;
  }
  static int destroyQp(ibv_qp* qp) {
    if (g_device->destroyQpResult != 0) return g_device->destroyQpResult;
    if (g_device->insidePosts != 0) g_device->usedAfterDestroy = true;
    std::lock_guard<std::mutex> lock(g_device->mutex_);
    if (g_device->takesCompletionsOut) takeCompletionsOut(qp);
    for (const auto& bound : g_device->boundThrough_) {
      if (bound.second == qp->qp_num) g_device->destroyedBeforeWindows = true;
    }
    std::erase_if(g_device->queuePairs_, [qp](const auto& one) { return one.get() == qp; });
    g_device->liveObjects--;
    return 0;
  }

  static int postSend(ibv_qp* base, ibv_send_wr* wr, ibv_send_wr** bad) {
    g_device->insidePosts++;
    g_device->linger();
    auto* qp = static_cast<FakeQueuePair*>(base);
    int result = 0;
    {
      std::lock_guard<std::mutex> lock(g_device->mutex_);
      *bad = nullptr;
      for (; wr != nullptr; wr = wr->next) {
        if (g_device->acceptSends <= 0) {
          *bad = wr;
          result = ENOMEM;
          break;
        }
        g_device->acceptSends--;
        if (wr->opcode == IBV_WR_BIND_MW) g_device->boundThrough_[wr->bind_mw.mw] = qp->qp_num;
        qp->sends.push_back({wr->wr_id, (wr->send_flags & IBV_SEND_SIGNALED) != 0});
      }
      if (result == 0) result = g_device->startSendResult;
    }
    g_device->insidePosts--;
    return result;
  }
  static int postReceive(ibv_qp* base, ibv_recv_wr* wr, ibv_recv_wr** bad) {
    auto* qp = static_cast<FakeQueuePair*>(base);
    std::lock_guard<std::mutex> lock(g_device->mutex_);
    *bad = nullptr;
    for (; wr != nullptr; wr = wr->next) qp->receives.push_back({wr->wr_id, true});
    return 0;
  }
  static int poll(ibv_cq* base, int max, ibv_wc* out) {
    g_device->insidePolls++;
    g_device->linger();
    auto* cq = static_cast<FakeCompletionQueue*>(base);
    int count = g_device->pollResult;
    if (count == 0) {
      std::lock_guard<std::mutex> lock(g_device->mutex_);
      while (count < max && !cq->completions.empty()) {
        out[count++] = cq->completions.front();
        cq->completions.pop_front();
      }
    }
    g_device->insidePolls--;
    return count;
  }
};

FakeDevice::FakeDevice() {
  g_device = this;
  std::strcpy(device_.name, "fake0");
  library_.getDeviceName = FakeVerbs::name;
  library_.getDeviceGuid = FakeVerbs::guid;
  library_.openDevice = FakeVerbs::open;
  library_.closeDevice = FakeVerbs::close;
  library_.queryDevice = FakeVerbs::queryDevice;
  library_.queryPort = FakeVerbs::queryPort;
  library_.forkInit = FakeVerbs::forkInit;
  library_.allocPd = FakeVerbs::allocPd;
  library_.deallocPd = FakeVerbs::deallocPd;
  library_.regMr = FakeVerbs::regMr;
  library_.deregMr = FakeVerbs::deregMr;
  library_.reregMr = FakeVerbs::reregMr;
  library_.createCompChannel = FakeVerbs::createChannel;
  library_.destroyCompChannel = FakeVerbs::destroyChannel;
  library_.createCq = FakeVerbs::createCq;
  library_.destroyCq = FakeVerbs::destroyCq;
  library_.getCqEvent = FakeVerbs::getCqEvent;
  library_.ackCqEvents = [](ibv_cq*, unsigned) {};
  library_.getAsyncEvent = FakeVerbs::getAsyncEvent;
  library_.ackAsyncEvent = [](ibv_async_event*) {};
  library_.createSrq = FakeVerbs::createSrq;
  library_.destroySrq = FakeVerbs::destroySrq;
  library_.createQp = FakeVerbs::createQp;
  library_.modifyQp = FakeVerbs::modifyQp;
  library_.queryQp = FakeVerbs::queryQp;
  library_.destroyQp = FakeVerbs::destroyQp;
}

FakeDevice::~FakeDevice() {
  for (ibv_mr* region : refused_) delete region;
  g_device = nullptr;
}

std::shared_ptr<ibverbs::IbvContext> FakeDevice::open() {
  return ibverbs::IbvContext::open(library_, &device_);
}

void FakeDevice::linger() {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::milliseconds(200);
  while (lingerInCalls && !usedAfterDestroy && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
}

FakeQueuePair* FakeDevice::find(uint32_t qpNumber) {
  for (const auto& one : queuePairs_) {
    if (one->qp_num == qpNumber) return one.get();
  }
  return nullptr;
}

void FakeDevice::complete(uint32_t qpNumber, bool receive, size_t count, ibv_wc_status status) {
  std::lock_guard<std::mutex> lock(mutex_);
  FakeQueuePair* qp = find(qpNumber);
  if (qp == nullptr) return;
  std::deque<PostedRequest>& queue = !receive               ? qp->sends
                                     : qp->srq != nullptr ? static_cast<FakeSharedReceiveQueue*>(qp->srq)->receives
                                                          : qp->receives;
  auto* cq = static_cast<FakeCompletionQueue*>(receive ? qp->recv_cq : qp->send_cq);
  for (; count > 0 && !queue.empty(); count--) {
    const PostedRequest request = queue.front();
    queue.pop_front();
    if (status == IBV_WC_SUCCESS && !request.signaled) continue;
    ibv_wc completion{};
    completion.wr_id = request.cookie;
    completion.status = status;
    // Undefined after an error; a misleading value, so that nobody relies on it.
    completion.opcode = (status == IBV_WC_SUCCESS) == receive ? IBV_WC_RECV : IBV_WC_RDMA_WRITE;
    completion.qp_num = qpNumber;
    completion.src_qp = FakeDevice::kSender;
    cq->completions.push_back(completion);
    largestFill_ = std::max(largestFill_.load(), cq->completions.size());
  }
}

void FakeDevice::completeSends(uint32_t qpNumber, size_t count, ibv_wc_status status) {
  complete(qpNumber, false, count, status);
}
void FakeDevice::completeReceives(uint32_t qpNumber, size_t count, ibv_wc_status status) {
  complete(qpNumber, true, count, status);
}

void FakeDevice::injectCompletion(uint32_t qpNumber, uint64_t cookie, ibv_wc_status status) {
  std::lock_guard<std::mutex> lock(mutex_);
  ibv_wc completion{};
  completion.wr_id = cookie;
  completion.status = status;
  completion.qp_num = qpNumber;
  static_cast<FakeCompletionQueue*>(find(qpNumber)->send_cq)->completions.push_back(completion);
}

std::vector<PostedRequest> FakeDevice::postedSends(uint32_t qpNumber) {
  std::lock_guard<std::mutex> lock(mutex_);
  FakeQueuePair* qp = find(qpNumber);
  return qp == nullptr ? std::vector<PostedRequest>() : std::vector<PostedRequest>(qp->sends.begin(), qp->sends.end());
}

ibv_qp* FakeDevice::handleOf(uint32_t qpNumber) {
  std::lock_guard<std::mutex> lock(mutex_);
  return find(qpNumber);
}

void FakeDevice::setState(uint32_t qpNumber, ibv_qp_state state) {
  std::lock_guard<std::mutex> lock(mutex_);
  find(qpNumber)->state = state;
}

void FakeDevice::raise(const ibv_async_event& event) {
  std::lock_guard<std::mutex> lock(mutex_);
  asyncEvents_.push_back(event);
}

void FakeDevice::raiseCompletionEvent(ibv_cq* queue) {
  std::lock_guard<std::mutex> lock(mutex_);
  completionEvents_.push_back(queue);
}

}  // namespace quorate::test

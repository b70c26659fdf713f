// What the ibverbs provider keeps account of, on a made-up device: credits of completion queues, attribution of
// completions, refused posts, refused revocations, order of closing, close against use.
#include <doctest/doctest.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "provider/ibverbs/completion_queue.h"
#include "provider/ibverbs/shared_receive_queue.h"
#include "provider/ibverbs/work_queue.h"
#include "test/child_process.h"
#include "test/error_code.h"
#include "test/fake_ibverbs.h"
#include "verbs/verbs.h"

using namespace quorate;
using test::codeOf;
using test::FakeDevice;

namespace {

constexpr uint32_t kSendDepth = 8, kReceiveDepth = 4;

// A queue pair in RTS on a completion queue.
struct Rig {
  explicit Rig(FakeDevice& device, int cqDepth = 64, QpType type = QpType::Rc) {
    context = device.open();
    domain = context->allocateProtectionDomain();
    cq = context->createCompletionQueue(cqDepth, nullptr);
    qp = makeQueuePair(type);
  }
  std::shared_ptr<QueuePair> makeQueuePair(QpType type = QpType::Rc,
                                           std::shared_ptr<SharedReceiveQueue> srq = nullptr) {
    QpInit init;
    init.type = type;
    init.sendCq = init.recvCq = cq;
    init.srq = srq;
    init.cap.maxSendWr = kSendDepth;
    init.cap.maxRecvWr = kReceiveDepth;
    init.cap.maxInlineData = 32;
    auto made = domain->createQueuePair(init);
    QpAttributes a;
    a.av.isGlobal = true;
    a.state = QpState::Init;
    a.mask = kQpState | kQpPkeyIndex | kQpPort | (type == QpType::Ud ? kQpQkey : kQpAccessFlags);
    made->modify(a);
    a.state = QpState::Rtr;
    a.mask = kQpState;
    if (type != QpType::Ud) a.mask |= kQpAv | kQpPathMtu | kQpDestQpn | kQpRqPsn;
    if (type == QpType::Rc) a.mask |= kQpMaxDestRdAtomic | kQpMinRnrTimer;
    made->modify(a);
    a.state = QpState::Rts;
    a.mask = kQpState | kQpSqPsn;
    if (type == QpType::Rc) a.mask |= kQpMaxQpRdAtomic | kQpRetryCnt | kQpRnrRetry | kQpTimeout;
    made->modify(a);
    return made;
  }
  std::shared_ptr<ibverbs::IbvContext> context;
  std::shared_ptr<ProtectionDomain> domain;
  std::shared_ptr<CompletionQueue> cq;
  std::shared_ptr<QueuePair> qp;
};

// Posts writes with consecutive wrIds; returns how many were accepted.
size_t postWrites(QueuePair& qp, uint64_t firstWrId, size_t count, int* errnum, uint32_t flags = kSendSignaled) {
  std::vector<SendWorkRequest> requests(count);
  for (size_t i = 0; i < count; i++) {
    requests[i].wrId = firstWrId + i;
    requests[i].sendFlags = flags;
  }
  return qp.postSend(requests.data(), count, errnum);
}

template <typename Queue>
size_t postReceives(Queue& qp, uint64_t firstWrId, size_t count, int* errnum) {
  std::vector<ReceiveWorkRequest> requests(count);
  for (size_t i = 0; i < count; i++) requests[i].wrId = firstWrId + i;
  return qp.postReceive(requests.data(), count, errnum);
}

std::vector<WorkCompletion> pollAll(CompletionQueue& cq) {
  std::vector<WorkCompletion> all;
  WorkCompletion chunk[3];
  int count;
  while ((count = cq.poll(chunk, 3)) > 0) all.insert(all.end(), chunk, chunk + count);
  return all;
}

}  // namespace

TEST_CASE("completions carry the caller's wrIds, in order, over many laps of the queue") {
  FakeDevice device;
  Rig rig(device);
  int errnum = 0;
  uint64_t next = 0, expected = 0;
  for (int lap = 0; lap < 100; lap++) {
    REQUIRE(postWrites(*rig.qp, next, 5, &errnum) == 5);
    next += 5;
    device.completeSends(rig.qp->number(), 5);
    for (const WorkCompletion& completion : pollAll(*rig.cq)) {
      REQUIRE(completion.wrId == expected++);
      REQUIRE(completion.status == 0);
      REQUIRE(completion.qpNum == rig.qp->number());
    }
    REQUIRE(expected == next);
  }
}

TEST_CASE("a send queue takes maxSendWr requests until a completion is polled") {
  FakeDevice device;
  Rig rig(device);
  int errnum = 0;
  CHECK(postWrites(*rig.qp, 0, kSendDepth + 3, &errnum) == kSendDepth);
  CHECK(errnum == ENOMEM);
  device.completeSends(rig.qp->number(), 2);
  CHECK(postWrites(*rig.qp, 100, 1, &errnum) == 0);  // completed, but nobody looked yet
  CHECK(pollAll(*rig.cq).size() == 2);
  CHECK(postWrites(*rig.qp, 100, 3, &errnum) == 2);
  CHECK(errnum == ENOMEM);
}

TEST_CASE("a completion queue cannot overflow: a post without a free entry is refused") {
  FakeDevice device;
  constexpr int kDepth = 10;
  Rig rig(device, kDepth);
  const auto second = rig.makeQueuePair();
  int errnum = 0;
  CHECK(postWrites(*rig.qp, 0, 6, &errnum) == 6);
  CHECK(postReceives(*second, 50, 2, &errnum) == 2);
  CHECK(postWrites(*second, 100, 6, &errnum) == 2);
  CHECK(errnum == ENOMEM);
  CHECK(postReceives(*rig.qp, 200, 1, &errnum) == 0);
  CHECK(errnum == ENOMEM);
  device.completeSends(rig.qp->number(), 100);
  device.completeSends(second->number(), 100, IBV_WC_RETRY_EXC_ERR);
  device.completeReceives(second->number(), 100, IBV_WC_WR_FLUSH_ERR);
  CHECK(device.largestCompletionQueueFill() == kDepth);
  CHECK(pollAll(*rig.cq).size() == kDepth);
  CHECK(postWrites(*rig.qp, 0, kSendDepth, &errnum) == kSendDepth);  // all credits are back
  CHECK(postWrites(*second, 0, kSendDepth, &errnum) == 2);
}

TEST_CASE("unsignaled requests are retired by the next completion of their queue") {
  FakeDevice device;
  Rig rig(device, 8);
  int errnum = 0;
  for (int lap = 0; lap < 50; lap++) {
    REQUIRE(postWrites(*rig.qp, 1, 7, &errnum, 0) == 7);
    REQUIRE(postWrites(*rig.qp, 99, 1, &errnum) == 1);
    REQUIRE(postWrites(*rig.qp, 0, 1, &errnum) == 0);
    device.completeSends(rig.qp->number(), 8);
    const auto completions = pollAll(*rig.cq);
    REQUIRE(completions.size() == 1);
    REQUIRE(completions[0].wrId == 99);
  }
}

TEST_CASE("a failed unsignaled request is reported under its own wrId, and those after it are flushed one by one") {
  FakeDevice device;
  Rig rig(device);
  int errnum = 0;
  REQUIRE(postWrites(*rig.qp, 10, 5, &errnum, 0) == 5);
  REQUIRE(postReceives(*rig.qp, 70, 2, &errnum) == 2);
  device.completeSends(rig.qp->number(), 2);  // 10 and 11 succeed, silently
  device.completeSends(rig.qp->number(), 1, IBV_WC_REM_ACCESS_ERR);
  device.completeReceives(rig.qp->number(), 1, IBV_WC_WR_FLUSH_ERR);
  device.completeSends(rig.qp->number(), 2, IBV_WC_WR_FLUSH_ERR);
  device.completeReceives(rig.qp->number(), 1, IBV_WC_WR_FLUSH_ERR);
  const auto completions = pollAll(*rig.cq);
  REQUIRE(completions.size() == 5);
  CHECK(completions[0].wrId == 12);
  CHECK(completions[0].status == static_cast<int>(WcStatus::RemAccessErr));
  CHECK(completions[1].wrId == 70);
  CHECK(completions[1].opcode == static_cast<int>(WcOpcode::Recv));  // known although the device does not say
  CHECK(completions[2].wrId == 13);
  CHECK(completions[3].wrId == 14);
  CHECK(completions[4].wrId == 71);
  CHECK(postWrites(*rig.qp, 0, kSendDepth + 1, &errnum) == kSendDepth);
}

TEST_CASE("a chain that the device takes in part is accepted in part") {
  FakeDevice device;
  Rig rig(device);
  int errnum = 0;
  device.acceptSends = 3;
  CHECK(postWrites(*rig.qp, 20, 5, &errnum) == 3);
  CHECK(errnum == ENOMEM);
  device.acceptSends = 100;
  CHECK(postWrites(*rig.qp, 30, 5, &errnum) == 5);
  device.completeSends(rig.qp->number(), 8);
  const auto completions = pollAll(*rig.cq);
  REQUIRE(completions.size() == 8);
  CHECK(completions[2].wrId == 22);
  CHECK(completions[3].wrId == 30);
}

TEST_CASE("requests that a device queued but was not told to start are not called refused") {
  FakeDevice device;
  Rig rig(device);
  int errnum = 0;
  device.startSendResult = EIO;
  CHECK(postWrites(*rig.qp, 1, 2, &errnum) == 2);  // they may still run
  CHECK(errnum == 0);
  device.startSendResult = 0;
  CHECK(postWrites(*rig.qp, 3, 1, &errnum) == 0);
  CHECK(errnum == EIO);
}

TEST_CASE("nothing is handed to the device in a state in which it must not send") {
  FakeDevice device;
  Rig rig(device);
  QpInit init;
  init.sendCq = init.recvCq = rig.cq;
  const auto fresh = rig.domain->createQueuePair(init);
  int errnum = 0;
  CHECK(postWrites(*fresh, 1, 1, &errnum) == 0);
  CHECK(errnum == EINVAL);
  CHECK(postReceives(*fresh, 1, 1, &errnum) == 0);
  CHECK(errnum == EINVAL);
  QpAttributes a;
  a.state = QpState::Init;
  a.mask = kQpState | kQpPkeyIndex | kQpPort | kQpAccessFlags;
  fresh->modify(a);
  CHECK(postWrites(*fresh, 1, 1, &errnum) == 0);
  CHECK(errnum == EINVAL);
  CHECK(postReceives(*fresh, 1, 1, &errnum) == 1);
  CHECK(device.postedSends(fresh->number()).empty());
}

TEST_CASE("requests that some device library would mistake are refused before it sees them") {
  FakeDevice device;
  Rig rig(device);
  const Rig uc(device, 64, QpType::Uc), ud(device, 64, QpType::Ud);
  const auto refused = [&](QueuePair& qp, SendWorkRequest request) {
    int errnum = 0;
    CHECK(qp.postSend(&request, 1, &errnum) == 0);
    CHECK(device.postedSends(qp.number()).empty());
    return errnum;
  };
  SendWorkRequest request;
  request.opcode = static_cast<WrOpcode>(10);  // a TSO
  CHECK(refused(*rig.qp, request) == EINVAL);
  request.opcode = static_cast<WrOpcode>(-1);
  CHECK(refused(*rig.qp, request) == EINVAL);
  request = {};
  request.sendFlags = 1u << 4;
  CHECK(refused(*rig.qp, request) == EINVAL);
  request = {};
  request.length = (1u << 20) + 1;
  CHECK(refused(*rig.qp, request) == EINVAL);
  request = {};
  request.length = 33;
  request.sendFlags = kSendInline;
  CHECK(refused(*rig.qp, request) == EINVAL);
  request.length = 8;
  request.opcode = WrOpcode::RdmaRead;
  CHECK(refused(*rig.qp, request) == EINVAL);
  request.sendFlags = 0;
  CHECK(refused(*uc.qp, request) == EINVAL);
  request.opcode = WrOpcode::CompareSwap;
  CHECK(refused(*uc.qp, request) == EINVAL);
  request.length = 4;
  CHECK(refused(*rig.qp, request) == EINVAL);
  request.length = 8;
  request.remoteAddress = 0x1004;
  CHECK(refused(*rig.qp, request) == EINVAL);
  request = {};
  request.opcode = WrOpcode::Send;
  CHECK(refused(*ud.qp, request) == EINVAL);  // no address handle
  request.opcode = WrOpcode::RdmaWrite;
  CHECK(refused(*ud.qp, request) == EINVAL);
}

TEST_CASE("a request in the middle of a chain that is refused ends the chain there") {
  FakeDevice device;
  Rig rig(device);
  SendWorkRequest requests[3];
  requests[0].wrId = 5;
  requests[0].sendFlags = requests[2].sendFlags = kSendSignaled;
  requests[1].sendFlags = 1u << 9;
  int errnum = 0;
  CHECK(rig.qp->postSend(requests, 3, &errnum) == 1);
  CHECK(errnum == EINVAL);
  CHECK(device.postedSends(rig.qp->number()).size() == 1);
  device.completeSends(rig.qp->number(), 1);
  CHECK(pollAll(*rig.cq).size() == 1);
  for (int i = 0; i < 8; i++) CHECK(postWrites(*rig.qp, 0, 1, &errnum) == 1);  // no entry was lost
}

TEST_CASE("a deregistration that the device refuses is not a revocation, and can be tried again") {
  FakeDevice device;
  Rig rig(device);
  const auto memory = rig.context->allocateMemory({4096, false, "", false});
  const auto region = rig.domain->registerMemory(memory, 0, 4096, kAccessLocalWrite | kAccessRemoteWrite);
  device.deregResult = EBUSY;
  CHECK(codeOf([&] { region->close(); }) == "QUORATE_REVOKE_FAILED");
  CHECK_FALSE(region->closed());
  CHECK(codeOf([&] { rig.domain->close(); }) == "QUORATE_REVOKE_FAILED");
  CHECK_FALSE(rig.domain->closed());
  CHECK(codeOf([&] { rig.context->close(); }) == "QUORATE_REVOKE_FAILED");
  CHECK_FALSE(rig.context->closed());
  CHECK_NOTHROW(rig.domain->registerMemory(memory, 0, 64, 0));  // still usable (and dropped; see the message)
  device.deregResult = 0;
  region->close();
  CHECK(region->closed());
  rig.context->close();
  CHECK(rig.domain->closed());
}

TEST_CASE("a re-registration that the device did not carry out to the end has revoked nothing") {
  FakeDevice device;
  Rig rig(device);
  auto memory = rig.context->allocateMemory({4096, false, "", false});
  auto region = rig.domain->registerMemory(memory, 0, 4096, kAccessLocalWrite | kAccessRemoteWrite);
  MemoryRegion::Changes changes;
  changes.access = kAccessLocalWrite;
  const auto result = [&](int code, int errnum) {
    device.reregResult = code;
    device.reregErrno = errnum;
    return codeOf([&] { region->reregister(changes); });
  };
  CHECK(result(IBV_REREG_MR_ERR_CMD, EINVAL) == "QUORATE_REVOKE_FAILED");
  CHECK(result(IBV_REREG_MR_ERR_CMD_AND_DO_FORK_NEW, ENOMEM) == "QUORATE_REVOKE_FAILED");
  CHECK(result(IBV_REREG_MR_ERR_CMD, EOPNOTSUPP) == "QUORATE_UNSUPPORTED");
  CHECK(result(IBV_REREG_MR_ERR_INPUT, EINVAL) == "QUORATE_SYSTEM");
  CHECK(region->access() == (kAccessLocalWrite | kAccessRemoteWrite));
  CHECK(result(0, 0) == "");
  CHECK(region->access() == kAccessLocalWrite);
}

TEST_CASE("a queue pair that the device does not destroy stays open") {
  FakeDevice device;
  Rig rig(device);
  int errnum = 0;
  device.destroyQpResult = EBUSY;
  CHECK(codeOf([&] { rig.qp->close(); }) == "QUORATE_REVOKE_FAILED");
  CHECK_FALSE(rig.qp->closed());
  CHECK(postWrites(*rig.qp, 1, 1, &errnum) == 1);
  device.destroyQpResult = 0;
  rig.qp->close();
  CHECK(rig.qp->closed());
  CHECK(codeOf([&] { postWrites(*rig.qp, 1, 1, &errnum); }) == "QUORATE_CLOSED");
  CHECK(codeOf([&] { postReceives(*rig.qp, 1, 1, &errnum); }) == "QUORATE_CLOSED");
}

TEST_CASE("windows that the device does not free are freed before their queue pair is, whenever that is tried again") {
  FakeDevice device;
  Rig rig(device);
  const auto memory = rig.context->allocateMemory({4096, false, "", false});
  const auto region = rig.domain->registerMemory(memory, 0, 4096, kAccessLocalWrite | kAccessMwBind);
  std::vector<std::shared_ptr<MemoryWindow>> windows;
  MwBind bind;
  bind.region = region;
  bind.length = 64;
  bind.access = kAccessRemoteWrite;
  const auto bindOne = [&] {
    windows.push_back(rig.domain->allocateMemoryWindow(2));
    SendWorkRequest request;
    request.opcode = WrOpcode::BindMw;
    request.memoryWindow = windows.back().get();
    request.bind = &bind;
    request.bindRkey = windows.back()->rkey() + 1;
    int errnum = 0;
    CHECK(rig.qp->postSend(&request, 1, &errnum) == 1);
  };
  bindOne();
  bindOne();
  windows.front()->close();
  device.deallocMwResult = EBUSY;
  for (int attempt = 0; attempt < 3; attempt++) {
    CHECK(codeOf([&] { rig.qp->close(); }) == "QUORATE_REVOKE_FAILED");
    CHECK_FALSE(rig.qp->closed());
    CHECK_FALSE(windows.back()->closed());
  }
  bindOne();  // still usable
  CHECK(codeOf([&] { rig.qp->close(); }) == "QUORATE_REVOKE_FAILED");
  CHECK_FALSE(device.destroyedBeforeWindows);
  device.deallocMwResult = 0;
  rig.qp->close();
  CHECK(rig.qp->closed());
  for (const auto& window : windows) CHECK(window->closed());
  CHECK_FALSE(device.destroyedBeforeWindows);
}

TEST_CASE("a window that another thread binds while its queue pair is closed is freed before that is destroyed") {
  for (int round = 0; round < 1000; round++) {
    FakeDevice device;
    Rig rig(device);
    const auto memory = rig.context->allocateMemory({4096, false, "", false});
    MwBind bind;
    bind.region = rig.domain->registerMemory(memory, 0, 4096, kAccessLocalWrite | kAccessMwBind);
    bind.length = 64;
    bind.access = kAccessRemoteWrite;
    std::vector<std::shared_ptr<MemoryWindow>> windows;
    for (int i = 0; i < 8; i++) windows.push_back(rig.domain->allocateMemoryWindow(2));
    std::atomic<int> bound{0};
    std::thread binder([&] {
      const std::string code = codeOf([&] {
        for (const auto& window : windows) {
          SendWorkRequest request;
          request.opcode = WrOpcode::BindMw;
          request.memoryWindow = window.get();
          request.bind = &bind;
          request.bindRkey = window->rkey() + 1;
          int errnum = 0;
          if (rig.qp->postSend(&request, 1, &errnum) == 1) bound++;
        }
      });
      CHECK((code == "" || code == "QUORATE_CLOSED"));
    });
    while (bound.load() == 0) std::this_thread::yield();
    rig.qp->close();
    binder.join();
    CHECK_FALSE(device.destroyedBeforeWindows);
    for (int i = 0; i < bound.load(); i++) CHECK(windows[static_cast<size_t>(i)]->closed());
  }
}

TEST_CASE("memory that a dropped region could not be taken off stays mapped for ever") {
  FakeDevice device;
  Rig rig(device);
  auto memory = rig.context->allocateMemory({4096, false, "", false});
  volatile uint8_t* bytes = memory->data();
  device.deregResult = EBUSY;
  rig.domain->registerMemory(memory, 0, 4096, kAccessLocalWrite | kAccessRemoteWrite).reset();
  memory.reset();
  device.deregResult = 0;
  const pid_t child = test::forkChild([] { return 0; });
  CHECK(test::waitForChild(child) == 0);
  bytes[0] = 1;  // the device may still write here; an unmapped page would end this program
  CHECK(bytes[0] == 1);
}

TEST_CASE("events about objects that were dropped, and that the device did not destroy, name nobody") {
  FakeDevice device;
  Rig rig(device);
  const auto channel = rig.context->createCompletionChannel();
  auto cq = rig.context->createCompletionQueue(8, channel);
  auto srq = rig.domain->createSharedReceiveQueue(4, 1);
  ibv_async_event ofQueuePair{}, ofCompletionQueue{}, ofSharedQueue{};
  ofQueuePair.event_type = IBV_EVENT_QP_FATAL;
  ofQueuePair.element.qp = device.handleOf(rig.qp->number());
  ofCompletionQueue.event_type = IBV_EVENT_CQ_ERR;
  ofCompletionQueue.element.cq = static_cast<ibverbs::IbvCompletionQueue&>(*cq).handle();
  ofSharedQueue.event_type = IBV_EVENT_SRQ_LIMIT_REACHED;
  ofSharedQueue.element.srq = static_cast<ibverbs::IbvSharedReceiveQueue&>(*srq).handle();
  const std::vector<std::pair<ibv_async_event, const VerbsObject*>> events = {
      {ofQueuePair, rig.qp.get()}, {ofCompletionQueue, cq.get()}, {ofSharedQueue, srq.get()}};
  AsyncEvent event;
  for (const auto& [raw, about] : events) {
    device.raise(raw);
    REQUIRE(rig.context->getAsyncEvent(&event));
    CHECK(event.object.get() == about);
  }
  event = AsyncEvent();
  device.raiseCompletionEvent(ofCompletionQueue.element.cq);
  CHECK(channel->getEvent() == cq);

  device.destroyQpResult = device.destroyCqResult = device.destroySrqResult = EBUSY;
  rig.qp.reset();
  cq.reset();
  srq.reset();
  for (const auto& [raw, about] : events) {
    device.raise(raw);
    REQUIRE(rig.context->getAsyncEvent(&event));
    CHECK(event.type == static_cast<int>(raw.event_type));
    CHECK(event.object == nullptr);
  }
  device.raiseCompletionEvent(ofCompletionQueue.element.cq);
  CHECK(channel->getEvent() == nullptr);
  // Nobody else knows them any more.
  delete static_cast<test::FakeCompletionQueue*>(ofCompletionQueue.element.cq);
  delete static_cast<test::FakeSharedReceiveQueue*>(ofSharedQueue.element.srq);
}

TEST_CASE("closing a parent closes its children first, and every later call says closed") {
  FakeDevice device;
  Rig rig(device);
  const auto channel = rig.context->createCompletionChannel();
  const auto cq = rig.context->createCompletionQueue(8, channel);
  const auto memory = rig.context->allocateMemory({4096, false, "", false});
  const auto region = rig.domain->registerMemory(memory, 0, 4096, 0);
  rig.context->close();
  rig.context->close();
  for (const VerbsObject* object : std::initializer_list<const VerbsObject*>{
           rig.context.get(), rig.domain.get(), rig.cq.get(), rig.qp.get(), channel.get(), cq.get(), region.get()}) {
    CAPTURE(object->kind());
    CHECK(object->closed());
  }
  CHECK(device.liveObjects == 0);
  CHECK_FALSE(memory->closed());  // memory is the process's, not the device's
  WorkCompletion completion;
  CHECK(codeOf([&] { rig.context->queryDevice(); }) == "QUORATE_CLOSED");
  CHECK(codeOf([&] { rig.context->queryPort(1); }) == "QUORATE_CLOSED");
  CHECK(codeOf([&] { rig.context->queryGids(1); }) == "QUORATE_CLOSED");
  CHECK(codeOf([&] { rig.context->allocateMemory({4096, false, "", false}); }) == "QUORATE_CLOSED");
  CHECK(codeOf([&] { rig.context->allocateProtectionDomain(); }) == "QUORATE_CLOSED");
  CHECK(codeOf([&] { rig.context->createCompletionChannel(); }) == "QUORATE_CLOSED");
  CHECK(codeOf([&] { rig.context->createCompletionQueue(8, nullptr); }) == "QUORATE_CLOSED");
  CHECK(codeOf([&] { rig.domain->registerMemory(memory, 0, 64, 0); }) == "QUORATE_CLOSED");
  CHECK(codeOf([&] { rig.domain->createQueuePair({}); }) == "QUORATE_CLOSED");
  CHECK(codeOf([&] { rig.cq->poll(&completion, 1); }) == "QUORATE_CLOSED");
  CHECK(codeOf([&] { cq->requestNotify(false); }) == "QUORATE_CLOSED");
  CHECK(codeOf([&] { channel->getEvent(); }) == "QUORATE_CLOSED");
  CHECK(codeOf([&] { channel->fd(); }) == "QUORATE_CLOSED");
  CHECK(codeOf([&] { rig.qp->modify({}); }) == "QUORATE_CLOSED");
  CHECK(codeOf([&] { rig.qp->query(); }) == "QUORATE_CLOSED");
}

TEST_CASE("objects dropped in any order are all destroyed, once") {
  FakeDevice device;
  {
    Rig rig(device);
    rig.context.reset();
    rig.domain.reset();
    rig.cq.reset();
    CHECK(device.liveObjects == 3);  // the queue pair holds what it needs
    int errnum = 0;
    CHECK(postWrites(*rig.qp, 1, 1, &errnum) == 1);
  }
  CHECK(device.liveObjects == 0);
}

TEST_CASE("closing a completion queue closes the queue pairs that report to it") {
  FakeDevice device;
  Rig rig(device);
  rig.cq->close();
  CHECK(rig.qp->closed());
  CHECK_FALSE(rig.domain->closed());
}

TEST_CASE("completions that a destroyed queue pair left behind can still be polled, and its credits are free") {
  FakeDevice device;
  Rig rig(device, 8);
  auto second = rig.makeQueuePair();
  int errnum = 0;
  REQUIRE(postWrites(*rig.qp, 10, 2, &errnum) == 2);
  REQUIRE(postWrites(*second, 20, 4, &errnum) == 4);
  REQUIRE(postReceives(*second, 30, 2, &errnum) == 2);
  device.completeSends(rig.qp->number(), 1);
  device.completeSends(second->number(), 3);
  second->close();  // one send and two receives never complete
  REQUIRE(postWrites(*rig.qp, 12, 8, &errnum) == 3);
  const auto completions = pollAll(*rig.cq);
  REQUIRE(completions.size() == 4);
  CHECK(completions[0].wrId == 10);
  CHECK(completions[1].wrId == 20);
  CHECK(completions[3].wrId == 22);
  CHECK(postWrites(*rig.qp, 50, 8, &errnum) == 4);
  device.completeSends(rig.qp->number(), 100);
  CHECK(pollAll(*rig.cq).size() == 8);
}

TEST_CASE("queue pairs that come and go do not use a completion queue up") {
  FakeDevice device;
  Rig rig(device, 16);
  int errnum = 0;
  for (int round = 0; round < 200; round++) {
    auto qp = rig.makeQueuePair();
    REQUIRE(postWrites(*qp, 1, 8, &errnum) == 8);
    REQUIRE(postReceives(*qp, 1, 4, &errnum) == 4);
    device.completeSends(qp->number(), static_cast<size_t>(round % 9));
    qp->close();
    pollAll(*rig.cq);
  }
  CHECK(postWrites(*rig.qp, 1, 8, &errnum) == 8);
}

TEST_CASE("completions of a queue pair that ends can still be polled, also of a device that takes them out then") {
  FakeDevice device;
  device.takesCompletionsOut = true;
  Rig rig(device, 8);
  int errnum = 0;
  REQUIRE(postWrites(*rig.qp, 10, 4, &errnum) == 4);
  REQUIRE(postReceives(*rig.qp, 20, 2, &errnum) == 2);
  device.completeSends(rig.qp->number(), 2);
  device.completeReceives(rig.qp->number(), 1);
  SUBCASE("by RESET") {
    QpAttributes a;
    a.mask = kQpState;
    a.state = QpState::Reset;
    rig.qp->modify(a);
  }
  SUBCASE("by closing it") {
    rig.qp->close();
  }
  const auto completions = pollAll(*rig.cq);
  REQUIRE(completions.size() == 3);
  CHECK(completions[0].wrId == 10);
  CHECK(completions[1].wrId == 11);
  CHECK(completions[2].wrId == 20);
}

TEST_CASE("a shared receive counts until its completion is polled, whatever queue pairs close meanwhile") {
  FakeDevice device;
  Rig rig(device, 16);
  auto srq = rig.domain->createSharedReceiveQueue(4, 1);
  int errnum = 0;
  std::vector<std::shared_ptr<QueuePair>> queuePairs;
  for (int i = 0; i < 3; i++) queuePairs.push_back(rig.makeQueuePair(QpType::Rc, srq));
  REQUIRE(postReceives(*srq, 10, 4, &errnum) == 4);
  for (const auto& queuePair : queuePairs) {
    device.completeReceives(queuePair->number(), 4);
    queuePair->close();
    CHECK(postReceives(*srq, 20, 4, &errnum) == 0);
    CHECK(errnum == ENOMEM);
  }
  SUBCASE("they are polled") {
    const auto completions = pollAll(*rig.cq);
    REQUIRE(completions.size() == 4);
    CHECK(completions[3].wrId == 13);
  }
  SUBCASE("nobody can poll them any more") {
    rig.cq->close();
  }
  CHECK(postReceives(*srq, 20, 5, &errnum) == 4);
  if (rig.cq->closed()) return;
  // All entries of the completion queue are free again.
  rig.qp = rig.makeQueuePair();
  auto second = rig.makeQueuePair();
  CHECK(postWrites(*rig.qp, 1, 8, &errnum) + postWrites(*second, 1, 8, &errnum) == 16);
  auto third = rig.makeQueuePair();
  CHECK(postWrites(*third, 1, 1, &errnum) == 0);
}

TEST_CASE("a completion queue keeps nothing of a shared receive queue that was closed") {
  FakeDevice device;
  Rig rig(device, 16);
  const auto makeAndClose = [&]() -> std::weak_ptr<ibverbs::SharedWorkQueue> {
    auto srq = std::static_pointer_cast<ibverbs::IbvSharedReceiveQueue>(rig.domain->createSharedReceiveQueue(4, 1));
    rig.makeQueuePair(QpType::Rc, srq)->close();
    srq->close();
    return srq->queue();
  };
  const auto first = makeAndClose();
  makeAndClose();
  CHECK(first.expired());
}

TEST_CASE("the sender of a datagram without a routing header is told, also from a shared receive queue") {
  FakeDevice device;
  Rig rig(device, 16);
  auto srq = rig.domain->createSharedReceiveQueue(4, 1);
  auto datagrams = rig.makeQueuePair(QpType::Ud);
  auto sharing = rig.makeQueuePair(QpType::Ud, srq);
  int errnum = 0;
  REQUIRE(postReceives(*rig.qp, 1, 1, &errnum) == 1);
  REQUIRE(postReceives(*datagrams, 2, 1, &errnum) == 1);
  REQUIRE(postReceives(*srq, 3, 2, &errnum) == 2);
  for (const auto& queuePair : {rig.qp, datagrams, sharing}) device.completeReceives(queuePair->number(), 1);
  device.completeReceives(sharing->number(), 1, IBV_WC_WR_FLUSH_ERR);
  const auto completions = pollAll(*rig.cq);
  REQUIRE(completions.size() == 4);
  CHECK(completions[0].srcQpNum == 0);
  CHECK(completions[1].srcQpNum == FakeDevice::kSender);
  CHECK(completions[2].srcQpNum == FakeDevice::kSender);
  CHECK(completions[3].srcQpNum == 0);
}

TEST_CASE("RESET gives up what is outstanding, and a late completion of that life is not taken for one of the next") {
  FakeDevice device;
  Rig rig(device, 8);
  int errnum = 0;
  REQUIRE(postWrites(*rig.qp, 1, 8, &errnum) == 8);
  const uint64_t staleCookie = device.postedSends(rig.qp->number())[0].cookie;
  QpAttributes a;
  a.mask = kQpState;
  a.state = QpState::Reset;
  rig.qp->modify(a);
  CHECK(postWrites(*rig.qp, 1, 1, &errnum) == 0);
  CHECK(errnum == EINVAL);
  device.injectCompletion(rig.qp->number(), staleCookie, IBV_WC_SUCCESS);
  CHECK(pollAll(*rig.cq).empty());
  const auto second = rig.makeQueuePair();
  CHECK(postWrites(*second, 1, 8, &errnum) == 8);  // the credits are back
}

TEST_CASE(
    "a completion of a request that is not outstanding is a failure of the device, and nothing before it is lost") {
  FakeDevice device;
  Rig rig(device);
  int errnum = 0;
  REQUIRE(postWrites(*rig.qp, 40, 2, &errnum) == 2);
  const uint64_t cookie = device.postedSends(rig.qp->number())[0].cookie;
  device.completeSends(rig.qp->number(), 1);
  device.injectCompletion(rig.qp->number(), cookie, IBV_WC_SUCCESS);  // the same once more
  WorkCompletion completions[4];
  REQUIRE(rig.cq->poll(completions, 4) == 1);
  CHECK(completions[0].wrId == 40);
  CHECK(codeOf([&] { rig.cq->poll(completions, 4); }) == "QUORATE_SYSTEM");
  CHECK(codeOf([&] { rig.cq->poll(completions, 4); }) == "QUORATE_SYSTEM");
}

TEST_CASE("a completion with a cookie that was never given out is a failure of the device") {
  FakeDevice device;
  for (const uint64_t cookie : {~uint64_t{0}, uint64_t{5}}) {
    Rig rig(device);
    WorkCompletion completion;
    device.injectCompletion(rig.qp->number(), cookie, IBV_WC_SUCCESS);
    CHECK(codeOf([&] { rig.cq->poll(&completion, 1); }) == "QUORATE_SYSTEM");
  }
}

TEST_CASE("a completion queue that the device cannot poll any more says so") {
  FakeDevice device;
  Rig rig(device);
  WorkCompletion completion;
  device.pollResult = -1;
  CHECK(codeOf([&] { rig.cq->poll(&completion, 1); }) == "QUORATE_SYSTEM");
  device.pollResult = 0;
}

TEST_CASE("a modification is judged by the state the device is in, not by the one it was left in") {
  FakeDevice device;
  Rig rig(device);
  device.setState(rig.qp->number(), IBV_QPS_ERR);
  device.modifyResult = EINVAL;
  QpAttributes a;
  a.mask = kQpState | kQpAccessFlags;
  a.state = QpState::Rts;
  try {
    rig.qp->modify(a);
    FAIL("RTS was reached from ERR");
  } catch (const VerbsError& error) {
    CHECK(error.code == "QUORATE_QP_STATE");
    CHECK(error.errnum == EINVAL);
    CHECK(std::string(error.what()).find("in state ERR cannot go to RTS") != std::string::npos);
  }
}

TEST_CASE("a value beyond the device's limits is named") {
  FakeDevice device;
  Rig rig(device);
  QpInit init;
  init.sendCq = init.recvCq = rig.cq;
  const auto qp = rig.domain->createQueuePair(init);
  QpAttributes a;
  a.mask = kQpState | kQpPkeyIndex | kQpPort | kQpAccessFlags;
  a.state = QpState::Init;
  a.portNum = 2;
  try {
    qp->modify(a);
    FAIL("port 2 of a device with one port");
  } catch (const VerbsError& error) {
    CHECK(error.code == "QUORATE_QP_STATE");
    CHECK(std::string(error.what()).find("portNum is 2, the device allows at most 1") != std::string::npos);
  }
}

TEST_CASE("a destination that cannot be resolved is explained") {
  FakeDevice device;
  Rig rig(device);
  QpInit init;
  init.sendCq = init.recvCq = rig.cq;
  const auto qp = rig.domain->createQueuePair(init);
  QpAttributes a;
  a.mask = kQpState | kQpPkeyIndex | kQpPort | kQpAccessFlags;
  a.state = QpState::Init;
  qp->modify(a);
  a.state = QpState::Rtr;
  a.mask = kQpState | kQpAv | kQpPathMtu | kQpDestQpn | kQpRqPsn | kQpMaxDestRdAtomic | kQpMinRnrTimer;
  device.modifyResult = ETIMEDOUT;
  try {
    qp->modify(a);
    FAIL("modify returned");
  } catch (const VerbsError& error) {
    CHECK(error.code == "QUORATE_SYSTEM");
    CHECK(error.errnum == ETIMEDOUT);
    CHECK(std::string(error.what()).find("could not be resolved") != std::string::npos);
  }
  device.modifyResult = EINVAL;
  try {
    qp->modify(a);
    FAIL("modify returned");
  } catch (const VerbsError& error) {
    CHECK(error.code == "QUORATE_QP_STATE");
    CHECK(std::string(error.what()).find("av.isGlobal") != std::string::npos);
  }
}

TEST_CASE("objects of another context, and impossible sizes, are refused") {
  FakeDevice device;
  Rig rig(device), other(device);
  QpInit init;
  CHECK(codeOf([&] { rig.domain->createQueuePair(init); }) == "QUORATE_INVALID_ARGUMENT");
  init.sendCq = rig.cq;
  init.recvCq = other.cq;
  CHECK(codeOf([&] { rig.domain->createQueuePair(init); }) == "QUORATE_INVALID_ARGUMENT");
  init.recvCq = rig.cq;
  init.cap.maxSendWr = 4097;
  CHECK(codeOf([&] { rig.domain->createQueuePair(init); }) == "QUORATE_OUT_OF_RANGE");
  init.cap.maxSendWr = 8;
  init.cap.maxSendSge = 0;
  CHECK(codeOf([&] { rig.domain->createQueuePair(init); }) == "QUORATE_OUT_OF_RANGE");
  init.type = static_cast<QpType>(8);
  CHECK(codeOf([&] { rig.domain->createQueuePair(init); }) == "QUORATE_INVALID_ARGUMENT");
  CHECK(codeOf([&] { rig.context->createCompletionQueue(0, nullptr); }) == "QUORATE_OUT_OF_RANGE");
  CHECK(codeOf([&] { rig.context->createCompletionQueue(4097, nullptr); }) == "QUORATE_OUT_OF_RANGE");
  CHECK(codeOf([&] { rig.context->createCompletionQueue(8, other.context->createCompletionChannel()); }) ==
        "QUORATE_INVALID_ARGUMENT");
  CHECK(codeOf([&] { rig.context->queryPort(0); }) == "QUORATE_OUT_OF_RANGE");
  CHECK(codeOf([&] { rig.context->queryGids(2); }) == "QUORATE_OUT_OF_RANGE");
  CHECK(codeOf([&] { rig.cq->requestNotify(false); }) == "QUORATE_INVALID_ARGUMENT");

  const auto memory = rig.context->allocateMemory({4096, false, "", false});
  const auto registering = [&](size_t offset, size_t length, uint32_t access) {
    return codeOf([&] { rig.domain->registerMemory(memory, offset, length, access); });
  };
  CHECK(registering(0, 0, 0) == "QUORATE_OUT_OF_RANGE");
  CHECK(registering(0, 4097, 0) == "QUORATE_OUT_OF_RANGE");
  CHECK(registering(4096, 1, 0) == "QUORATE_OUT_OF_RANGE");
  CHECK(registering(SIZE_MAX, 2, 0) == "QUORATE_OUT_OF_RANGE");
  CHECK(registering(1, SIZE_MAX, 0) == "QUORATE_OUT_OF_RANGE");
  CHECK(registering(0, 64, kAccessRemoteWrite) == "QUORATE_INVALID_ARGUMENT");
  CHECK(registering(0, 64, kAccessRemoteAtomic) == "QUORATE_INVALID_ARGUMENT");
  CHECK(registering(0, 64, 1u << 21) == "QUORATE_INVALID_ARGUMENT");  // relaxed ordering
  CHECK(codeOf([&] { rig.domain->registerMemory(nullptr, 0, 64, 0); }) == "QUORATE_INVALID_ARGUMENT");
  memory->close();
  CHECK(registering(0, 64, 0) == "QUORATE_CLOSED");
}

TEST_CASE("a forked child that drops its copies of the objects leaves the parent's alone") {
  FakeDevice device;
  Rig rig(device);
  const auto memory = rig.context->allocateMemory({4096, false, "", false});
  const auto region = rig.domain->registerMemory(memory, 0, 4096, 0);
  const pid_t child = test::forkChild([&] {
    region->close();
    rig.context->close();
    // In the child the copies count as closed, and no call reached the device.
    return region->closed() && rig.qp->closed() && device.deregCalls == 0 && device.liveObjects == 4 ? 0 : 1;
  });
  CHECK(test::waitForChild(child) == 0);
  CHECK_FALSE(region->closed());
}

TEST_CASE("close waits for calls in progress, whatever other threads are doing") {
  FakeDevice device;
  for (int round = 0; round < 20; round++) {
    Rig rig(device);
    const uint32_t number = rig.qp->number();
    std::atomic<int> started{0};
    std::atomic<bool> posterEnded{false};
    std::atomic<bool> closedSeen[3] = {false, false, false};
    std::thread poster([&] {
      int errnum = 0;
      started++;
      try {
        for (;;) postWrites(*rig.qp, 1, 3, &errnum);
      } catch (const VerbsError& error) {
        closedSeen[0] = error.code == "QUORATE_CLOSED";
      }
      posterEnded = true;
    });
    std::thread completer([&] {
      started++;
      while (!posterEnded) device.completeSends(number, 3);
    });
    std::thread poller([&] {
      WorkCompletion completions[8];
      started++;
      try {
        for (;;) rig.cq->poll(completions, 8);
      } catch (const VerbsError& error) {
        closedSeen[1] = error.code == "QUORATE_CLOSED";
      }
    });
    std::thread asker([&] {
      started++;
      try {
        for (;;) rig.qp->query();
      } catch (const VerbsError& error) {
        closedSeen[2] = error.code == "QUORATE_CLOSED";
      }
    });
    while (started < 4) std::this_thread::yield();
    for (int i = 0; i < round * 50; i++) std::this_thread::yield();
    rig.context->close();
    poster.join();
    completer.join();
    poller.join();
    asker.join();
    CHECK(closedSeen[0]);
    CHECK(closedSeen[1]);
    CHECK(closedSeen[2]);
    CHECK_FALSE(device.usedAfterDestroy);
    CHECK(device.liveObjects == 0);
  }
}

TEST_CASE("a queue is not destroyed while a call is inside it") {
  FakeDevice device;
  Rig rig(device);
  device.lingerInCalls = true;
  bool polls = false;
  SUBCASE("polling") {
    polls = true;
  }
  SUBCASE("posting") {}
  std::thread caller([&] {
    int errnum = 0;
    WorkCompletion completion;
    if (polls) {
      rig.cq->poll(&completion, 1);
    } else {
      postWrites(*rig.qp, 1, 1, &errnum);
    }
  });
  while ((polls ? device.insidePolls : device.insidePosts) == 0) std::this_thread::yield();
  // Closing the queue pair polls once, too, to take in what it left behind; the queue itself must wait for the caller.
  if (polls) {
    rig.cq->close();
  } else {
    rig.qp->close();
  }
  caller.join();
  CHECK_FALSE(device.usedAfterDestroy);
}

TEST_CASE("two threads that close the same objects, parents and children, both return") {
  FakeDevice device;
  for (int round = 0; round < 50; round++) {
    Rig rig(device);
    std::thread other([&] {
      rig.qp->close();
      rig.cq->close();
      rig.domain->close();
    });
    rig.context->close();
    other.join();
    CHECK(device.liveObjects == 0);
  }
}

TEST_CASE("positions of a work queue wrap around 32 bits") {
  ibverbs::WorkQueue queue(false, 5);
  uint32_t position = 0;
  uint64_t wrId = 0;
  // Once around in large steps is not possible with 5 entries, so start near the end by giving up.
  queue.publish(0xfffffffd);
  CHECK(queue.retireAll() == 0xfffffffd);
  for (uint64_t i = 0; i < 10; i++) {
    REQUIRE(queue.freeEntries() == 5);
    position = queue.nextPosition();
    CHECK(static_cast<uint32_t>(queue.prepare(position, i)) == position);
    CHECK_FALSE(queue.outstanding(position));
    queue.publish(position + 1);
    CHECK(queue.outstanding(position));
    CHECK_FALSE(queue.outstanding(position + 1));
    CHECK_FALSE(queue.outstanding(position - 1));
    CHECK(queue.freeEntries() == 4);
    CHECK(queue.retireThrough(position, &wrId) == 1);
    CHECK(wrId == i);
    CHECK_FALSE(queue.outstanding(position));
  }
}

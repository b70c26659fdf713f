// UD on shared memory: what becomes of a queue pair when the process that was delivering a datagram to it dies or
// stops, and SQE of the unreliable types.
#include <signal.h>
#include <unistd.h>

#include "provider/shm/layout.h"
#include "provider/shm/process_identity.h"
#include "provider/shm/test_hooks.h"
#include "test/child_process.h"
#include "test/shm_fixture.h"
#include "test/shm_held_copy.h"
#include "verbs/grh.h"

namespace quorate::test {
namespace {

constexpr uint32_t kQkey = 77;

void start(QueuePair& qp) {
  QpAttributes a;
  a.mask = kQpState | kQpPkeyIndex | kQpPort | kQpQkey;
  a.state = QpState::Init;
  a.qkey = kQkey;
  qp.modify(a);
  qp.modify(stateAttributes(QpState::Rtr));
  a = stateAttributes(QpState::Rts);
  a.mask |= kQpSqPsn;
  qp.modify(a);
}

std::shared_ptr<QueuePair> datagramQueuePair(Endpoint& end, std::shared_ptr<SharedReceiveQueue> srq = nullptr) {
  QpInit init;
  init.type = QpType::Ud;
  init.srq = std::move(srq);
  init.sendCq = init.recvCq = end.cq;
  auto qp = end.domain->createQueuePair(init);
  start(*qp);
  return qp;
}

struct Datagrams {
  // With `shared` the receiver takes its receives from a shared queue.
  explicit Datagrams(const ShmTestDirectory& directory, bool shared = false)
      : directory(directory), a(directory), b(directory) {
    if (shared) srq = b.domain->createSharedReceiveQueue(1);
    from = datagramQueuePair(a);
    to = datagramQueuePair(b, srq);
    handle = handleIn(a);
  }
  std::shared_ptr<AddressHandle> handleIn(Endpoint& end) {
    AddressVector av;
    av.isGlobal = true;
    av.dgid = gid;
    return end.domain->createAddressHandle(av);
  }
  void post(uint64_t wrId) {
    int errnum = 0;
    const ReceiveWorkRequest receive{wrId, b.coordinates().address, 256, b.region->lkey()};
    REQUIRE((srq != nullptr ? srq->postReceive(&receive, 1, &errnum) : to->postReceive(&receive, 1, &errnum)) == 1);
  }
  SendWorkRequest request(Endpoint& end, AddressHandle& destination) {
    SendWorkRequest request;
    request.opcode = WrOpcode::Send;
    request.sendFlags = kSendSignaled;
    request.localAddress = reinterpret_cast<uint64_t>(end.bytes());
    request.length = 8;
    request.lkey = end.region->lkey();
    request.addressHandle = &destination;
    request.remoteQpNum = to->number();
    request.remoteQkey = kQkey;
    return request;
  }
  void send() {
    const SendWorkRequest request = this->request(a, *handle);
    int errnum = 0;
    REQUIRE(from->postSend(&request, 1, &errnum) == 1);
    CHECK(a.wait().status == static_cast<int>(WcStatus::Success));
  }
  // A process of its own sends, and is killed when it has come so far.
  template <shm::HookPoint where>
  void sendAndDie() {
    const pid_t child = forkChild([&] {
      Endpoint end(directory);
      const auto sender = datagramQueuePair(end);
      const auto destination = handleIn(end);
      shm::testHooks.reached.store([](shm::HookPoint point) {
        if (point == where) kill(getpid(), SIGKILL);
      });
      const SendWorkRequest request = this->request(end, *destination);
      int errnum = 0;
      sender->postSend(&request, 1, &errnum);
      return 0;
    });
    REQUIRE(waitForChild(child) == 256 + SIGKILL);
  }
  shm::QueuePairSlot& slot() { return b.internals().control()->queuePairs[to->number() % shm::kMaxQueuePairs]; }
  bool received() {
    WorkCompletion completion;
    return b.cq->poll(&completion, 1) == 1;
  }

  const ShmTestDirectory& directory;
  Endpoint a, b;
  const Gid gid = b.coordinates().gid;
  std::shared_ptr<SharedReceiveQueue> srq;
  std::shared_ptr<QueuePair> from, to;
  std::shared_ptr<AddressHandle> handle;
};

uint64_t claimOf(pid_t pid, uint64_t startTime) {
  return static_cast<uint64_t>(pid) << 42 | startTime;
}

}  // namespace

TEST_CASE("shm: the routing header of a datagram is read as it was written") {
  Grh grh;
  grh.trafficClass = 0xa5;
  grh.flowLabel = 0x54321;
  grh.payloadLength = 0x1234;
  grh.hopLimit = 7;
  for (int i = 0; i < 16; i++)
    grh.sgid.raw[i] = static_cast<uint8_t>(i), grh.dgid.raw[i] = static_cast<uint8_t>(16 + i);
  uint8_t bytes[kGrhBytes];
  writeGrh(grh, bytes);
  Grh again;
  REQUIRE(readGrh(bytes, &again));
  CHECK(again.trafficClass == grh.trafficClass);
  CHECK(again.flowLabel == grh.flowLabel);
  CHECK(again.payloadLength == grh.payloadLength);
  CHECK(again.hopLimit == grh.hopLimit);
  CHECK(again.sgid == grh.sgid);
  CHECK(again.dgid == grh.dgid);
  bytes[0] = 0x45;
  CHECK_FALSE(readGrh(bytes, &again));
}

TEST_CASE("shm: the claim of a dead sender is taken over, and what it held with it") {
  ShmTestDirectory directory;
  Datagrams rig(directory);
  const pid_t dead = forkChild([] { return 0; });
  waitForChild(dead);
  rig.slot().sender.store(claimOf(dead, 1));
  rig.slot().word.store(shm::word::taken(rig.slot().word.load(), shm::OperationKind::Send, 3));
  rig.post(1);
  rig.send();
  CHECK(rig.received());
  CHECK(rig.slot().sender.load() == 0);
  CHECK_FALSE(shm::word::busy(rig.slot().word.load()));
}

TEST_CASE("shm: while a living sender holds the queue pair, others' datagrams are dropped and it stays unharmed") {
  ShmTestDirectory directory;
  Datagrams rig(directory);
  rig.post(1);
  rig.slot().sender.store(claimOf(getppid(), 0));  // start time unknown: counts as running
  rig.send();
  CHECK_FALSE(rig.received());
  CHECK(rig.slot().sender.load() == claimOf(getppid(), 0));
  rig.slot().sender.store(0);
  rig.send();
  CHECK(rig.received());
}

TEST_CASE("shm: a sender that died, and of whom nobody can tell, holds a queue pair no longer than until RESET") {
  ShmTestDirectory directory;
  Datagrams rig(directory);
  rig.slot().sender.store(1);  // of another PID namespace
  rig.post(1);
  rig.send();
  CHECK_FALSE(rig.received());
  rig.to->modify(stateAttributes(QpState::Reset));
  start(*rig.to);
  rig.post(2);
  rig.send();
  CHECK(rig.received());
}

TEST_CASE("shm: a queue pair whose sender died in mid-message can be closed, and its place is used again") {
  ShmTestDirectory directory;
  Datagrams rig(directory);
  const pid_t dead = forkChild([] { return 0; });
  waitForChild(dead);
  rig.slot().sender.store(claimOf(dead, 1));
  rig.slot().word.store(shm::word::taken(rig.slot().word.load(), shm::OperationKind::Send, 3));
  rig.to->close();
  CHECK((rig.slot().word.load() & shm::word::kStuck) == 0);
}

TEST_CASE("shm: the shared receive that a dead sender had claimed is filled by the next datagram") {
  ShmTestDirectory directory;
  Datagrams rig(directory, true);
  rig.post(1);
  SUBCASE("when it had just claimed it") {
    rig.sendAndDie<shm::HookPoint::AfterClaim>();
  }
  SUBCASE("when it had filled it") {
    rig.sendAndDie<shm::HookPoint::BeforeRelease>();
  }
  rig.send();
  CHECK(rig.received());
  rig.post(2);
  rig.send();
  CHECK(rig.received());
}

TEST_CASE("shm: no byte of a datagram lands after its receive was revoked") {
  ShmTestDirectory directory;
  Datagrams rig(directory);
  rig.post(1);
  std::memset(rig.a.bytes(), 0x99, 8);
  const auto send = [&] { rig.send(); };
  SUBCASE("by deregistration") {
    revokeInMidCopy(rig.b, send, [&] { rig.b.region->close(); });
  }
  SUBCASE("by the error state") {
    revokeInMidCopy(rig.b, send, [&] { rig.to->modify(stateAttributes(QpState::Err)); });
    CHECK(rig.b.wait().status == static_cast<int>(WcStatus::WrFlushErr));
  }
  SUBCASE("by closing the queue pair") {
    revokeInMidCopy(rig.b, send, [&] { rig.to->close(); });
  }
}

TEST_CASE("shm: a local error stops the send queue of UC only, and RTS starts it again") {
  ShmTestDirectory directory;
  Endpoint a(directory), b(directory);
  const auto make = [](Endpoint& end) {
    QpInit init;
    init.type = QpType::Uc;
    init.sendCq = init.recvCq = end.cq;
    end.qp->close();
    end.qp = end.domain->createQueuePair(init);
    end.qp->modify(initAttributes(kAccessRemoteWrite));
  };
  make(a);
  make(b);
  const auto connect = [](Endpoint& end, const Coordinates& peer) {
    QpAttributes rtr = rtrAttributes(peer);
    rtr.mask &= ~static_cast<uint32_t>(kQpMaxDestRdAtomic | kQpMinRnrTimer);
    end.qp->modify(rtr);
    QpAttributes rts = stateAttributes(QpState::Rts);
    rts.mask |= kQpSqPsn;
    end.qp->modify(rts);
  };
  connect(a, b.coordinates());
  connect(b, a.coordinates());
  SendWorkRequest request = a.request(WrOpcode::RdmaWrite, 0, 8, b.coordinates());
  request.lkey ^= 0x5000;
  CHECK(a.run(request) == WcStatus::LocProtErr);
  CHECK(a.qp->query().state == QpState::Sqe);
  request = a.request(WrOpcode::RdmaWrite, 0, 8, b.coordinates());
  CHECK(a.run(request) == WcStatus::WrFlushErr);
  CHECK(b.run(b.request(WrOpcode::RdmaWrite, 0, 8, a.coordinates())) == WcStatus::Success);  // it still receives
  a.qp->modify(stateAttributes(QpState::Rts));
  a.bytes()[0] = 0x5d;
  CHECK(a.run(request) == WcStatus::Success);
  CHECK(b.bytes()[0] == 0x5d);
}

TEST_CASE("shm: SQD holds requests back until RTS") {
  ShmTestDirectory directory;
  Endpoint a(directory), b(directory);
  connectPair(a, b);
  a.qp->modify(stateAttributes(QpState::Sqd));
  CHECK(a.qp->query().state == QpState::Sqd);
  a.bytes()[0] = 0x66;
  CHECK(a.post(a.request(WrOpcode::RdmaWrite, 0, 8, b.coordinates())) == 0);
  WorkCompletion completion;
  CHECK(a.cq->poll(&completion, 1) == 0);
  CHECK(b.bytes()[0] == 0);
  CHECK(b.run(b.request(WrOpcode::RdmaWrite, 8, 8, a.coordinates(), 8)) == WcStatus::Success);
  a.qp->modify(stateAttributes(QpState::Rts));
  CHECK(a.wait().status == static_cast<int>(WcStatus::Success));
  CHECK(b.bytes()[0] == 0x66);
}

}  // namespace quorate::test

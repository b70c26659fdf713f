// What goes wrong on real devices, and how it is told: statuses of completions, refused modifications, limits.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "provider/ibverbs/completion_queue.h"
#include "provider/ibverbs/context.h"
#include "provider/ibverbs/protection_domain.h"
#include "test/child_process.h"
#include "test/ibverbs_endpoint.h"
#include "verbs/qp_state_table.h"

using namespace quorate;
using test::DeviceEndpoint;
using test::DeviceEndpointOptions;
using test::Pair;
using test::waitForCompletions;
using test::waitForStatus;

namespace {

// Posts one request that must fail, and checks that afterwards both ends refuse everything.
void expectFailure(Pair& pair, const SendWorkRequest& wr, const std::string& expected, bool responderFails = true) {
  CAPTURE(expected);
  pair.b.postReceive(0, 64, 900);
  pair.a.postOne(wr);
  const std::string status = waitForStatus(*pair.a.cq);
  CHECK(status == expected);
  CHECK(pair.a.qp->query().state == QpState::Err);
  pair.a.postOne(pair.a.request(WrOpcode::RdmaWrite, 0, 8, pair.b.at(0), pair.b.region->rkey()));
  CHECK(waitForStatus(*pair.a.cq) == "WR_FLUSH_ERR");
  if (responderFails) {
    const auto flushed = waitForCompletions(*pair.b.cq, 1);
    REQUIRE(flushed.size() == 1);
    CHECK(flushed[0].wrId == 900);
    CHECK(wcStatusName(flushed[0].status) == "WR_FLUSH_ERR");
    CHECK(flushed[0].opcode == static_cast<int>(WcOpcode::Recv));
    CHECK(pair.b.qp->query().state == QpState::Err);
  }
}

}  // namespace

TEST_CASE("device: a wrong key, an address outside, and a missing right of the region are REM_ACCESS_ERR") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  DeviceEndpointOptions readOnly;
  readOnly.regionAccess = kAccessLocalWrite | kAccessRemoteRead;
  Pair pair(devices, {}, readOnly);
  const auto full = pair.b.domain->registerMemory(pair.b.memory, 0, 4096, kAccessLocalWrite | kAccessRemoteWrite);
  std::memset(pair.a.memory->data(), 0xee, 64);
  SUBCASE("wrong key") {
    expectFailure(pair, pair.a.request(WrOpcode::RdmaWrite, 0, 8, full->address(), full->rkey() ^ 0x80),
                  "REM_ACCESS_ERR");
  }
  SUBCASE("one byte beyond the end") {
    expectFailure(pair, pair.a.request(WrOpcode::RdmaWrite, 0, 8, full->address() + 4089, full->rkey()),
                  "REM_ACCESS_ERR");
  }
  SUBCASE("before the start") {
    expectFailure(pair, pair.a.request(WrOpcode::RdmaWrite, 0, 8, full->address() - 8, full->rkey()), "REM_ACCESS_ERR");
  }
  SUBCASE("an address that wraps around") {
    expectFailure(pair, pair.a.request(WrOpcode::RdmaWrite, 0, 8, ~uint64_t{0} - 3, full->rkey()), "REM_ACCESS_ERR");
  }
  SUBCASE("no right to write") {
    expectFailure(pair, pair.a.request(WrOpcode::RdmaWrite, 0, 8, pair.b.at(0), pair.b.region->rkey()),
                  "REM_ACCESS_ERR");
  }
  SUBCASE("no right to read") {
    expectFailure(pair, pair.a.request(WrOpcode::RdmaRead, 0, 8, full->address(), full->rkey()), "REM_ACCESS_ERR");
  }
  SUBCASE("no right to do atomics") {
    expectFailure(pair, pair.a.request(WrOpcode::FetchAdd, 0, 8, full->address(), full->rkey()), "REM_ACCESS_ERR");
  }
  SUBCASE("a region that was deregistered") {
    const SendWorkRequest wr = pair.a.request(WrOpcode::RdmaWrite, 0, 8, full->address(), full->rkey());
    full->close();
    expectFailure(pair, wr, "REM_ACCESS_ERR");
  }
  for (size_t i = 0; i < 4200; i++) REQUIRE(pair.b.memory->data()[i] == 0);
}

TEST_CASE("device: an operation that the responder's queue pair does not allow is REM_INV_REQ_ERR") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  DeviceEndpointOptions none;
  none.qpAccess = 0;
  Pair pair(devices, {}, none);
  SUBCASE("WRITE") {
    expectFailure(pair, pair.a.request(WrOpcode::RdmaWrite, 0, 8, pair.b.at(0), pair.b.region->rkey()),
                  "REM_INV_REQ_ERR");
  }
  SUBCASE("READ") {
    expectFailure(pair, pair.a.request(WrOpcode::RdmaRead, 0, 8, pair.b.at(0), pair.b.region->rkey()),
                  "REM_INV_REQ_ERR");
  }
  SUBCASE("atomic") {
    expectFailure(pair, pair.a.request(WrOpcode::CompareSwap, 0, 8, pair.b.at(0), pair.b.region->rkey()),
                  "REM_INV_REQ_ERR");
  }
}

TEST_CASE("device: a local buffer that its key does not cover is LOC_PROT_ERR") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  SendWorkRequest wr = pair.a.request(WrOpcode::RdmaWrite, 0, 64, pair.b.at(0), pair.b.region->rkey());
  SUBCASE("wrong key") {
    wr.lkey ^= 0x80;
  }
  SUBCASE("outside the region") {
    wr.localAddress = pair.a.at(pair.a.region->length() - 8);
  }
  pair.a.postOne(wr);
  const std::string status = waitForStatus(*pair.a.cq);
  if (pair.a.context->device().driver == "rxe" && wr.lkey != pair.a.region->lkey()) {
    CHECK(status == "LOC_QP_OP_ERR");  // its word for an unknown key
  } else {
    CHECK(status == "LOC_PROT_ERR");
  }
  CHECK(pair.b.memory->data()[0] == 0);
}

TEST_CASE("device: a SEND without a posted receive is RNR_RETRY_EXC_ERR") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  pair.a.postOne(pair.a.request(WrOpcode::Send, 0, 8, 0, 0));
  CHECK(waitForStatus(*pair.a.cq) == "RNR_RETRY_EXC_ERR");
}

TEST_CASE("device: a message longer than the posted receive fails at both ends") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  pair.b.postReceive(0, 16, 5);
  pair.a.postOne(pair.a.request(WrOpcode::Send, 0, 64, 0, 0));
  const bool rxe = pair.b.context->device().driver == "rxe";  // which takes it for an error of its own
  CHECK(waitForStatus(*pair.a.cq) == (rxe ? "REM_OP_ERR" : "REM_INV_REQ_ERR"));
  CHECK(waitForStatus(*pair.b.cq) == (rxe ? "LOC_QP_OP_ERR" : "LOC_LEN_ERR"));
}

TEST_CASE("device: a receive posted to a queue pair in ERR is flushed") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  QpAttributes a;
  a.mask = kQpState;
  a.state = QpState::Err;
  pair.b.qp->modify(a);
  pair.b.postReceive(0, 64, 55);
  const auto completions = waitForCompletions(*pair.b.cq, 1, 2000);
  REQUIRE(completions.size() == 1);
  CHECK(completions[0].wrId == 55);
  CHECK(wcStatusName(completions[0].status) == "WR_FLUSH_ERR");
}

TEST_CASE("device: packet sequence numbers that do not match are RETRY_EXC_ERR") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  DeviceEndpoint a(devices[0]), b(devices[1]);
  a.connect(b.address());
  test::Address wrong = a.address();
  wrong.psn = (wrong.psn + 0x400000) & 0xffffff;
  b.connect(wrong);
  a.postOne(a.request(WrOpcode::RdmaWrite, 0, 8, b.at(0), b.region->rkey()));
  CHECK(waitForStatus(*a.cq) == "RETRY_EXC_ERR");
  CHECK(b.memory->data()[0] == 0);
}

TEST_CASE("device: a peer whose process was killed is RETRY_EXC_ERR") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  int toParent[2], toChild[2];
  REQUIRE(pipe(toParent) == 0);
  REQUIRE(pipe(toChild) == 0);
  const pid_t child = test::forkChild([&] {
    DeviceEndpoint end(devices[1]);
    const test::Address own = end.address();
    test::Address peer;
    if (write(toParent[1], &own, sizeof(own)) != sizeof(own)) return 1;
    if (read(toChild[0], &peer, sizeof(peer)) != sizeof(peer)) return 2;
    end.connect(peer);
    if (write(toParent[1], "c", 1) != 1) return 3;
    for (;;) pause();
  });
  test::Address peer;
  REQUIRE(read(toParent[0], &peer, sizeof(peer)) == sizeof(peer));
  DeviceEndpoint end(devices[0]);
  end.connect(peer);
  const test::Address own = end.address();
  REQUIRE(write(toChild[1], &own, sizeof(own)) == sizeof(own));
  char byte;
  REQUIRE(read(toParent[0], &byte, 1) == 1);
  end.postOne(end.request(WrOpcode::RdmaWrite, 0, 8, peer.memory, peer.rkey));
  CHECK(waitForStatus(*end.cq) == "SUCCESS");
  kill(child, SIGSTOP);  // a stopped process is still written to
  end.postOne(end.request(WrOpcode::RdmaWrite, 0, 8, peer.memory, peer.rkey));
  CHECK(waitForStatus(*end.cq) == "SUCCESS");
  kill(child, SIGKILL);
  CHECK(test::waitForChild(child) == 256 + SIGKILL);
  end.postOne(end.request(WrOpcode::RdmaWrite, 0, 8, peer.memory, peer.rkey));
  CHECK(waitForStatus(*end.cq) == "RETRY_EXC_ERR");
  for (const int fd : {toParent[0], toParent[1], toChild[0], toChild[1]}) close(fd);
}

TEST_CASE("device: requests refused in INIT are not sent later") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  DeviceEndpoint a(devices[0]), b(devices[1]);
  a.memory->data()[0] = 99;
  a.toInit();
  const SendWorkRequest wr = a.request(WrOpcode::RdmaWrite, 0, 8, b.at(0), b.region->rkey(), 7);
  int errnum = 0;
  CHECK(a.qp->postSend(&wr, 1, &errnum) == 0);
  CHECK(errnum == EINVAL);
  a.toRtr(b.address());
  CHECK(a.qp->postSend(&wr, 1, &errnum) == 0);
  CHECK(errnum == EINVAL);
  a.toRts();
  b.connect(a.address());
  a.postOne(a.request(WrOpcode::RdmaWrite, 8, 8, b.at(8), b.region->rkey(), 8));
  const auto completions = waitForCompletions(*a.cq, 1);
  REQUIRE(completions.size() == 1);
  CHECK(completions[0].wrId == 8);
  CHECK(b.memory->data()[0] == 0);
}

TEST_CASE("device: a locked-memory limit that is too small is explained with the size and the limit") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  if (geteuid() != 0) return;  // only root can become a user whom the limit binds
  const pid_t child = test::forkChild([&] {
    const rlimit limit{65536, 65536};
    if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0 || setresuid(65534, 65534, 65534) != 0) return 1;
    const auto context = makeIbverbsProvider()->openDevice(devices[0]);
    const auto domain = context->allocateProtectionDomain();
    const auto memory = context->allocateMemory({1 << 20, false, "", false});
    const auto small = domain->registerMemory(memory, 0, 8192, kAccessLocalWrite);
    try {
      domain->registerMemory(memory, 0, 1 << 20, kAccessLocalWrite);
    } catch (const VerbsError& error) {
      const std::string message = error.what();
      for (const char* part : {"1048576", "65536", "8192", "LimitMEMLOCK", "ulimit -l"}) {
        if (message.find(part) == std::string::npos) return 2;
      }
      return error.code == "QUORATE_MEMLOCK" ? 0 : 3;
    }
    return 4;
  });
  CHECK(test::waitForChild(child) == 0);
}

TEST_CASE("device: a refused modification names the state, the transition and the attributes") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  const auto refusal = [](QueuePair& qp, const QpAttributes& attributes) {
    try {
      qp.modify(attributes);
    } catch (const VerbsError& error) {
      CHECK(error.code == "QUORATE_QP_STATE");
      CHECK(error.syscall == "ibv_modify_qp");
      return std::string(error.what());
    }
    return std::string("not refused");
  };
  QpAttributes a;
  a.mask = kQpState | kQpAccessFlags;
  a.state = QpState::Init;
  CHECK(refusal(*pair.a.qp, a).find("in state RTS cannot go to INIT") != std::string::npos);
  // By an error of its own the queue pair goes to ERR, and the message says so.
  pair.a.postOne(pair.a.request(WrOpcode::RdmaWrite, 0, 8, pair.b.at(0), pair.b.region->rkey() ^ 1));
  CHECK(waitForStatus(*pair.a.cq) == "REM_ACCESS_ERR");
  a.state = QpState::Rts;
  const std::string afterError = refusal(*pair.a.qp, a);
  CHECK(afterError.find("in state ERR cannot go to RTS") != std::string::npos);
  CHECK(afterError.find("an error moved it") != std::string::npos);

  DeviceEndpoint end(devices[0]);
  end.toInit();
  a = {};
  a.state = QpState::Rtr;
  a.mask = kQpState | kQpAv | kQpPathMtu | kQpDestQpn | kQpRqPsn | kQpMaxDestRdAtomic | kQpMinRnrTimer;
  a.av.isGlobal = true;
  a.av.dgid = pair.b.gid.gid;
  a.av.sgidIndex = 255;  // no such GID
  const std::string noGid = refusal(*end.qp, a);
  CAPTURE(noGid);
  CHECK(noGid.find("refused by the device") != std::string::npos);
  CHECK(noGid.find("GID") != std::string::npos);
  CHECK(end.qp->query().state == QpState::Init);
  end.toRtr(pair.b.address());  // and it can still be done right
  CHECK(end.qp->query().state == QpState::Rtr);
}

TEST_CASE("device: RESET forgets outstanding receives, and the queue pair serves again") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  Pair pair(devices);
  for (uint64_t i = 0; i < 20; i++) pair.b.postReceive(0, 64, i);
  QpAttributes a;
  a.mask = kQpState;
  a.state = QpState::Reset;
  pair.b.qp->modify(a);
  CHECK(pair.b.qp->query().state == QpState::Reset);
  WorkCompletion completion;
  CHECK(pair.b.cq->poll(&completion, 1) == 0);
  pair.a.renewQueuePair();
  pair.a.connect(pair.b.address());
  pair.b.connect(pair.a.address());
  for (uint64_t i = 0; i < 64; i++) pair.b.postReceive(0, 64, 100 + i);
  pair.a.postOne(pair.a.request(WrOpcode::Send, 0, 8, 0, 0));
  const auto completions = waitForCompletions(*pair.b.cq, 1);
  REQUIRE(completions.size() == 1);
  CHECK(completions[0].wrId == 100);
}

// The table against the device itself, past our own check: what the table refuses, the device must refuse (or the
// table would forbid what works), and what the table allows, the device must take (or the table would be no
// explanation). Each try is a raw ibv_modify_qp on a queue pair in the state in question.
TEST_CASE("device: the table of transitions agrees with the device") {
  const auto devices = test::testDevicesOrSkip();
  if (devices.empty()) return;
  const auto context = std::dynamic_pointer_cast<ibverbs::IbvContext>(makeIbverbsProvider()->openDevice(devices[0]));
  const auto domain = std::dynamic_pointer_cast<ibverbs::IbvProtectionDomain>(context->allocateProtectionDomain());
  const auto cq = std::dynamic_pointer_cast<ibverbs::IbvCompletionQueue>(context->createCompletionQueue(16, nullptr));
  const GidEntry gid = chooseGid(context->queryGids(1), context->queryPort(1));
  const ibverbs::Library& lib = context->lib();
  const QpState kStates[] = {QpState::Reset, QpState::Init, QpState::Rtr, QpState::Rts,
                             QpState::Sqd,   QpState::Sqe,  QpState::Err};
  std::vector<uint32_t> bits;
  for (uint32_t bit = kQpCurState; bit <= kQpDestQpn; bit <<= 1) {
    // Those that QpAttributes can express.
    if ((bit & (kQpCurState | kQpAccessFlags | kQpPkeyIndex | kQpPort | kQpQkey | kQpAv | kQpPathMtu | kQpTimeout |
                kQpRetryCnt | kQpRnrRetry | kQpRqPsn | kQpMaxQpRdAtomic | kQpMinRnrTimer | kQpSqPsn |
                kQpMaxDestRdAtomic | kQpDestQpn)) != 0) {
      bits.push_back(bit);
    }
  }
  int tried = 0, refusedByBoth = 0, allowedByBoth = 0;
  std::set<std::string> deviceLaxer, deviceStricter;

  for (const QpType type : {QpType::Rc, QpType::Uc, QpType::Ud}) {
    ibv_qp_init_attr init{};
    init.send_cq = init.recv_cq = cq->handle();
    init.cap = {4, 4, 1, 1, 0};
    init.qp_type = static_cast<ibv_qp_type>(type);
    ibv_qp_attr good{};
    const auto setGood = [&](uint32_t qpNumber, QpState current) {
      std::memset(&good, 0, sizeof(good));
      good.cur_qp_state = static_cast<ibv_qp_state>(current);
      good.port_num = 1;
      good.qkey = 0x1111;
      good.path_mtu = IBV_MTU_1024;
      good.dest_qp_num = qpNumber;
      good.max_dest_rd_atomic = good.max_rd_atomic = 1;
      good.min_rnr_timer = 12;
      good.timeout = 14;
      good.retry_cnt = good.rnr_retry = 7;
      good.ah_attr.is_global = 1;
      good.ah_attr.port_num = 1;
      good.ah_attr.grh.sgid_index = static_cast<uint8_t>(gid.index);
      good.ah_attr.grh.hop_limit = 64;
      std::memcpy(good.ah_attr.grh.dgid.raw, gid.gid.raw, 16);
    };
    const auto modify = [&](ibv_qp* qp, QpState to, uint32_t mask) {
      good.qp_state = static_cast<ibv_qp_state>(to);
      ibv_qp_attr copy = good;
      return lib.modifyQp(qp, &copy, static_cast<int>(mask | kQpState));
    };
    const uint32_t initMask = kQpPkeyIndex | kQpPort | (type == QpType::Ud ? kQpQkey : kQpAccessFlags);
    const uint32_t rtrMask = type == QpType::Ud ? 0u
                             : type == QpType::Uc
                                 ? kQpAv | kQpPathMtu | kQpDestQpn | kQpRqPsn
                                 : kQpAv | kQpPathMtu | kQpDestQpn | kQpRqPsn | kQpMaxDestRdAtomic | kQpMinRnrTimer;
    const uint32_t rtsMask =
        kQpSqPsn | (type == QpType::Rc ? kQpMaxQpRdAtomic | kQpRetryCnt | kQpRnrRetry | kQpTimeout : 0u);
    const auto bring = [&](QpState state) {
      ibv_qp* qp = lib.createQp(domain->handle(), &init);
      REQUIRE(qp != nullptr);
      setGood(qp->qp_num, QpState::Reset);
      if (state == QpState::Reset) return qp;
      REQUIRE(modify(qp, QpState::Init, initMask) == 0);
      if (state == QpState::Init) return qp;
      if (state == QpState::Err) {
        REQUIRE(modify(qp, QpState::Err, 0) == 0);
        return qp;
      }
      REQUIRE(modify(qp, QpState::Rtr, rtrMask) == 0);
      if (state == QpState::Rtr) return qp;
      REQUIRE(modify(qp, QpState::Rts, rtsMask) == 0);
      if (state == QpState::Sqd) {
        REQUIRE(modify(qp, QpState::Sqd, 0) == 0);
        // Nothing but ERR and RESET is allowed while the send queue drains.
        ibv_qp_attr drained{};
        ibv_qp_init_attr unused{};
        for (int tries = 0; tries < 100000; tries++) {
          REQUIRE(lib.queryQp(qp, &drained, IBV_QP_STATE, &unused) == 0);
          if (drained.sq_draining == 0) break;
        }
        REQUIRE(drained.sq_draining == 0);
      }
      return qp;
    };
    for (const QpState from : kStates) {
      if (from == QpState::Sqe) continue;  // cannot be entered at will
      ibv_qp* qp = bring(from);
      for (const QpState to : kStates) {
        // The required attributes, all but one of them, and one too many.
        const uint32_t base = from == QpState::Reset && to == QpState::Init ? initMask
                              : from == QpState::Init && to == QpState::Rtr ? rtrMask
                              : from == QpState::Rtr && to == QpState::Rts  ? rtsMask
                                                                            : 0u;
        std::set<uint32_t> masks = {base};
        for (const uint32_t bit : bits) masks.insert(base ^ bit);
        for (const uint32_t mask : masks) {
          QpAttributes ours;
          ours.mask = mask | kQpState;
          ours.state = to;
          ours.curState = from;
          ours.av.isGlobal = true;
          const auto explanation = explainQpTransition(type, from, ours);
          setGood(qp->qp_num, from);
          const bool deviceAllows = modify(qp, to, mask) == 0;
          tried++;
          if (deviceAllows) {
            lib.destroyQp(qp);
            qp = bring(from);
          }
          const std::string name = qpTypeName(type) + " " + qpStateName(from) + " -> " + qpStateName(to) + " with " +
                                   qpAttributeNames(mask | kQpState);
          if (explanation && deviceAllows) deviceLaxer.insert(name);
          if (!explanation && !deviceAllows) deviceStricter.insert(name);
          refusedByBoth += explanation && !deviceAllows;
          allowedByBoth += !explanation && deviceAllows;
        }
      }
      lib.destroyQp(qp);
    }
  }
  for (const std::string& name : deviceLaxer) MESSAGE("the device allows, the table refuses: ", name);
  for (const std::string& name : deviceStricter) MESSAGE("the device refuses, the table allows: ", name);
  MESSAGE(tried, " modifications tried: ", refusedByBoth, " refused and ", allowedByBoth, " allowed by both");
  CHECK(tried > 1500);
  CHECK(allowedByBoth > 50);
  CHECK(deviceLaxer.empty());
  CHECK(deviceStricter.empty());
}

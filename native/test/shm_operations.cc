// Every operation of the shm provider, and every way in which one fails.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <set>
#include <thread>

#include "provider/shm/test_hooks.h"
#include "test/child_process.h"
#include "test/shm_fixture.h"

namespace quorate::test {
namespace {

struct Pair {
  explicit Pair(const EndpointOptions& optionsA = {}, const EndpointOptions& optionsB = {})
      : a(directory, optionsA), b(directory, optionsB) {
    connectPair(a, b);
    toB = b.coordinates();
  }
  ShmTestDirectory directory;
  Endpoint a, b;
  Coordinates toB;
};

EndpointOptions with(const std::function<void(EndpointOptions&)>& change) {
  EndpointOptions options;
  change(options);
  return options;
}

bool bothInError(Pair& pair) {
  return pair.a.qp->query().state == QpState::Err && pair.b.qp->query().state == QpState::Err;
}

TEST_CASE("shm: WRITE places the bytes and READ fetches them") {
  Pair pair;
  for (uint32_t i = 0; i < 1000; i++) pair.a.bytes()[i] = static_cast<uint8_t>(i * 7 + 1);
  CHECK(pair.a.run(pair.a.request(WrOpcode::RdmaWrite, 0, 1000, pair.toB, 24)) == WcStatus::Success);
  CHECK(std::memcmp(pair.b.bytes() + 24, pair.a.bytes(), 1000) == 0);
  CHECK(pair.b.bytes()[23] == 0);
  CHECK(pair.b.bytes()[1024] == 0);

  CHECK(pair.a.post(pair.a.request(WrOpcode::RdmaRead, 4096, 1000, pair.toB, 24)) == 0);
  const WorkCompletion completion = pair.a.wait();
  CHECK(completion.status == 0);
  CHECK(completion.opcode == static_cast<int>(WcOpcode::RdmaRead));
  CHECK(completion.byteLen == 1000);
  CHECK(completion.wrId == 7);
  CHECK(completion.qpNum == pair.a.qp->number());
  CHECK(std::memcmp(pair.a.bytes() + 4096, pair.a.bytes(), 1000) == 0);
}

TEST_CASE("shm: transfers of several chunks arrive whole") {
  const auto large = with([](auto& o) { o.memoryBytes = 3 << 20; });
  Pair pair(large, large);
  const uint32_t length = (1 << 20) + 12345;
  for (uint32_t i = 0; i < length; i++) pair.a.bytes()[i] = static_cast<uint8_t>(i * 31 >> 3);
  CHECK(pair.a.run(pair.a.request(WrOpcode::RdmaWrite, 0, length, pair.toB, 3)) == WcStatus::Success);
  CHECK(std::memcmp(pair.b.bytes() + 3, pair.a.bytes(), length) == 0);
  CHECK(pair.a.run(pair.a.request(WrOpcode::RdmaRead, 3 << 19, length, pair.toB, 3)) == WcStatus::Success);
  CHECK(std::memcmp(pair.a.bytes() + (3 << 19), pair.b.bytes() + 3, length) == 0);
  CHECK(pair.b.postReceive(5, 0, 3 << 20) == 0);
  CHECK(pair.a.run(pair.a.request(WrOpcode::Send, 0, length, pair.toB)) == WcStatus::Success);
  const WorkCompletion received = pair.b.wait();
  CHECK(received.status == 0);
  CHECK(received.byteLen == length);
  CHECK(std::memcmp(pair.b.bytes(), pair.a.bytes(), length) == 0);
}

TEST_CASE("shm: a READ that comes in several chunks has the checksum of all of it, or none if it fails") {
  const auto large = with([](auto& o) { o.memoryBytes = 3 << 20; });
  Pair pair(large, large);
  const uint32_t length = (1 << 20) + 12345;
  for (uint32_t i = 0; i < length; i++) pair.b.bytes()[3 + i] = static_cast<uint8_t>(i * 31 >> 3);
  Checksum expected(9);
  expected.take(pair.b.bytes() + 3, length);
  SendWorkRequest read = pair.a.request(WrOpcode::RdmaRead, 1, length, pair.toB, 3);
  read.sendFlags |= kSendChecksum;
  read.checksumBefore = 9;
  CHECK(pair.a.post(read) == 0);
  const WorkCompletion completion = pair.a.wait();
  CHECK(completion.status == 0);
  CHECK((completion.wcFlags & kWcWithChecksum) != 0);
  CHECK(completion.checksum == expected.result());
  CHECK(std::memcmp(pair.a.bytes() + 1, pair.b.bytes() + 3, length) == 0);

  SendWorkRequest outside = pair.a.request(WrOpcode::RdmaRead, 0, 64, pair.toB, 3 << 20);
  outside.sendFlags |= kSendChecksum;
  CHECK(pair.a.post(outside) == 0);
  const WorkCompletion failed = pair.a.wait();
  CHECK(failed.status == static_cast<int>(WcStatus::RemAccessErr));
  CHECK((failed.wcFlags & kWcWithChecksum) == 0);
}

TEST_CASE("shm: compare-and-swap and fetch-and-add return what was there") {
  Pair pair;
  auto* target = reinterpret_cast<uint64_t*>(pair.b.bytes() + 64);
  auto* result = reinterpret_cast<uint64_t*>(pair.a.bytes() + 8);
  *target = 100;
  SendWorkRequest request = pair.a.request(WrOpcode::CompareSwap, 8, 8, pair.toB, 64);
  request.compareAdd = 99;
  request.swap = 1;
  CHECK(pair.a.run(request) == WcStatus::Success);
  CHECK(*result == 100);
  CHECK(*target == 100);
  request.compareAdd = 100;
  CHECK(pair.a.run(request) == WcStatus::Success);
  CHECK(*result == 100);
  CHECK(*target == 1);
  request = pair.a.request(WrOpcode::FetchAdd, 8, 8, pair.toB, 64);
  request.compareAdd = 41;
  CHECK(pair.a.post(request) == 0);
  CHECK(pair.a.wait().opcode == static_cast<int>(WcOpcode::FetchAdd));
  CHECK(*result == 1);
  CHECK(*target == 42);
}

TEST_CASE("shm: SEND and immediates complete receives in the order they were posted") {
  Pair pair;
  for (uint32_t i = 0; i < 4; i++) CHECK(pair.b.postReceive(100 + i, 1024 * i, 512) == 0);
  std::memcpy(pair.a.bytes(), "first", 5);
  CHECK(pair.a.run(pair.a.request(WrOpcode::Send, 0, 5, pair.toB)) == WcStatus::Success);
  SendWorkRequest request = pair.a.request(WrOpcode::SendWithImm, 0, 0, pair.toB);
  request.immData = 0xabcd1234;
  CHECK(pair.a.run(request) == WcStatus::Success);
  request = pair.a.request(WrOpcode::RdmaWriteWithImm, 0, 5, pair.toB, 9000);
  request.immData = 77;
  CHECK(pair.a.run(request) == WcStatus::Success);

  WorkCompletion completion = pair.b.wait();
  CHECK(completion.wrId == 100);
  CHECK(completion.opcode == static_cast<int>(WcOpcode::Recv));
  CHECK(completion.byteLen == 5);
  CHECK(completion.wcFlags == 0);
  CHECK(completion.qpNum == pair.b.qp->number());
  CHECK(std::memcmp(pair.b.bytes(), "first", 5) == 0);
  completion = pair.b.wait();
  CHECK(completion.wrId == 101);
  CHECK(completion.byteLen == 0);
  CHECK(completion.wcFlags == kWcWithImm);
  CHECK(completion.immData == 0xabcd1234);
  completion = pair.b.wait();
  CHECK(completion.wrId == 102);
  CHECK(completion.opcode == static_cast<int>(WcOpcode::RecvRdmaWithImm));
  CHECK(completion.byteLen == 5);
  CHECK(completion.immData == 77);
  CHECK(std::memcmp(pair.b.bytes() + 9000, "first", 5) == 0);
  WorkCompletion none;
  CHECK(pair.b.cq->poll(&none, 1) == 0);
}

TEST_CASE("shm: the receive queue wraps around many times") {
  Pair pair;
  for (uint32_t i = 0; i < 200'000; i++) {
    REQUIRE(pair.b.postReceive(i, 0, 64) == 0);
    std::memcpy(pair.a.bytes(), &i, sizeof(i));
    REQUIRE(pair.a.run(pair.a.request(WrOpcode::Send, 0, 4, pair.toB)) == WcStatus::Success);
    const WorkCompletion received = pair.b.wait();
    REQUIRE(received.wrId == i);
    REQUIRE(std::memcmp(pair.b.bytes(), &i, sizeof(i)) == 0);
  }
}

TEST_CASE("shm: inline data need no lkey and may be overwritten after the post") {
  const auto inlining = with([](auto& o) {
    o.cap.maxInlineData = 64;
    o.rnrRetry = 7;
  });
  Pair pair(inlining);
  std::vector<uint8_t> data(64, 0x5a);
  SendWorkRequest request = pair.a.request(WrOpcode::RdmaWrite, 0, 64, pair.toB);
  request.localAddress = reinterpret_cast<uint64_t>(data.data());
  request.lkey = 0;
  request.sendFlags |= kSendInline;
  CHECK(pair.a.run(request) == WcStatus::Success);
  CHECK(std::memcmp(pair.b.bytes(), data.data(), 64) == 0);

  SUBCASE("also while the request waits for a receive") {
    request.opcode = WrOpcode::Send;
    CHECK(pair.a.post(request) == 0);
    std::fill(data.begin(), data.end(), 0);
    CHECK(pair.b.postReceive(1, 128, 64) == 0);
    CHECK(pair.a.wait().status == 0);
    CHECK(pair.b.wait().byteLen == 64);
    CHECK(pair.b.bytes()[128 + 63] == 0x5a);
  }
  SUBCASE("more than maxInlineData is refused") {
    request.length = 65;
    CHECK(pair.a.post(request) == EINVAL);
  }
  SUBCASE("a READ cannot be inline") {
    request.opcode = WrOpcode::RdmaRead;
    CHECK(pair.a.post(request) == EINVAL);
  }
}

TEST_CASE("shm: requests that are not signaled complete silently, and take their place in the send queue") {
  const auto shallow = with([](auto& o) { o.cap.maxSendWr = 4; });
  Pair pair(shallow);
  SendWorkRequest request = pair.a.request(WrOpcode::RdmaWrite, 0, 8, pair.toB);
  request.sendFlags = 0;
  for (int i = 0; i < 3; i++) CHECK(pair.a.post(request) == 0);
  WorkCompletion none;
  CHECK(pair.a.cq->poll(&none, 1) == 0);
  request.sendFlags = kSendSignaled;
  CHECK(pair.a.post(request) == 0);
  CHECK(pair.a.post(request) == ENOMEM);
  CHECK(pair.a.wait().status == 0);  // retires the three before it, too
  for (int i = 0; i < 4; i++) CHECK(pair.a.post(request) == 0);
  int errnum = 0;
  CHECK(pair.a.qp->postSend(&request, 1, &errnum) == 0);
  CHECK(errnum == ENOMEM);
}

TEST_CASE("shm: a post stops at the first request that is refused and tells how many were taken") {
  Pair pair;
  std::vector<SendWorkRequest> requests(3, pair.a.request(WrOpcode::RdmaWrite, 0, 8, pair.toB));
  requests[2].opcode = static_cast<WrOpcode>(99);
  int errnum = 0;
  CHECK(pair.a.qp->postSend(requests.data(), 3, &errnum) == 2);
  CHECK(errnum == EINVAL);
}

// ---------------------------------------------------------------------------------------------------------------
// Failures. In each the responder notices as well, and later requests are flushed.

TEST_CASE("shm: access outside of what was granted fails as on a device") {
  struct Case {
    const char* name;
    EndpointOptions responder;
    std::function<void(SendWorkRequest&)> change;
    WcStatus expected;
  };
  const std::vector<Case> cases = {
      {"wrong rkey", {}, [](auto& r) { r.rkey ^= 0x1000; }, WcStatus::RemAccessErr},
      {"rkey of an empty slot", {}, [](auto& r) { r.rkey ^= 0x7; }, WcStatus::RemAccessErr},
      {"before the region", {}, [](auto& r) { r.remoteAddress -= 1; }, WcStatus::RemAccessErr},
      {"beyond the region", {}, [](auto& r) { r.remoteAddress += 65536 - 63; }, WcStatus::RemAccessErr},
      {"address that wraps around", {}, [](auto& r) { r.remoteAddress = ~uint64_t{0} - 8; }, WcStatus::RemAccessErr},
      {"region without REMOTE_WRITE", with([](auto& o) { o.regionAccess = kAccessLocalWrite | kAccessRemoteRead; }),
       [](auto&) {}, WcStatus::RemAccessErr},
      {"region without REMOTE_READ", with([](auto& o) { o.regionAccess = kAccessLocalWrite | kAccessRemoteWrite; }),
       [](auto& r) { r.opcode = WrOpcode::RdmaRead; }, WcStatus::RemAccessErr},
      {"region without REMOTE_ATOMIC", with([](auto& o) { o.regionAccess = kAccessLocalWrite | kAccessRemoteWrite; }),
       [](auto& r) {
         r.opcode = WrOpcode::FetchAdd;
         r.length = 8;
       },
       WcStatus::RemAccessErr},
      {"queue pair without REMOTE_WRITE", with([](auto& o) { o.qpAccess = kAccessRemoteRead; }), [](auto&) {},
       WcStatus::RemInvReqErr},
      {"queue pair without REMOTE_READ", with([](auto& o) { o.qpAccess = kAccessRemoteWrite; }),
       [](auto& r) { r.opcode = WrOpcode::RdmaRead; }, WcStatus::RemInvReqErr},
      {"queue pair without REMOTE_ATOMIC", with([](auto& o) { o.qpAccess = kAccessRemoteWrite; }),
       [](auto& r) {
         r.opcode = WrOpcode::CompareSwap;
         r.length = 8;
       },
       WcStatus::RemInvReqErr},
      {"unaligned atomic",
       {},
       [](auto& r) {
         r.opcode = WrOpcode::CompareSwap;
         r.length = 8;
         r.remoteAddress += 4;
       },
       WcStatus::RemInvReqErr},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    Pair pair({}, c.responder);
    CHECK(pair.b.postReceive(55, 0, 64) == 0);
    std::memset(pair.a.bytes(), 0xee, 64);
    SendWorkRequest request = pair.a.request(WrOpcode::RdmaWrite, 0, 64, pair.toB);
    c.change(request);
    CHECK(pair.a.run(request) == c.expected);
    CHECK(bothInError(pair));
    CHECK(pair.a.run(pair.a.request(WrOpcode::RdmaWrite, 0, 8, pair.toB)) == WcStatus::WrFlushErr);
    const WorkCompletion flushed = pair.b.wait();
    CHECK(flushed.wrId == 55);
    CHECK(flushed.status == static_cast<int>(WcStatus::WrFlushErr));
    for (size_t i = 0; i < pair.b.memory->length(); i++) REQUIRE(pair.b.bytes()[i] == 0);
  }
}

TEST_CASE("shm: local protection errors touch nothing remote") {
  struct Case {
    const char* name;
    std::function<void(SendWorkRequest&, Endpoint&)> change;
    WcStatus expected;
  };
  std::shared_ptr<MemoryRegion> other;
  const std::vector<Case> cases = {
      {"wrong lkey", [](auto& r, auto&) { r.lkey ^= 0x1000; }, WcStatus::LocProtErr},
      {"beyond the local region", [](auto& r, auto&) { r.localAddress += 65536 - 7; }, WcStatus::LocProtErr},
      {"READ into a region without LOCAL_WRITE",
       [&](auto& r, auto& e) {
         other = e.domain->registerMemory(e.memory, 0, 64, kAccessRemoteRead);
         r.opcode = WrOpcode::RdmaRead;
         r.lkey = other->lkey();
       },
       WcStatus::LocProtErr},
      {"region of another protection domain",
       [&](auto& r, auto& e) {
         other = e.context->allocateProtectionDomain()->registerMemory(e.memory, 0, 64, kAccessLocalWrite);
         r.lkey = other->lkey();
       },
       WcStatus::LocProtErr},
      {"atomic that is not 8 bytes long",
       [](auto& r, auto&) {
         r.opcode = WrOpcode::FetchAdd;
         r.length = 4;
       },
       WcStatus::LocLenErr},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    Pair pair;
    SendWorkRequest request = pair.a.request(WrOpcode::RdmaWrite, 0, 8, pair.toB);
    c.change(request, pair.a);
    CHECK(pair.a.run(request) == c.expected);
    CHECK(pair.a.qp->query().state == QpState::Err);
    CHECK(pair.b.qp->query().state == QpState::Rts);
    other.reset();
  }
}

TEST_CASE("shm: a region belongs to its protection domain") {
  Pair pair;
  auto other = pair.b.context->allocateProtectionDomain();
  auto region = other->registerMemory(pair.b.memory, 0, 64, kAllAccess);
  SendWorkRequest request = pair.a.request(WrOpcode::RdmaWrite, 0, 8, pair.toB);
  request.rkey = region->rkey();
  CHECK(pair.a.run(request) == WcStatus::RemAccessErr);
}

TEST_CASE("shm: a region ends where it was registered, not where its memory does") {
  struct {
    uint64_t offset;
    WcStatus expected;
  } const kCases[] = {
      {4096, WcStatus::Success},      {4096 + 936, WcStatus::Success}, {4096 + 937, WcStatus::RemAccessErr},
      {4095, WcStatus::RemAccessErr}, {8192, WcStatus::RemAccessErr},  {0, WcStatus::RemAccessErr}};
  for (const auto& c : kCases) {
    for (const WrOpcode opcode : {WrOpcode::RdmaWrite, WrOpcode::RdmaRead}) {
      CAPTURE(c.offset);
      Pair pair;
      auto part = pair.b.domain->registerMemory(pair.b.memory, 4096, 1000, kAllAccess);
      std::memset(pair.a.bytes(), 0x44, 64);
      SendWorkRequest request = pair.a.request(opcode, 0, 64, pair.toB, c.offset);
      request.rkey = part->rkey();
      CHECK(pair.a.run(request) == c.expected);
      const bool written = opcode == WrOpcode::RdmaWrite && c.expected == WcStatus::Success;
      for (size_t i = 0; i < 65536; i++) {
        const bool inside = written && i >= c.offset && i < c.offset + 64;
        if (pair.b.bytes()[i] != (inside ? 0x44 : 0)) FAIL("byte ", i, " is ", int{pair.b.bytes()[i]});
      }
    }
  }
}

TEST_CASE("shm: a region that was closed is reached no more, also by who has used it before") {
  for (const WrOpcode opcode : {WrOpcode::RdmaWrite, WrOpcode::RdmaRead, WrOpcode::FetchAdd}) {
    Pair pair;
    CHECK(pair.a.run(pair.a.request(opcode, 0, 8, pair.toB)) == WcStatus::Success);
    std::memset(pair.b.bytes(), 0, 64);
    pair.b.region->close();
    std::memset(pair.a.bytes(), 0x44, 64);
    CHECK(pair.a.run(pair.a.request(opcode, 0, 8, pair.toB)) == WcStatus::RemAccessErr);
    for (int i = 0; i < 64; i++) CHECK(pair.b.bytes()[i] == 0);
  }
}

TEST_CASE("shm: a SEND longer than the posted receive fails at both ends") {
  Pair pair;
  CHECK(pair.b.postReceive(9, 0, 16) == 0);
  CHECK(pair.b.postReceive(10, 0, 16) == 0);
  CHECK(pair.a.run(pair.a.request(WrOpcode::Send, 0, 17, pair.toB)) == WcStatus::RemInvReqErr);
  WorkCompletion completion = pair.b.wait();
  CHECK(completion.wrId == 9);
  CHECK(completion.status == static_cast<int>(WcStatus::LocLenErr));
  completion = pair.b.wait();
  CHECK(completion.wrId == 10);
  CHECK(completion.status == static_cast<int>(WcStatus::WrFlushErr));
  CHECK(bothInError(pair));
}

TEST_CASE("shm: a receive into memory that may not be written fails at both ends") {
  Pair pair;
  ReceiveWorkRequest receive;
  receive.wrId = 3;
  receive.localAddress = pair.b.region->address();
  receive.length = 64;
  receive.lkey = pair.b.region->lkey() ^ 0x2000;
  int errnum = 0;
  CHECK(pair.b.qp->postReceive(&receive, 1, &errnum) == 1);
  CHECK(pair.a.run(pair.a.request(WrOpcode::Send, 0, 17, pair.toB)) == WcStatus::RemOpErr);
  CHECK(pair.b.wait().status == static_cast<int>(WcStatus::LocProtErr));
  CHECK(bothInError(pair));
}

TEST_CASE("shm: without a posted receive a SEND ends with RNR_RETRY_EXC_ERR or waits, as rnrRetry says") {
  SUBCASE("0: at once") {
    Pair pair(with([](auto& o) { o.rnrRetry = 0; }));
    CHECK(pair.a.run(pair.a.request(WrOpcode::Send, 0, 8, pair.toB)) == WcStatus::RnrRetryExcErr);
    CHECK(pair.a.qp->query().state == QpState::Err);
    CHECK(pair.b.qp->query().state == QpState::Rts);
  }
  SUBCASE("3: after three times the responder's timer") {
    Pair pair(with([](auto& o) { o.rnrRetry = 3; }));
    CHECK(pair.a.run(pair.a.request(WrOpcode::RdmaWriteWithImm, 0, 8, pair.toB)) == WcStatus::RnrRetryExcErr);
  }
  SUBCASE("7: never, and requests behind it keep their order") {
    Pair pair;
    pair.a.bytes()[0] = 1;
    CHECK(pair.a.post(pair.a.request(WrOpcode::Send, 0, 1, pair.toB)) == 0);
    CHECK(pair.a.post(pair.a.request(WrOpcode::RdmaWrite, 0, 1, pair.toB, 500)) == 0);
    WorkCompletion none;
    for (int i = 0; i < 1000; i++) REQUIRE(pair.a.cq->poll(&none, 1) == 0);
    CHECK(pair.b.bytes()[500] == 0);
    CHECK(pair.b.postReceive(1, 0, 8) == 0);
    CHECK(pair.a.wait().opcode == static_cast<int>(WcOpcode::Send));
    CHECK(pair.a.wait().opcode == static_cast<int>(WcOpcode::RdmaWrite));
    CHECK(pair.b.bytes()[500] == 1);
    CHECK(pair.b.wait().wrId == 1);
  }
  SUBCASE("a request that waits is flushed when its queue pair goes to ERR") {
    Pair pair;
    CHECK(pair.a.post(pair.a.request(WrOpcode::Send, 0, 1, pair.toB)) == 0);
    pair.a.qp->modify(stateAttributes(QpState::Err));
    CHECK(pair.a.wait().status == static_cast<int>(WcStatus::WrFlushErr));
  }
}

TEST_CASE("shm: a responder that is not there, not ready or not connected to us gives RETRY_EXC_ERR") {
  ShmTestDirectory directory;
  Endpoint a(directory), b(directory);
  const SendWorkRequest request = a.request(WrOpcode::RdmaWrite, 0, 8, b.coordinates());
  const auto aConnects = [&](const Coordinates& peer) { a.connect(peer); };
  SUBCASE("still in INIT") {
    aConnects(b.coordinates());
    b.qp->modify(initAttributes(kAccessRemoteWrite));
    CHECK(a.run(request) == WcStatus::RetryExcErr);
  }
  SUBCASE("in ERR") {
    connectPair(a, b);
    b.qp->modify(stateAttributes(QpState::Err));
    CHECK(a.run(request) == WcStatus::RetryExcErr);
  }
  SUBCASE("destroyed") {
    connectPair(a, b);
    b.qp->close();
    CHECK(a.run(request) == WcStatus::RetryExcErr);
  }
  SUBCASE("its context closed") {
    connectPair(a, b);
    b.context->close();
    CHECK(a.run(request) == WcStatus::RetryExcErr);
  }
  SUBCASE("destroyed, and its slot used by another queue pair that is connected to us as well") {
    connectPair(a, b);
    CHECK(a.run(request) == WcStatus::Success);
    const uint32_t slot = b.qp->number() % shm::kMaxQueuePairs;
    b.qp->close();
    for (uint32_t i = 0; i < shm::kMaxQueuePairs; i++) {
      b.newQueuePair();
      if (b.qp->number() % shm::kMaxQueuePairs == slot) break;
    }
    REQUIRE(b.qp->number() % shm::kMaxQueuePairs == slot);
    b.connect(a.coordinates());
    CHECK(a.run(request) == WcStatus::RetryExcErr);
  }
  SUBCASE("connected to another queue pair") {
    Endpoint c(directory);
    aConnects(b.coordinates());
    b.connect(c.coordinates());
    CHECK(a.run(request) == WcStatus::RetryExcErr);
  }
  SUBCASE("with another packet sequence number") {
    Coordinates wrong = a.coordinates();
    wrong.psn++;
    aConnects(b.coordinates());
    b.connect(wrong);
    CHECK(a.run(request) == WcStatus::RetryExcErr);
  }
  SUBCASE("a GID of no instance") {
    Coordinates nowhere = b.coordinates();
    nowhere.gid = shm::makeGid(12345);
    aConnects(nowhere);
    CHECK(a.run(request) == WcStatus::RetryExcErr);
  }
  CHECK(a.qp->query().state == QpState::Err);
}

TEST_CASE("shm: a CQ that overflows is a reported error and stops its queue pairs") {
  SUBCASE("by send completions") {
    Pair pair(with([](auto& o) { o.cqDepth = 4; }));
    for (int i = 0; i < 5; i++) CHECK(pair.a.post(pair.a.request(WrOpcode::RdmaWrite, 0, 8, pair.toB)) == 0);
    WorkCompletion completions[8];
    CHECK(codeOf([&] { pair.a.cq->poll(completions, 8); }) == "QUORATE_LIMIT");
    CHECK(codeOf([&] { pair.a.cq->poll(completions, 8); }) == "QUORATE_LIMIT");
    CHECK(pair.a.qp->query().state == QpState::Err);
  }
  SUBCASE("by receive completions") {
    Pair pair({}, with([](auto& o) { o.cqDepth = 4; }));
    for (int i = 0; i < 5; i++) {
      CHECK(pair.b.postReceive(static_cast<uint64_t>(i), 0, 8) == 0);
      CHECK(pair.a.run(pair.a.request(WrOpcode::Send, 0, 8, pair.toB)) == WcStatus::Success);
    }
    WorkCompletion completions[8];
    CHECK(codeOf([&] { pair.b.cq->poll(completions, 8); }) == "QUORATE_LIMIT");
  }
}

TEST_CASE("shm: a zero-length WRITE needs no valid rkey, but the right") {
  Pair pair;
  SendWorkRequest request = pair.a.request(WrOpcode::RdmaWrite, 0, 0, pair.toB);
  request.rkey = 0;
  CHECK(pair.a.run(request) == WcStatus::Success);
}

TEST_CASE("shm: a queue pair can be connected to itself, and two of one context to each other") {
  ShmTestDirectory directory;
  Endpoint a(directory);
  Endpoint b(a.context, {});
  connectPair(a, b);
  a.bytes()[0] = 3;
  CHECK(a.run(a.request(WrOpcode::RdmaWrite, 0, 1, b.coordinates())) == WcStatus::Success);
  CHECK(b.bytes()[0] == 3);
  Endpoint self(directory);
  self.connect(self.coordinates());
  self.bytes()[0] = 4;
  CHECK(self.run(self.request(WrOpcode::RdmaWrite, 0, 1, self.coordinates(), 100)) == WcStatus::Success);
  CHECK(self.bytes()[100] == 4);
}

// ---------------------------------------------------------------------------------------------------------------
// Across processes

TEST_CASE("shm: every operation works between two processes") {
  ShmTestDirectory directory;
  SharedWithChildren<Exchange> shared;
  const pid_t child = forkChild([&] {
    Endpoint endpoint(directory);
    std::memcpy(endpoint.bytes() + 100, "from the child", 14);
    shared->child = endpoint.coordinates();
    shared->stage = 1;
    if (!waitUntil([&] { return shared->stage == 2; })) return 1;
    endpoint.connect(shared->parent);
    if (endpoint.postReceive(1, 0, 64) != 0) return 2;
    shared->stage = 3;
    const WorkCompletion received = endpoint.wait();
    if (received.status != 0 || received.byteLen != 5 || std::memcmp(endpoint.bytes(), "hello", 5) != 0) return 3;
    if (std::memcmp(endpoint.bytes() + 200, "written", 7) != 0) return 4;
    if (*reinterpret_cast<uint64_t*>(endpoint.bytes() + 304) != 9) return 5;
    return 0;
  });
  Endpoint endpoint(directory);
  shared->parent = endpoint.coordinates();
  REQUIRE(waitUntil([&] { return shared->stage == 1; }));
  endpoint.connect(shared->child);
  shared->stage = 2;
  REQUIRE(waitUntil([&] { return shared->stage == 3; }));
  CHECK(endpoint.run(endpoint.request(WrOpcode::RdmaRead, 0, 14, shared->child, 100)) == WcStatus::Success);
  CHECK(std::memcmp(endpoint.bytes(), "from the child", 14) == 0);
  std::memcpy(endpoint.bytes(), "written", 7);
  CHECK(endpoint.run(endpoint.request(WrOpcode::RdmaWrite, 0, 7, shared->child, 200)) == WcStatus::Success);
  SendWorkRequest add = endpoint.request(WrOpcode::FetchAdd, 64, 8, shared->child, 304);
  add.compareAdd = 9;
  CHECK(endpoint.run(add) == WcStatus::Success);
  std::memcpy(endpoint.bytes(), "hello", 5);
  CHECK(endpoint.run(endpoint.request(WrOpcode::Send, 0, 5, shared->child)) == WcStatus::Success);
  CHECK(waitForChild(child) == 0);
}

TEST_CASE("shm: a stopped process is read and written all the same, a killed one gives RETRY_EXC_ERR") {
  ShmTestDirectory directory;
  SharedWithChildren<Exchange> shared;
  const pid_t child = forkChild([&] {
    Endpoint endpoint(directory);
    shared->child = endpoint.coordinates();
    shared->stage = 1;
    if (!waitUntil([&] { return shared->stage == 2; })) return 1;
    endpoint.connect(shared->parent);
    shared->stage = 3;
    waitUntil([&] { return shared->stage == 99; });
    return 2;
  });
  Endpoint endpoint(directory);
  shared->parent = endpoint.coordinates();
  REQUIRE(waitUntil([&] { return shared->stage == 1; }));
  endpoint.connect(shared->child);
  shared->stage = 2;
  REQUIRE(waitUntil([&] { return shared->stage == 3; }));
  kill(child, SIGSTOP);
  int status = 0;
  REQUIRE(waitpid(child, &status, WUNTRACED) == child);
  REQUIRE(WIFSTOPPED(status));
  endpoint.bytes()[0] = 0x77;
  CHECK(endpoint.run(endpoint.request(WrOpcode::RdmaWrite, 0, 1, shared->child, 10)) == WcStatus::Success);
  CHECK(endpoint.run(endpoint.request(WrOpcode::RdmaRead, 8, 1, shared->child, 10)) == WcStatus::Success);
  CHECK(endpoint.bytes()[8] == 0x77);
  SendWorkRequest swap = endpoint.request(WrOpcode::CompareSwap, 64, 8, shared->child, 64);
  swap.swap = 5;
  CHECK(endpoint.run(swap) == WcStatus::Success);
  kill(child, SIGKILL);
  CHECK(waitForChild(child) == 256 + SIGKILL);
  CHECK(endpoint.run(endpoint.request(WrOpcode::RdmaWrite, 0, 1, shared->child, 10)) == WcStatus::RetryExcErr);
}

// ---------------------------------------------------------------------------------------------------------------
// Memory windows in requests

TEST_CASE("shm: a binding that is refused leaves the window its key") {
  const auto bindable = with([](auto& o) { o.regionAccess = kAllAccess | kAccessMwBind; });
  Pair pair(bindable);
  const std::shared_ptr<MemoryWindow> window = pair.a.domain->allocateMemoryWindow(1);
  MwBind bind;
  bind.region = pair.a.region;
  bind.address = pair.a.region->address();
  bind.length = 64;
  bind.access = kAccessRemoteWrite;
  uint32_t rkey = 0, refused = 0;
  REQUIRE(pair.a.qp->bindMemoryWindow(*window, bind, 1, kSendSignaled, &rkey) == 0);
  REQUIRE(pair.a.wait().status == 0);
  CHECK(window->rkey() == rkey);
  CHECK(pair.a.qp->bindMemoryWindow(*window, bind, 2, kSendInline, &refused) == EINVAL);
  CHECK(window->rkey() == rkey);
  const std::shared_ptr<QueuePair> spent = pair.a.qp;
  pair.a.newQueuePair();
  spent->close();
  CHECK(codeOf([&] { spent->bindMemoryWindow(*window, bind, 3, kSendSignaled, &refused); }) == "QUORATE_CLOSED");
  CHECK(window->rkey() == rkey);
}

TEST_CASE("shm: a waiting request may be the last that refers to a window and its region") {
  const auto bindable = with([](auto& o) { o.regionAccess = kAllAccess | kAccessMwBind; });
  // In a process of its own: what this is about is a thread that waits for itself.
  const auto inChild = [&](const std::function<void(Pair&)>& end) {
    return waitForChild(forkChild([&] {
                          Pair pair(bindable);
                          pair.a.qp->modify(stateAttributes(QpState::Sqd));
                          MwBind bind;
                          bind.region = pair.a.region;
                          bind.address = bind.region->address();
                          bind.length = 64;
                          bind.access = kAccessRemoteWrite;
                          std::shared_ptr<MemoryWindow> window = pair.a.domain->allocateMemoryWindow(2);
                          SendWorkRequest request;
                          request.opcode = WrOpcode::BindMw;
                          request.sendFlags = kSendSignaled;
                          request.memoryWindow = window.get();
                          request.bind = &bind;
                          request.bindRkey = window->rkey() ^ 1;
                          if (pair.a.post(request) != 0) return 1;
                          pair.a.region = nullptr;
                          bind.region = nullptr;
                          window = nullptr;
                          end(pair);
                          return 0;
                        }),
                        10'000);
  };
  SUBCASE("closing") {
    CHECK(inChild([](Pair& pair) { pair.a.qp->close(); }) == 0);
  }
  SUBCASE("to RESET") {
    CHECK(inChild([](Pair& pair) { pair.a.qp->modify(stateAttributes(QpState::Reset)); }) == 0);
  }
  SUBCASE("to ERR") {
    CHECK(inChild([](Pair& pair) {
            pair.a.qp->modify(stateAttributes(QpState::Err));
            if (pair.a.wait().status != static_cast<int>(WcStatus::WrFlushErr)) throw std::runtime_error("not flushed");
          }) == 0);
  }
  SUBCASE("when it is carried out") {
    CHECK(inChild([](Pair& pair) {
            pair.a.qp->modify(stateAttributes(QpState::Rts));
            if (pair.a.wait().status != 0) throw std::runtime_error("not bound");
          }) == 0);
  }
}

// ---------------------------------------------------------------------------------------------------------------
// Threads

TEST_CASE("shm: no window is bound to a region that another thread closes at the same time") {
  const auto bindable = with([](auto& o) { o.regionAccess = kAllAccess | kAccessMwBind; });
  Pair pair(bindable);
  constexpr int kRounds = 4000;
  std::atomic<int> round{0}, ended{0};
  std::shared_ptr<MemoryRegion> region;
  std::thread closer([&] {
    for (int i = 1; i <= kRounds; i++) {
      while (round.load() != i) {
      }
      codeOf([&] { region->close(); });  // refused if the window was bound first
      ended = i;
    }
  });
  int both = 0;
  for (int i = 1; i <= kRounds; i++) {
    region = pair.a.domain->registerMemory(pair.a.memory, 0, 4096, kAllAccess | kAccessMwBind);
    const std::shared_ptr<MemoryWindow> window = pair.a.domain->allocateMemoryWindow(1);
    MwBind bind;
    bind.region = region;
    bind.address = region->address();
    bind.length = 64;
    bind.access = kAccessRemoteWrite;
    round = i;
    // At another moment of the closing each time.
    for (int pause = 0; pause < i % 400; pause++) shm::pauseCpu();
    uint32_t rkey = 0;
    REQUIRE(pair.a.qp->bindMemoryWindow(*window, bind, 1, kSendSignaled, &rkey) == 0);
    const bool bound = pair.a.wait().status == 0;
    while (ended.load() != i) std::this_thread::yield();
    both += bound && region->closed();
    window->close();
    region->close();
    if (!bound) {
      pair.a.newQueuePair();
      pair.b.newQueuePair();
      connectPair(pair.a, pair.b);
    }
  }
  closer.join();
  CHECK(both == 0);
}

TEST_CASE("shm: a batch during which the queue pair is closed tells how much of it was taken") {
  static std::atomic<int> reached{0};
  reached = 0;
  const auto deep = with([](auto& o) {
    o.cap.maxSendWr = 4096;
    o.cqDepth = 8192;
  });
  Pair pair(deep);
  const std::vector<SendWorkRequest> requests(4096, pair.a.request(WrOpcode::RdmaWrite, 0, 64, pair.toB));
  pair.a.bytes()[0] = 0x7b;
  const auto* slot = &pair.a.internals().control()->queuePairs[pair.a.qp->number() & (shm::kMaxQueuePairs - 1)];
  shm::testHooks.reached = [](shm::HookPoint point) {
    if (point != shm::HookPoint::BeforeRelease || reached.exchange(1) != 0) return;
    waitUntil([] { return reached.load() == 2; });
  };
  std::thread closer([&] {
    waitUntil([] { return reached.load() == 1; });
    std::thread opener([&] {
      waitUntil([&] { return (slot->word.load() & shm::word::kError) != 0; });
      reached = 2;
    });
    pair.a.qp->close();
    opener.join();
  });
  int errnum = 0;
  size_t taken = 0;
  CHECK(codeOf([&] { taken = pair.a.qp->postSend(requests.data(), requests.size(), &errnum); }) == "");
  closer.join();
  shm::testHooks.reached = nullptr;
  CHECK(pair.b.bytes()[0] == 0x7b);
  CHECK(taken >= 1);
  if (taken < requests.size()) CHECK(errnum == EBADF);
}

TEST_CASE("shm: two threads post to one queue pair and poll one CQ, and nothing is lost") {
  const auto deep = with([](auto& o) {
    o.cap.maxSendWr = 256;
    o.cqDepth = 4096;
  });
  Pair pair(deep);
  constexpr int kEach = 20'000;
  std::atomic<int> completed{0}, bad{0};
  const auto work = [&](uint64_t offset) {
    SendWorkRequest request = pair.a.request(WrOpcode::RdmaWrite, offset, 64, pair.toB, offset);
    int errnum = 0, posted = 0;
    WorkCompletion completions[16];
    while (posted < kEach || completed.load() < 2 * kEach) {
      if (posted < kEach && pair.a.qp->postSend(&request, 1, &errnum) == 1) posted++;
      const int taken = pair.a.cq->poll(completions, 16);
      for (int i = 0; i < taken; i++) bad += completions[i].status != 0;
      completed += taken;
    }
  };
  std::thread one(work, 0), two(work, 4096);
  one.join();
  two.join();
  CHECK(completed == 2 * kEach);
  CHECK(bad == 0);
}

TEST_CASE("shm: objects closed while other threads use them fail with QUORATE_CLOSED and nothing worse") {
  for (int round = 0; round < 20; round++) {
    Pair pair;
    std::atomic<bool> started{false};
    std::atomic<int> outcome{0};
    std::thread worker([&] {
      SendWorkRequest request = pair.a.request(WrOpcode::RdmaWrite, 0, 64, pair.toB);
      int errnum = 0;
      WorkCompletion completions[16];
      try {
        for (;;) {
          pair.a.qp->postSend(&request, 1, &errnum);
          pair.a.cq->poll(completions, 16);
          started = true;
        }
      } catch (const VerbsError& error) {
        outcome = error.code == "QUORATE_CLOSED" ? 1 : 2;
      }
    });
    CHECK(waitUntil([&] { return started.load(); }));
    switch (round % 4) {
      case 0:
        pair.a.qp->close();
        break;
      case 1:
        pair.a.cq->close();
        break;
      case 2:
        pair.a.domain->close();
        break;
      default:
        pair.a.context->close();
    }
    worker.join();
    CHECK(outcome == 1);
  }
}

TEST_CASE("shm: each of two threads that bind one window of type 1 at the same time gets a key of its own") {
  const auto bindable = with([](auto& o) { o.regionAccess = kAllAccess | kAccessMwBind; });
  ShmTestDirectory directory;
  Endpoint a(directory, bindable);
  MwBind bind;
  bind.region = a.region;
  bind.address = a.region->address();
  bind.length = 64;
  bind.access = kAccessRemoteWrite;
  constexpr int kRounds = 200, kBindings = 100;  // a window has 256 keys
  for (int round = 0; round < kRounds; round++) {
    const std::shared_ptr<MemoryWindow> window = a.domain->allocateMemoryWindow(1);
    std::atomic<int> ready{0};
    std::vector<uint32_t> keys[2];
    const auto work = [&](std::vector<uint32_t>* own) {
      QpInit init;
      init.sendCq = init.recvCq = a.context->createCompletionQueue(16, nullptr);
      const auto queuePair = a.domain->createQueuePair(init);
      queuePair->modify(initAttributes(0));
      queuePair->modify(rtrAttributes(a.coordinates()));
      queuePair->modify(rtsAttributes(0));
      ready++;
      while (ready.load() != 2) {
      }
      for (int i = 0; i < kBindings; i++) {
        uint32_t rkey = 0;
        if (queuePair->bindMemoryWindow(*window, bind, 1, kSendSignaled, &rkey) == 0) own->push_back(rkey);
        WorkCompletion completion;
        while (init.sendCq->poll(&completion, 1) == 0) {
        }
      }
      queuePair->close();
      init.sendCq->close();
    };
    std::thread one(work, &keys[0]), two(work, &keys[1]);
    one.join();
    two.join();
    std::set<uint32_t> different(keys[0].begin(), keys[0].end());
    different.insert(keys[1].begin(), keys[1].end());
    CHECK(different.size() == 2 * kBindings);
    CHECK((window->rkey() == keys[0].back() || window->rkey() == keys[1].back()));
    window->close();
  }
}

TEST_CASE("shm: closing a queue pair closes the windows, too, that another thread binds through it meanwhile") {
  const auto bindable = with([](auto& o) { o.regionAccess = kAllAccess | kAccessMwBind; });
  ShmTestDirectory directory;
  Endpoint a(directory, bindable);
  constexpr int kRounds = 1000, kWindows = 16;
  for (int round = 0; round < kRounds; round++) {
    a.newQueuePair();
    a.connect(a.coordinates());
    std::vector<std::shared_ptr<MemoryWindow>> windows;
    while (windows.size() < kWindows) windows.push_back(a.domain->allocateMemoryWindow(2));
    std::atomic<int> bound{0};
    std::thread binder([&] {
      MwBind bind;
      bind.region = a.region;
      bind.address = a.region->address();
      bind.length = 64;
      bind.access = kAccessRemoteWrite;
      const std::string code = codeOf([&] {
        for (const auto& window : windows) {
          SendWorkRequest request;
          request.opcode = WrOpcode::BindMw;
          request.memoryWindow = window.get();
          request.bind = &bind;
          request.bindRkey = window->rkey() ^ 1;
          int errnum = 0;
          if (a.qp->postSend(&request, 1, &errnum) == 1) bound++;
        }
      });
      CHECK((code == "" || code == "QUORATE_CLOSED"));
    });
    waitUntil([&] { return bound.load() > round % kWindows; });
    a.qp->close();
    binder.join();
    for (int i = 0; i < bound.load(); i++) CHECK(windows[static_cast<size_t>(i)]->closed());
    REQUIRE(codeOf([&] { a.region->close(); }) == "");
    a.region = a.domain->registerMemory(a.memory, 0, a.memory->length(), kAllAccess | kAccessMwBind);
  }
}

// Of a thread of this process: 'S' if it sleeps, see proc_pid_stat(5).
char stateOfThread(pid_t thread) {
  std::ifstream file("/proc/self/task/" + std::to_string(thread) + "/stat");
  std::string line;
  std::getline(file, line);
  return line.substr(line.rfind(')') + 1, 2).back();
}

TEST_CASE("shm: what is made while another thread closes its parent is refused, and nothing of it stays") {
  ShmTestDirectory directory;
  const auto context = makeShmProvider(ShmOptions{directory.path()})->openDevice("shm");
  auto& internals = static_cast<shm::ShmContext&>(*context);
  const auto domain = context->allocateProtectionDomain();
  const auto queue = context->createCompletionQueue(16, nullptr);
  MemoryOptions options;
  options.lengthBytes = 4096;
  const auto memory = context->allocateMemory(options);
  QpInit init;
  init.sendCq = init.recvCq = queue;
  std::shared_ptr<VerbsObject> made, parent = domain;
  std::function<void()> make;
  SUBCASE("a region") {
    make = [&] { made = domain->registerMemory(memory, 0, 4096, kAllAccess); };
  }
  SUBCASE("a memory window") {
    make = [&] { made = domain->allocateMemoryWindow(2); };
  }
  SUBCASE("a queue pair, whose domain is closed") {
    make = [&] { made = domain->createQueuePair(init); };
  }
  SUBCASE("a queue pair, whose completion queue is closed") {
    parent = queue;
    make = [&] { made = domain->createQueuePair(init); };
  }
  std::atomic<pid_t> maker{0};
  std::string code;
  std::thread thread;
  {
    // Whoever makes one of these waits for this mutex in the middle; closing what has no children takes none.
    const std::lock_guard<std::mutex> hold(internals.revoker().mutex());
    thread = std::thread([&] {
      maker = gettid();
      code = codeOf(make);
    });
    CHECK(waitUntil([&] { return maker.load() != 0 && stateOfThread(maker) == 'S'; }));
    parent->close();
  }
  thread.join();
  CHECK(code == "QUORATE_CLOSED");
  CHECK(made == nullptr);
  CHECK(parent->closed());
  context->close();
  CHECK(directory.names().size() == 0);
}

TEST_CASE("shm: a memory that is allocated while another thread closes the context leaves no file") {
  ShmTestDirectory directory;
  for (int round = 0; round < 200; round++) {
    const auto context = makeShmProvider(ShmOptions{directory.path()})->openDevice("shm");
    std::vector<std::shared_ptr<Memory>> memories;
    std::atomic<int> allocated{0};
    std::thread allocator([&] {
      MemoryOptions options;
      options.lengthBytes = 4096;
      CHECK(codeOf([&] {
              for (;; allocated++) memories.push_back(context->allocateMemory(options));
            }) == "QUORATE_CLOSED");
    });
    waitUntil([&] { return allocated.load() > round % 8; });
    context->close();
    allocator.join();
    for (const auto& memory : memories) CHECK(memory->closed());
    CHECK(directory.names().size() == 0);
  }
}

TEST_CASE("shm: a local region is closed only when no thread copies from it any more") {
  const auto large = with([](auto& o) { o.memoryBytes = 4 << 20; });
  Pair pair(large, large);
  std::atomic<bool> stop{false};
  std::atomic<int> reads{0};
  std::memset(pair.b.bytes(), 0x11, 1 << 20);
  std::thread worker([&] {
    int errnum = 0;
    WorkCompletion completion;
    while (!stop) {
      const SendWorkRequest request = pair.a.request(WrOpcode::RdmaRead, 0, 1 << 20, pair.toB);
      pair.a.qp->postSend(&request, 1, &errnum);
      while (pair.a.cq->poll(&completion, 1) == 0) {
      }
      if (completion.status != 0) break;
      reads++;
    }
  });
  CHECK(waitUntil([&] { return reads.load() > 2; }));
  pair.a.region->close();
  std::memset(pair.a.bytes(), 0x22, 1 << 20);
  stop = true;
  worker.join();
  for (size_t i = 0; i < 1 << 20; i++) REQUIRE(pair.a.bytes()[i] == 0x22);
}

}  // namespace
}  // namespace quorate::test

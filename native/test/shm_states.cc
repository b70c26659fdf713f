// The state machine of shm queue pairs, and the notification of completion channels.
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>

#include "provider/shm/completion.h"
#include "provider/shm/layout.h"
#include "test/child_process.h"
#include "test/shm_fixture.h"
#include "verbs/qp_state_table.h"

namespace quorate::test {
namespace {

TEST_CASE("shm: a queue pair walks RESET, INIT, RTR, RTS, ERR, RESET and may be connected again") {
  ShmTestDirectory directory;
  Endpoint a(directory), b(directory);
  for (int round = 0; round < 3; round++) {
    CHECK(a.qp->query().state == QpState::Reset);
    int errnum = 0;
    ReceiveWorkRequest receive;
    CHECK(a.qp->postReceive(&receive, 1, &errnum) == 0);
    CHECK(errnum == EINVAL);
    CHECK(a.post(a.request(WrOpcode::RdmaWrite, 0, 8, b.coordinates())) == EINVAL);
    a.qp->modify(initAttributes(kAccessRemoteRead));
    CHECK(a.qp->query().state == QpState::Init);
    CHECK(a.postReceive(1, 0, 8) == 0);
    CHECK(a.post(a.request(WrOpcode::RdmaWrite, 0, 8, b.coordinates())) == EINVAL);
    a.qp->modify(rtrAttributes(b.coordinates()));
    CHECK(a.qp->query().state == QpState::Rtr);
    CHECK(a.post(a.request(WrOpcode::RdmaWrite, 0, 8, b.coordinates())) == EINVAL);
    a.qp->modify(rtsAttributes(1000));
    const QpAttributes attributes = a.qp->query();
    CHECK(attributes.state == QpState::Rts);
    CHECK(attributes.accessFlags == kAccessRemoteRead);
    CHECK(attributes.destQpNum == b.qp->number());
    CHECK(attributes.retryCnt == 7);
    b.connect(a.coordinates());
    CHECK(a.run(a.request(WrOpcode::RdmaWrite, 0, 8, b.coordinates())) == WcStatus::Success);
    a.qp->modify(stateAttributes(QpState::Err));
    CHECK(a.wait().status == static_cast<int>(WcStatus::WrFlushErr));  // the receive
    CHECK(a.run(a.request(WrOpcode::RdmaWrite, 0, 8, b.coordinates())) == WcStatus::WrFlushErr);
    CHECK(a.postReceive(2, 0, 8) == 0);
    CHECK(a.wait().status == static_cast<int>(WcStatus::WrFlushErr));
    a.qp->modify(stateAttributes(QpState::Reset));
    b.qp->modify(stateAttributes(QpState::Reset));
  }
}

TEST_CASE("shm: completions from before a RESET take no room in the send queue when they are polled after it") {
  ShmTestDirectory directory;
  EndpointOptions options;
  options.cap.maxSendWr = 4;
  Endpoint a(directory, options), b(directory);
  connectPair(a, b);
  const SendWorkRequest write = a.request(WrOpcode::RdmaWrite, 0, 8, b.coordinates());
  for (int i = 0; i < 4; i++) REQUIRE(a.post(write) == 0);
  a.qp->modify(stateAttributes(QpState::Reset));
  b.qp->modify(stateAttributes(QpState::Reset));
  connectPair(a, b);
  REQUIRE(a.post(write) == 0);
  a.wait();  // the oldest of those from before
  CHECK(a.post(write) == 0);
}

TEST_CASE("shm: transitions that the table refuses are refused, with its sentence") {
  ShmTestDirectory directory;
  Endpoint a(directory);
  try {
    a.qp->modify(stateAttributes(QpState::Rts));
    FAIL("RESET went to RTS");
  } catch (const VerbsError& error) {
    CHECK(error.code == "QUORATE_QP_STATE");
    CHECK(std::string(error.what()) == *explainQpTransition(QpType::Rc, QpState::Reset, stateAttributes(QpState::Rts)));
  }
  QpAttributes attributes = initAttributes(0);
  attributes.mask &= ~static_cast<uint32_t>(kQpPort);
  CHECK(codeOf([&] { a.qp->modify(attributes); }) == "QUORATE_QP_STATE");
  attributes = initAttributes(0);
  attributes.portNum = 2;
  CHECK(codeOf([&] { a.qp->modify(attributes); }) == "QUORATE_QP_STATE");
  a.qp->modify(initAttributes(0));
  attributes = rtrAttributes(a.coordinates());
  attributes.av.dgid = Gid{};
  CHECK(codeOf([&] { a.qp->modify(attributes); }) == "QUORATE_QP_STATE");
  CHECK(a.qp->query().state == QpState::Init);
  QpInit raw;
  raw.type = static_cast<QpType>(8);
  raw.sendCq = raw.recvCq = a.cq;
  CHECK(codeOf([&] { a.domain->createQueuePair(raw); }) == "QUORATE_INVALID_ARGUMENT");
}

TEST_CASE("shm: access flags that are dropped are gone, and can be given again over a fresh connection only") {
  ShmTestDirectory directory;
  Endpoint a(directory), b(directory);
  connectPair(a, b);
  b.qp->modify(accessAttributes(kAccessRemoteRead));
  CHECK(a.run(a.request(WrOpcode::RdmaRead, 0, 8, b.coordinates())) == WcStatus::Success);
  b.qp->modify(accessAttributes(kAccessRemoteRead | kAccessRemoteWrite));
  CHECK(a.run(a.request(WrOpcode::RdmaWrite, 0, 8, b.coordinates())) == WcStatus::Success);
  b.qp->modify(accessAttributes(0));
  CHECK(a.run(a.request(WrOpcode::RdmaWrite, 0, 8, b.coordinates())) == WcStatus::RemInvReqErr);
  CHECK(b.qp->query().state == QpState::Err);
}

TEST_CASE("shm: queue pair numbers and keys are not reused soon") {
  ShmTestDirectory directory;
  Endpoint a(directory);
  std::vector<uint32_t> numbers, keys;
  for (int i = 0; i < 5000; i++) {
    a.qp->close();
    a.newQueuePair();
    numbers.push_back(a.qp->number());
    const auto region = a.domain->registerMemory(a.memory, 0, 8, kAccessLocalWrite);
    keys.push_back(region->rkey());
    region->close();
  }
  std::sort(numbers.begin(), numbers.end());
  CHECK(std::unique(numbers.begin(), numbers.end()) == numbers.end());
  std::sort(keys.begin(), keys.end());
  CHECK(keys.end() - std::unique(keys.begin(), keys.end()) < 20);  // random: few collisions, never in a row
}

// ---------------------------------------------------------------------------------------------------------------
// Channels

bool readable(const Endpoint& endpoint, int timeoutMs) {
  pollfd entry{endpoint.channel->fd(), POLLIN, 0};
  return poll(&entry, 1, timeoutMs) == 1;
}

TEST_CASE("shm: an armed CQ wakes its channel once, for what it was armed for") {
  ShmTestDirectory directory;
  EndpointOptions options;
  options.withChannel = true;
  Endpoint a(directory, options), b(directory, options);
  connectPair(a, b);
  const Coordinates toB = b.coordinates();
  for (uint64_t i = 0; i < 8; i++) REQUIRE(b.postReceive(i, 0, 64) == 0);
  CHECK(a.run(a.request(WrOpcode::Send, 0, 8, toB)) == WcStatus::Success);
  CHECK_FALSE(readable(b, 0));  // not armed
  CHECK_FALSE(readable(a, 0));
  CHECK(b.channel->getEvent() == nullptr);

  SUBCASE("any completion") {
    b.cq->requestNotify(false);
    CHECK(b.wait().wrId == 0);  // the one from before
    CHECK(a.run(a.request(WrOpcode::Send, 0, 8, toB)) == WcStatus::Success);
    CHECK(a.run(a.request(WrOpcode::Send, 0, 8, toB)) == WcStatus::Success);
    REQUIRE(readable(b, 5000));
    CHECK(b.channel->getEvent() == b.cq);
    CHECK(b.channel->getEvent() == nullptr);
    CHECK_FALSE(readable(b, 0));
    WorkCompletion completions[4];
    CHECK(b.cq->poll(completions, 4) == 2);
  }
  SUBCASE("armed again while the event of the arming before is pending") {
    b.cq->requestNotify(false);
    CHECK(a.run(a.request(WrOpcode::Send, 0, 8, toB)) == WcStatus::Success);
    b.cq->requestNotify(false);
    CHECK(b.channel->getEvent() == b.cq);
    CHECK(b.channel->getEvent() == nullptr);
    CHECK(a.run(a.request(WrOpcode::Send, 0, 8, toB)) == WcStatus::Success);
    CHECK(b.channel->getEvent() == b.cq);
  }
  SUBCASE("armed without an event for more than half of the times that are counted") {
    b.cq->requestNotify(false);
    const uint32_t index = static_cast<shm::ShmCompletionQueue&>(*b.cq).index();
    b.internals().control()->completionQueues[index].armed.fetch_add(((1u << 29) + 1) * shm::kArmedUnit);
    b.cq->requestNotify(false);
    CHECK(a.run(a.request(WrOpcode::Send, 0, 8, toB)) == WcStatus::Success);
    CHECK(b.channel->getEvent() == b.cq);
    CHECK(b.channel->getEvent() == nullptr);
  }
  SUBCASE("solicited only") {
    b.cq->requestNotify(true);
    CHECK(a.run(a.request(WrOpcode::Send, 0, 8, toB)) == WcStatus::Success);
    CHECK_FALSE(readable(b, 0));
    SendWorkRequest solicited = a.request(WrOpcode::Send, 0, 8, toB);
    solicited.sendFlags |= kSendSolicited;
    CHECK(a.run(solicited) == WcStatus::Success);
    CHECK(b.channel->getEvent() == b.cq);
  }
  SUBCASE("a local completion") {
    a.cq->requestNotify(false);
    CHECK(a.post(a.request(WrOpcode::RdmaWrite, 0, 8, toB)) == 0);
    CHECK(a.channel->getEvent() == a.cq);
  }
  SUBCASE("the flush of a receive, when the peer broke a rule") {
    b.cq->requestNotify(false);
    while (b.wait().wrId != 0) {
    }
    SendWorkRequest bad = a.request(WrOpcode::RdmaWrite, 0, 8, toB);
    bad.rkey ^= 0x1000;
    CHECK(a.run(bad) == WcStatus::RemAccessErr);
    CHECK(b.channel->getEvent() == b.cq);
    CHECK(b.wait().status == static_cast<int>(WcStatus::WrFlushErr));
  }
  SUBCASE("the flush of a receive by modify") {
    b.cq->requestNotify(false);
    b.qp->modify(stateAttributes(QpState::Err));
    CHECK(b.channel->getEvent() == b.cq);
  }
  SUBCASE("a request that waited for a receive, with nobody polling") {
    for (uint64_t i = 0; i < 7; i++) CHECK(a.run(a.request(WrOpcode::Send, 0, 8, toB)) == WcStatus::Success);
    a.cq->requestNotify(false);
    CHECK(a.post(a.request(WrOpcode::Send, 0, 8, toB)) == 0);
    CHECK(b.postReceive(99, 0, 64) == 0);
    REQUIRE(readable(a, 5000));
    CHECK(a.channel->getEvent() == a.cq);
    CHECK(a.wait().status == 0);
  }
}

TEST_CASE("shm: an event that found its channel full of others' comes when they have been taken") {
  ShmTestDirectory directory;
  EndpointOptions options;
  options.withChannel = true;
  Endpoint a(directory), b(directory, options), c(b.context, {});
  c.channel = b.channel;
  c.cq = c.context->createCompletionQueue(16, c.channel);
  c.newQueuePair();
  connectPair(a, c);
  REQUIRE(c.postReceive(1, 0, 64) == 0);
  // As many armings of one queue as fill the channel, and none of their events is taken.
  Endpoint d(directory);
  connectPair(b, d);
  auto& channel = static_cast<shm::ShmCompletionChannel&>(*b.channel);
  const auto fill = [&] {
    int unread = 0;
    REQUIRE(ioctl(channel.fd(), FIONREAD, &unread) == 0);
    return unread;
  };
  for (int before = -1; fill() != before;) {
    before = fill();
    b.cq->requestNotify(false);
    REQUIRE(b.run(b.request(WrOpcode::RdmaWrite, 0, 8, d.coordinates())) == WcStatus::Success);
  }
  c.cq->requestNotify(false);
  SUBCASE("from another process") {
    CHECK(a.run(a.request(WrOpcode::Send, 0, 8, c.coordinates())) == WcStatus::Success);
  }
  SUBCASE("of a local completion") {
    CHECK(c.post(c.request(WrOpcode::RdmaWrite, 0, 8, a.coordinates())) == 0);
  }
  bool told = false;
  while (readable(b, 0)) {
    if (b.channel->getEvent() == c.cq) told = true;
  }
  CHECK(told);
}

TEST_CASE("shm: a channel that is closed while another thread asks for its descriptor gives that, or says so") {
  ShmTestDirectory directory;
  Endpoint end(directory);
  for (int round = 0; round < 200; round++) {
    const auto channel = end.context->createCompletionChannel();
    const int descriptor = channel->fd();
    std::atomic<bool> asking{false};
    std::atomic<bool> another{false};
    std::thread asker([&] {
      const std::string code = codeOf([&] {
        for (;;) {
          if (channel->fd() != descriptor) another = true;
          asking = true;
        }
      });
      if (code != "QUORATE_CLOSED") another = true;
    });
    REQUIRE(waitUntil([&] { return asking.load(); }));
    channel->close();
    asker.join();
    CHECK_FALSE(another.load());
  }
}

TEST_CASE("shm: a completion queue is let go of while another thread reads old events of it, and that thread goes on") {
  ShmTestDirectory directory;
  // In a process of its own: a thread that waits for itself can only be killed.
  const pid_t child = forkChild([&] {
    constexpr int kRounds = 20'000;
    constexpr int kEvents = 16;
    EndpointOptions options;
    options.withChannel = true;
    Endpoint end(directory, options);
    auto& channel = static_cast<shm::ShmCompletionChannel&>(*end.channel);
    const shm::ControlSegment& control = *end.internals().control();
    std::atomic<bool> ended{false};
    std::thread reader([&] {
      while (!ended.load()) channel.getEvent();
    });
    for (int round = 0; round < kRounds; round++) {
      auto queue = end.context->createCompletionQueue(1, end.channel);
      const uint32_t index = static_cast<shm::ShmCompletionQueue&>(*queue).index();
      const uint32_t arming = shm::armingOf(control.completionQueues[index].armed.load());
      for (int i = 0; i < kEvents; i++) channel.write(index, arming);
      for (int spin = 0; spin < round % 32; spin++) shm::pauseCpu();
      queue.reset();
    }
    ended = true;
    reader.join();
    return 0;
  });
  CHECK(waitForChild(child) == 0);
}

TEST_CASE("shm: a process asleep on its channel is woken by another process, every time") {
  constexpr uint64_t kMessages = 2000;
  ShmTestDirectory directory;
  SharedWithChildren<Exchange> shared;
  const pid_t child = forkChild([&] {
    EndpointOptions options;
    options.withChannel = true;
    Endpoint endpoint(directory, options);
    shared->child = endpoint.coordinates();
    shared->stage = 1;
    if (!waitUntil([&] { return shared->stage == 2; })) return 1;
    endpoint.connect(shared->parent);
    for (uint64_t i = 0; i < 16; i++) {
      if (endpoint.postReceive(i, 64 * i, 64) != 0) return 2;
    }
    endpoint.cq->requestNotify(false);
    shared->stage = 3;
    WorkCompletion completions[16];
    for (uint64_t received = 0; received < kMessages;) {
      if (!readable(endpoint, 20000)) return 3;  // a lost wakeup
      while (endpoint.channel->getEvent() != nullptr) {
      }
      endpoint.cq->requestNotify(false);
      while (const int taken = endpoint.cq->poll(completions, 16)) {
        for (int i = 0; i < taken; i++) {
          if (completions[i].status != 0 || completions[i].wrId != received % 16) return 4;
          if (endpoint.postReceive(received % 16, 64 * (received % 16), 64) != 0) return 5;
          received++;
        }
      }
    }
    return 0;
  });
  Endpoint endpoint(directory);
  shared->parent = endpoint.coordinates();
  REQUIRE(waitUntil([&] { return shared->stage == 1; }));
  endpoint.connect(shared->child);
  shared->stage = 2;
  REQUIRE(waitUntil([&] { return shared->stage == 3; }));
  for (uint64_t i = 0; i < kMessages; i++) {
    REQUIRE(endpoint.run(endpoint.request(WrOpcode::Send, 0, 8, shared->child)) == WcStatus::Success);
  }
  CHECK(waitForChild(child) == 0);
}

// ---------------------------------------------------------------------------------------------------------------
// A peer whose memory holds anything

TEST_CASE("shm: garbage in the responder's control segment never harms the requester") {
  const char* given = std::getenv("QUORATE_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : shm::random64() % 1'000'000;
  std::printf("shm garbage: QUORATE_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  ShmTestDirectory directory;
  EndpointOptions options;
  options.rnrRetry = 0;
  options.withChannel = true;
  int survived = 0;
  for (int round = 0; round < 150; round++) {
    Endpoint a(directory, options), b(directory, options);
    connectPair(a, b);
    b.postReceive(1, 0, 4096);
    b.cq->requestNotify(false);
    shm::ControlSegment& control = *b.internals().control();
    shm::QueuePairSlot& qp = control.queuePairs[b.qp->number() % shm::kMaxQueuePairs];
    shm::RegionSlot& region = control.regions[b.region->rkey() % shm::kMaxMemoryRegions];
    const uint32_t base = qp.receiveBase;
    const auto any = [&] { return random() >> (random() % 64); };
    for (int write = 0; write < 40; write++) {
      switch (random() % 15) {
        case 0:
          region.address = any();
          break;
        case 1:
          region.length = any();
          break;
        case 2:
          region.segmentOffset = any();
          break;
        case 3:
          region.segmentId = any() % 8;
          break;
        case 4:
          region.memory = static_cast<uint32_t>(any());
          break;
        case 5:
          control.memories[random() % 4].segmentId = any() % 8;
          break;
        case 6: {
          shm::MemorySlot& memory = control.memories[random() % 4];
          memory.pathBytes = static_cast<uint32_t>(any());
          for (auto& byte : memory.path) byte = static_cast<uint8_t>(random());
          break;
        }
        case 7:
          qp.postedReceives = static_cast<uint32_t>(any());
          break;
        case 8:
          qp.receiveBase = static_cast<uint32_t>(any());
          break;
        case 9:
          qp.receiveCapacity = static_cast<uint32_t>(any());
          break;
        case 10:
          qp.receiveCq = static_cast<uint32_t>(any());
          break;
        case 11:
          control.receives[base].length = static_cast<uint32_t>(any());
          break;
        case 12:
          control.receives[base].address = any();
          break;
        case 13:
          control.completionQueues[b.internals().completionQueueIndices().take() % 4].channel =
              static_cast<uint32_t>(any());
          break;
        default:
          qp.minRnrTimer = static_cast<uint32_t>(any());
          break;
      }
      static constexpr WrOpcode kOpcodes[] = {WrOpcode::RdmaWrite, WrOpcode::RdmaRead, WrOpcode::Send,
                                              WrOpcode::RdmaWriteWithImm, WrOpcode::FetchAdd};
      const WrOpcode opcode = kOpcodes[random() % std::size(kOpcodes)];
      SendWorkRequest request = a.request(opcode, 0, opcode == WrOpcode::FetchAdd ? 8 : 512, b.coordinates());
      request.remoteAddress = random() % 3 == 0 ? region.address.load() & ~uint64_t{7} : request.remoteAddress;
      REQUIRE(a.post(request) == 0);
      if (a.qp->query().state == QpState::Err) break;
    }
    // Every request ends, one way or the other; what the requester holds itself is untouched.
    WorkCompletion completion;
    for (int polls = 0; polls < 64; polls++) a.cq->poll(&completion, 1);
    survived++;
  }
  CHECK(survived == 150);
}

TEST_CASE("shm: garbage in the responder's word never harms the responder") {
  std::mt19937_64 random(4711);
  ShmTestDirectory directory;
  for (int round = 0; round < 300; round++) {
    Endpoint a(directory), b(directory);
    connectPair(a, b);
    for (uint64_t i = 0; i < 16; i++) REQUIRE(b.postReceive(i, 0, 64) == 0);
    shm::QueuePairSlot& slot = b.internals().control()->queuePairs[b.qp->number() % shm::kMaxQueuePairs];
    slot.word = random();
    WorkCompletion completions[32];
    const int taken = b.cq->poll(completions, 32);
    CHECK(taken <= 16);
    for (int i = 0; i < taken; i++) CHECK(completions[i].byteLen <= 64);
    // Revocation still ends: at worst it takes the garbage for a stopped requester, and moves the memory.
    b.region->close();
    b.qp->close();
  }
}

}  // namespace
}  // namespace quorate::test

// Shared receive queues on shared memory: claims of many requesters at once, and receives that a requester claimed and
// never filled.
#include <algorithm>
#include <thread>

#include "provider/shm/shared_receive_queue.h"
#include "test/child_process.h"
#include "test/shm_fixture.h"
#include "test/shm_held_copy.h"

namespace quorate::test {
namespace {

struct Shared {
  explicit Shared(const ShmTestDirectory& directory, uint32_t maxWr = 16) : a(directory), b(directory) {
    srq = b.domain->createSharedReceiveQueue(maxWr);
    QpInit init;
    init.sendCq = init.recvCq = b.cq;
    init.srq = srq;
    b.qp->close();
    b.qp = b.domain->createQueuePair(init);
    connectPair(a, b);
  }
  size_t post(uint64_t firstId, size_t count) {
    size_t accepted = 0;
    for (size_t i = 0; i < count; i++) {
      int errnum = 0;
      const ReceiveWorkRequest request{firstId + i, b.coordinates().address + 64 * i, 64, b.region->lkey()};
      accepted += srq->postReceive(&request, 1, &errnum);
    }
    return accepted;
  }
  shm::SharedReceiveQueueSlot& slot() { return b.internals().control()->sharedQueues[internals().index()]; }
  shm::ShmSharedReceiveQueue& internals() { return static_cast<shm::ShmSharedReceiveQueue&>(*srq); }
  shm::QueuePairSlot& queuePairSlot() {
    return b.internals().control()->queuePairs[b.qp->number() % shm::kMaxQueuePairs];
  }

  Endpoint a, b;
  std::shared_ptr<SharedReceiveQueue> srq;
};

}  // namespace

TEST_CASE("shm: each receive of a shared queue is claimed once, however many claim at the same time") {
  ShmTestDirectory directory;
  Shared rig(directory, 1024);
  constexpr int kThreads = 3;
  constexpr uint64_t kRounds = 20;
  shm::ControlSegment& control = *rig.b.internals().control();
  const uint32_t base = rig.slot().base, capacity = rig.slot().capacity;
  for (uint64_t round = 0; round < kRounds; round++) {
    REQUIRE(rig.post(round * capacity, capacity) == capacity);
    std::vector<uint32_t> claimed[kThreads];
    std::vector<std::thread> threads;
    for (uint32_t t = 0; t < kThreads; t++) {
      threads.emplace_back([&, t] {
        bool limitReached = false;
        for (;;) {
          const uint32_t index = shm::claimSharedReceive(control, rig.slot(), base, capacity, 500 + t, &limitReached);
          if (index == shm::kNoReceive) break;
          claimed[t].push_back(index);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    std::vector<uint32_t> all;
    for (uint32_t t = 0; t < kThreads; t++) {
      all.insert(all.end(), claimed[t].begin(), claimed[t].end());
      for (const uint32_t index : claimed[t]) {
        ReceiveWorkRequest posted;
        CHECK_FALSE(rig.internals().complete(index, 499, &posted));  // it is another's
        CHECK(rig.internals().complete(index, 500 + t, &posted));
        CHECK_FALSE(rig.internals().complete(index, 500 + t, &posted));  // once
      }
    }
    std::sort(all.begin(), all.end());
    REQUIRE(all.size() == capacity);
    CHECK(std::adjacent_find(all.begin(), all.end()) == all.end());
  }
}

TEST_CASE("shm: a claim that was written and not counted is helped on") {
  ShmTestDirectory directory;
  Shared rig(directory);
  REQUIRE(rig.post(1, 2) == 2);
  shm::ControlSegment& control = *rig.b.internals().control();
  const uint32_t base = rig.slot().base;
  const uint32_t first = control.sharedReceives[base + (rig.slot().claimed.load() & (rig.slot().capacity - 1))].order;
  control.sharedReceives[base + first].owner.store(900);  // its claimer died right there
  CHECK(rig.a.run(rig.a.request(WrOpcode::Send, 0, 8, rig.b.coordinates())) == WcStatus::Success);
  CHECK(rig.b.wait().wrId == 2);
}

TEST_CASE("shm: a receive that was claimed for a queue pair and never filled is flushed with it, or free again") {
  ShmTestDirectory directory;
  Shared rig(directory, 4);
  REQUIRE(rig.post(1, 4) == 4);
  const uint32_t index = rig.b.qp->number() % shm::kMaxQueuePairs;
  bool limitReached = false;
  const uint32_t claimed = shm::claimSharedReceive(*rig.b.internals().control(), rig.slot(), rig.slot().base,
                                                   rig.slot().capacity, index, &limitReached);
  rig.queuePairSlot().claimedReceive.store(claimed + 1);
  CHECK(rig.post(9, 1) == 0);  // all four are taken
  SUBCASE("flushed") {
    rig.b.qp->modify(stateAttributes(QpState::Err));
    const WorkCompletion completion = rig.b.wait();
    CHECK(completion.wrId == 1);
    CHECK(completion.status == static_cast<int>(WcStatus::WrFlushErr));
    WorkCompletion none;
    CHECK(rig.b.cq->poll(&none, 1) == 0);
    AsyncEvent event;
    CHECK(rig.b.context->getAsyncEvent(&event));
    CHECK(event.type == static_cast<int>(AsyncEventType::QpLastWqeReached));
    CHECK(event.object == rig.b.qp);
  }
  SUBCASE("closed") {
    rig.b.qp->close();
  }
  CHECK(rig.post(9, 1) == 1);
}

TEST_CASE("shm: a queue pair is let go of while another thread polls its last receive, and that thread goes on") {
  ShmTestDirectory directory;
  // In a process of its own: a thread that waits for itself can only be killed.
  const pid_t child = forkChild([&] {
    constexpr int kRounds = 20'000;
    Endpoint end(directory);
    end.context->asyncFd();  // the event goes through a FIFO, which takes its time
    QpInit init;
    init.sendCq = init.recvCq = end.cq;
    init.srq = end.domain->createSharedReceiveQueue(4);
    std::atomic<bool> ended{false};
    std::thread poller([&] {
      WorkCompletion completion;
      while (!ended.load()) end.cq->poll(&completion, 1);
    });
    for (int round = 0; round < kRounds; round++) {
      auto queuePair = end.domain->createQueuePair(init);
      queuePair->modify(initAttributes(0));
      queuePair->modify(stateAttributes(QpState::Err));
      for (int spin = 0; spin < round % 32; spin++) shm::pauseCpu();
      queuePair.reset();
    }
    ended = true;
    poller.join();
    return 0;
  });
  CHECK(waitForChild(child) == 0);
}

TEST_CASE("shm: no byte of a SEND lands in a shared receive after it was revoked") {
  ShmTestDirectory directory;
  Shared rig(directory);
  REQUIRE(rig.post(1, 2) == 2);
  std::memset(rig.a.bytes(), 0x99, 64);
  const SendWorkRequest request = rig.a.request(WrOpcode::Send, 0, 64, rig.b.coordinates());
  WcStatus status = WcStatus::Success;
  const auto send = [&] { status = rig.a.run(request); };
  SUBCASE("by deregistration") {
    revokeInMidCopy(rig.b, send, [&] { rig.b.region->close(); });
  }
  SUBCASE("by the error state") {
    revokeInMidCopy(rig.b, send, [&] { rig.b.qp->modify(stateAttributes(QpState::Err)); });
  }
  CHECK(status != WcStatus::Success);
}

TEST_CASE("shm: a peer that completes what it did not claim is found out") {
  ShmTestDirectory directory;
  Shared rig(directory);
  REQUIRE(rig.post(1, 2) == 2);
  shm::QueuePairSlot& slot = rig.queuePairSlot();
  shm::ReceiveEntry& entry = rig.b.internals().control()->receives[slot.receiveBase.load()];
  entry.address.store(uint64_t{1} << 40);
  slot.word.store(shm::word::withOneMoreReceived(slot.word.load()));
  slot.receiveCq.load();
  rig.b.internals().control()->completionQueues[slot.receiveCq.load()].doorbell.fetch_add(1);
  WorkCompletion completion;
  CHECK(rig.b.cq->poll(&completion, 1) == 0);
  CHECK(rig.b.qp->query().state == QpState::Err);
}

}  // namespace quorate::test

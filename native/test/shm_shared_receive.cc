// Shared receive queues on shared memory: claims of many requesters at once, and receives that a requester claimed and
// never filled.
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

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

int64_t threadTime_ns() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return time.tv_sec * int64_t{1'000'000'000} + time.tv_nsec;
}

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

TEST_CASE("shm: no receive of a shared queue is lost when a requester is held up before it claims one") {
  ShmTestDirectory directory;
  Shared rig(directory, 2);
  Endpoint c(directory);  // another requester
  Endpoint d(rig.b.context, {});
  QpInit init;
  init.sendCq = init.recvCq = rig.b.cq;
  init.srq = rig.srq;
  d.qp->close();
  d.qp = rig.b.domain->createQueuePair(init);
  connectPair(c, d);
  REQUIRE(rig.post(1, 2) == 2);
  const auto send = [&](Endpoint& from) { return from.run(from.request(WrOpcode::Send, 0, 8, rig.b.coordinates())); };
  std::vector<uint64_t> received;
  holdBeforeClaim([&] { send(rig.a); },
                  [&] {
                    CHECK(send(c) == WcStatus::Success);
                    received.push_back(rig.b.wait().wrId);
                    CHECK(rig.post(3, 1) == 1);
                  });
  received.push_back(rig.b.wait().wrId);
  CHECK(rig.post(4, 1) == 1);
  for (int i = 0; i < 2; i++) {
    REQUIRE(c.post(c.request(WrOpcode::Send, 0, 8, rig.b.coordinates())) == 0);
    received.push_back(rig.b.wait().wrId);
  }
  CHECK(received == std::vector<uint64_t>{1, 2, 3, 4});
}

TEST_CASE("shm: a receive that is claimed for a queue pair after that was closed is free again") {
  ShmTestDirectory directory;
  Shared rig(directory, 2);
  REQUIRE(rig.post(1, 2) == 2);
  WcStatus status = WcStatus::Success;
  holdBeforeClaim([&] { status = rig.a.run(rig.a.request(WrOpcode::Send, 0, 8, rig.b.coordinates())); },
                  [&] { rig.b.qp->close(); });
  CHECK(status == WcStatus::RetryExcErr);
  QpInit init;
  init.sendCq = init.recvCq = rig.b.cq;
  init.srq = rig.srq;
  rig.b.qp = rig.b.domain->createQueuePair(init);
  CHECK(rig.post(3, 1) == 1);
}

TEST_CASE("shm: a requester that was held up before it claimed a receive takes none of the queue that came after") {
  ShmTestDirectory directory;
  Shared rig(directory, 2);
  Endpoint c(directory);  // another requester
  REQUIRE(rig.post(1, 2) == 2);
  const auto send = [&](Endpoint& from) { return from.request(WrOpcode::Send, 0, 8, rig.b.coordinates()); };
  WcStatus status = WcStatus::Success;
  holdBeforeClaim([&] { status = rig.a.run(send(rig.a)); },
                  [&] {
                    rig.b.qp->close();
                    rig.srq->close();
                    rig.srq = rig.b.domain->createSharedReceiveQueue(2);
                    QpInit init;
                    init.sendCq = init.recvCq = rig.b.cq;
                    init.srq = rig.srq;
                    rig.b.qp = rig.b.domain->createQueuePair(init);
                    connectPair(c, rig.b);
                    CHECK(rig.post(3, 2) == 2);
                  });
  CHECK(status == WcStatus::RetryExcErr);
  for (const uint64_t expected : {3, 4}) {
    REQUIRE(c.post(send(c)) == 0);
    CHECK(rig.b.wait().wrId == expected);
  }
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

TEST_CASE("shm: a limit that was undercut is told of, although who undercut it died before it could tell") {
  ShmTestDirectory directory;
  Shared rig(directory);
  REQUIRE(rig.post(1, 3) == 3);
  pollfd events{rig.b.context->asyncFd(), POLLIN, 0};
  rig.srq->setLimit(3);
  rig.slot().limit = 0;
  rig.slot().limitReached = 1;  // its claimer died right there
  REQUIRE(poll(&events, 1, 0) == 0);
  const auto send = [&] { return rig.a.run(rig.a.request(WrOpcode::Send, 0, 8, rig.b.coordinates())); };
  CHECK(send() == WcStatus::Success);
  CHECK(poll(&events, 1, 0) == 1);
  AsyncEvent event;
  REQUIRE(rig.b.context->getAsyncEvent(&event));
  CHECK(event.type == static_cast<int>(AsyncEventType::SrqLimitReached));
  CHECK(event.object == rig.srq);
  CHECK(send() == WcStatus::Success);
  CHECK(poll(&events, 1, 0) == 0);  // once
  CHECK_FALSE(rig.b.context->getAsyncEvent(&event));
}

TEST_CASE("shm: a process that wakes the reader of asynchronous events without end does not hold it up") {
  ShmTestDirectory directory;
  const pid_t child = forkChild([&] {
    Endpoint end(directory);
    pollfd readable{end.context->asyncFd(), POLLIN, 0};
    const std::string fifo = directory.path() + "/" + directory.names(".ch-").at(0);
    const pid_t flooder = forkChild([&] {
      const std::vector<uint8_t> wakeUps(4096);
      const int fd = ::open(fifo.c_str(), O_RDWR | O_CLOEXEC);
      while (write(fd, wakeUps.data(), wakeUps.size()) > 0) {
      }
      return 0;
    });
    int64_t most_ns = 0;  // of processor time, which no other process has a part in
    for (int i = 0; i < 300; i++) {
      AsyncEvent event;
      if (poll(&readable, 1, 10'000) != 1) return 1;
      const int64_t before_ns = threadTime_ns();
      end.context->getAsyncEvent(&event);
      most_ns = std::max(most_ns, threadTime_ns() - before_ns);
    }
    kill(flooder, SIGKILL);
    waitForChild(flooder);
    return most_ns < 5'000'000 ? 0 : 2;
  });
  CHECK(waitForChild(child) == 0);
}

TEST_CASE("shm: limits that peers report without end take no more memory than other events") {
  ShmTestDirectory directory;
  Endpoint end(directory);
  std::vector<std::shared_ptr<SharedReceiveQueue>> queues;
  for (uint32_t i = 0; i < shm::kMaxSharedReceiveQueues; i++) {
    queues.push_back(end.domain->createSharedReceiveQueue(1));
  }
  const auto report = [&] {
    for (const auto& queue : queues) {
      const uint32_t index = static_cast<shm::ShmSharedReceiveQueue&>(*queue).index();
      end.internals().control()->sharedQueues[index].limitReached.store(1);
    }
  };
  AsyncEvent event;
  for (int i = 0; i < 200; i++) {
    report();
    REQUIRE(end.context->getAsyncEvent(&event));
  }
  size_t pending = 0;
  while (end.context->getAsyncEvent(&event)) pending++;
  CHECK(pending <= 4 * shm::kMaxQueuePairs);
}

TEST_CASE("shm: shared receive queues that come and go leave no memory behind if nobody asks for their events") {
  ShmTestDirectory directory;
  Endpoint end(directory);
  const auto comeAndGo = [&](int times) {
    for (int i = 0; i < times; i++) end.domain->createSharedReceiveQueue(1);
  };
  comeAndGo(1000);
  const size_t before = mallinfo2().uordblks;
  comeAndGo(1000);
  CHECK(mallinfo2().uordblks <= before + 64 * 1024);
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

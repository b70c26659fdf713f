// How long an operation of the shm provider takes, post to polled completion, uncontended. Not part of a normal run:
//   native_tests --no-skip --test-case="shm: bench*"
#include <poll.h>
#include <time.h>

#include <algorithm>
#include <cstdio>

#include "test/child_process.h"
#include "test/shm_fixture.h"

namespace quorate::test {
namespace {

// Elapsed time, and the thread's CPU time: on a busy machine the first counts the others' work, too.
struct Cost {
  double elapsed_ns = 1e18, cpu_ns = 1e18;
};

double clock_ns(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

Cost costPerOperation(Endpoint& endpoint, const SendWorkRequest& request, int iterations) {
  WorkCompletion completion;
  int errnum = 0;
  Cost best;
  for (int repeat = 0; repeat < 7; repeat++) {
    const double begin = clock_ns(CLOCK_MONOTONIC), cpuBegin = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    for (int i = 0; i < iterations; i++) {
      if (endpoint.qp->postSend(&request, 1, &errnum) != 1) throw std::runtime_error("post refused");
      while (endpoint.cq->poll(&completion, 1) == 0) {
      }
      if (completion.status != 0) throw std::runtime_error("failed: " + wcStatusName(completion.status));
    }
    best.cpu_ns = std::min(best.cpu_ns, (clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpuBegin) / iterations);
    best.elapsed_ns = std::min(best.elapsed_ns, (clock_ns(CLOCK_MONOTONIC) - begin) / iterations);
  }
  return best;
}

TEST_CASE("shm: bench of post + poll to another process, the best of 7 runs" * doctest::skip()) {
  ShmTestDirectory directory;
  SharedWithChildren<Exchange> shared;
  EndpointOptions options;
  options.memoryBytes = 4 << 20;
  const pid_t child = forkChild([&] {
    Endpoint endpoint(directory, options);
    shared->child = endpoint.coordinates();
    shared->stage = 1;
    waitUntil([&] { return shared->stage == 2; });
    endpoint.connect(shared->parent);
    shared->stage = 3;
    pollfd nothing{};
    while (shared->stage != 4) poll(&nothing, 0, 10);
    return 0;
  });
  Endpoint endpoint(directory, options);
  shared->parent = endpoint.coordinates();
  REQUIRE(waitUntil([&] { return shared->stage == 1; }));
  endpoint.connect(shared->child);
  shared->stage = 2;
  REQUIRE(waitUntil([&] { return shared->stage == 3; }));
  const struct {
    const char* name;
    WrOpcode opcode;
    uint32_t length;
    int iterations;
  } kCases[] = {
      {"WRITE 64 B", WrOpcode::RdmaWrite, 64, 1'000'000},  {"READ 64 B", WrOpcode::RdmaRead, 64, 1'000'000},
      {"CAS", WrOpcode::CompareSwap, 8, 1'000'000},        {"FAA", WrOpcode::FetchAdd, 8, 1'000'000},
      {"WRITE 4 KiB", WrOpcode::RdmaWrite, 4096, 200'000}, {"WRITE 64 KiB", WrOpcode::RdmaWrite, 65536, 20'000},
      {"WRITE 1 MiB", WrOpcode::RdmaWrite, 1 << 20, 1'000}};
  for (const auto& c : kCases) {
    const SendWorkRequest request = endpoint.request(c.opcode, 0, c.length, shared->child, 0);
    const Cost cost = costPerOperation(endpoint, request, c.iterations);
    std::printf("%-14s %10.1f ns elapsed, %10.1f ns of CPU\n", c.name, cost.elapsed_ns, cost.cpu_ns);
  }
  shared->stage = 4;
  CHECK(waitForChild(child) == 0);
}

}  // namespace
}  // namespace quorate::test

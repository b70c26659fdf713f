// How long an operation of the shm provider takes, post to polled completion, uncontended. Not part of a normal run:
//   native_tests --no-skip --test-case="shm: bench*"
#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "test/child_process.h"
#include "test/shm_fixture.h"

namespace quorate::test {
namespace {

struct Exchange {
  Coordinates parent, child;
  std::atomic<int> stage{0};
};

double nsPerOperation(Endpoint& endpoint, const SendWorkRequest& request, int iterations) {
  WorkCompletion completion;
  int errnum = 0;
  double best = 1e18;
  for (int repeat = 0; repeat < 7; repeat++) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < iterations; i++) {
      if (endpoint.qp->postSend(&request, 1, &errnum) != 1) throw std::runtime_error("post refused");
      while (endpoint.cq->poll(&completion, 1) == 0) {
      }
      if (completion.status != 0) throw std::runtime_error("failed: " + wcStatusName(completion.status));
    }
    const auto end = std::chrono::steady_clock::now();
    best = std::min(best, std::chrono::duration<double, std::nano>(end - begin).count() / iterations);
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
  } kCases[] = {{"WRITE 64 B", WrOpcode::RdmaWrite, 64, 1'000'000},    {"READ 64 B", WrOpcode::RdmaRead, 64, 1'000'000},
                {"CAS", WrOpcode::CompareSwap, 8, 1'000'000},          {"FAA", WrOpcode::FetchAdd, 8, 1'000'000},
                {"WRITE 4 KiB", WrOpcode::RdmaWrite, 4096, 200'000},   {"WRITE 64 KiB", WrOpcode::RdmaWrite, 65536, 20'000},
                {"WRITE 1 MiB", WrOpcode::RdmaWrite, 1 << 20, 1'000}};
  for (const auto& c : kCases) {
    const SendWorkRequest request = endpoint.request(c.opcode, 0, c.length, shared->child, 0);
    std::printf("%-14s %10.1f ns\n", c.name, nsPerOperation(endpoint, request, c.iterations));
  }
  shared->stage = 4;
  CHECK(waitForChild(child) == 0);
}

}  // namespace
}  // namespace quorate::test

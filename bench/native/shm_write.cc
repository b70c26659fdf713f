// The yardstick for the JavaScript binding on shared memory: the same WRITE through the same provider, from a C++ loop
// with nothing in between. bench/verbs-overhead.mjs runs it in turn with its own loop; both count whole pieces of
// operations between two readings of the clock, and both have the two ends in one process.
//
//   shm_write [--size 64] [--batch 1] [--milliseconds 100]
//
// Prints one JSON object: nanoseconds from posting to completion per operation, the best and the median of the rounds.
#include <getopt.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "test/shm_fixture.h"

namespace quorate::test {
namespace {

constexpr int kRounds = 9;
constexpr int kStep = 256;  // calls between two readings of the clock
constexpr size_t kMaxBatch = 64;
constexpr uint32_t kMaxSizeBytes = 1 << 20;

uint64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

uint32_t number(const char* name, const char* text, uint32_t least, uint32_t most) {
  char* rest = nullptr;
  const unsigned long value = std::strtoul(text, &rest, 10);
  if (rest == text || *rest != '\0' || value < least || value > most) {
    throw std::runtime_error(std::string("--") + name + " must be a number from " + std::to_string(least) + " to " +
                             std::to_string(most));
  }
  return static_cast<uint32_t>(value);
}

struct Settings {
  uint32_t sizeBytes = 64;
  uint32_t batch = 1;
  uint32_t milliseconds = 100;
};

// Posts `batch` requests with one call and polls until all have completed.
void runOnce(Endpoint& near, const SendWorkRequest* requests, size_t batch) {
  static std::array<WorkCompletion, kMaxBatch> completions;  // not made anew for each call
  int errnum = 0;
  if (near.qp->postSend(requests, batch, &errnum) != batch) throw std::runtime_error("a post was refused");
  size_t completed = 0;
  while (completed < batch) {
    const int count = near.cq->poll(completions.data(), static_cast<int>(kMaxBatch));
    for (int i = 0; i < count; i++) {
      const int status = completions[static_cast<size_t>(i)].status;
      if (status != 0) throw std::runtime_error("a WRITE failed: " + wcStatusName(status));
    }
    completed += static_cast<size_t>(count);
  }
}

void run(const Settings& settings) {
  ShmTestDirectory directory;
  EndpointOptions options;
  options.memoryBytes = std::max<size_t>(65536, settings.sizeBytes);
  Endpoint near(directory, options), far(directory, options);
  connectPair(near, far);
  std::fill_n(near.bytes(), settings.sizeBytes, uint8_t{0x5a});
  const std::vector<SendWorkRequest> requests(
      settings.batch, near.request(WrOpcode::RdmaWrite, 0, settings.sizeBytes, far.coordinates()));

  const uint64_t round_ns = uint64_t{settings.milliseconds} * 1'000'000u / kRounds;
  std::array<double, kRounds> perOperation{};
  for (int round = -1; round < kRounds; round++) {  // the first one warms up
    uint64_t calls = 0, now = now_ns();
    const uint64_t begin = now;
    while (now < begin + round_ns) {
      for (int i = 0; i < kStep; i++) runOnce(near, requests.data(), requests.size());
      calls += kStep;
      now = now_ns();
    }
    const double each = static_cast<double>(now - begin) / static_cast<double>(calls) / settings.batch;
    if (round >= 0) perOperation[static_cast<size_t>(round)] = each;
  }
  if (std::count(far.bytes(), far.bytes() + settings.sizeBytes, uint8_t{0x5a}) != settings.sizeBytes) {
    throw std::runtime_error("the bytes did not arrive");
  }
  std::sort(perOperation.begin(), perOperation.end());
  std::printf("{\"bestNs\":%.1f,\"medianNs\":%.1f,\"size\":%u,\"batch\":%u}\n", perOperation.front(),
              perOperation[kRounds / 2], settings.sizeBytes, settings.batch);
}

}  // namespace
}  // namespace quorate::test

int main(int argc, char** argv) {
  static const struct option kOptions[] = {{"size", required_argument, nullptr, 's'},
                                           {"batch", required_argument, nullptr, 'b'},
                                           {"milliseconds", required_argument, nullptr, 'm'},
                                           {nullptr, 0, nullptr, 0}};
  try {
    quorate::test::Settings settings;
    int option = 0;
    while ((option = getopt_long(argc, argv, "", kOptions, nullptr)) != -1) {
      using quorate::test::number;
      if (option == 's') {
        settings.sizeBytes = number("size", optarg, 1, quorate::test::kMaxSizeBytes);
      } else if (option == 'b') {
        settings.batch = number("batch", optarg, 1, quorate::test::kMaxBatch);
      } else if (option == 'm') {
        settings.milliseconds = number("milliseconds", optarg, 10, 60'000);
      } else {
        return 2;
      }
    }
    quorate::test::run(settings);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "shm_write: %s\n", error.what());
    return 1;
  }
}

// The order in which a keeper gives back what a killed process had. A tracer stops the keeper where its end begins,
// before the kernel takes its memory and the rest of its descriptors.
#include "provider/exit_hold.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <string>
#include <system_error>

#include "test/child_process.h"
#include "test/skip.h"

namespace {

constexpr uint64_t kHoldNs = 50'000'000;
constexpr int kPatienceMs = 20'000;

bool hasEnded(int pipe, int timeoutMs) {
  pollfd end{pipe, 0, 0};
  return poll(&end, 1, timeoutMs) == 1 && (end.revents & POLLHUP) != 0;
}

}  // namespace

TEST_CASE("a keeper closes the descriptors of a killed process before it gives its memory back") {
  std::array<int, 2> held;
  std::array<int, 2> told;
  REQUIRE(pipe2(held.data(), O_CLOEXEC) == 0);
  REQUIRE(pipe2(told.data(), O_CLOEXEC) == 0);
  const pid_t child = quorate::test::forkChild([&] {
    close(held[0]);
    const auto hold = quorate::ExitHold::open(kHoldNs);
    const pid_t keeper = hold->keeper();
    if (write(told[1], &keeper, sizeof(keeper)) != sizeof(keeper)) return 1;
    for (;;) pause();
  });
  close(held[1]);
  close(told[1]);
  pid_t keeper = 0;
  REQUIRE(read(told[0], &keeper, sizeof(keeper)) == sizeof(keeper));
  close(told[0]);
  if (ptrace(PTRACE_SEIZE, keeper, nullptr, PTRACE_O_TRACEEXIT) != 0) {
    const std::string reason = std::generic_category().message(errno);
    kill(child, SIGKILL);
    quorate::test::waitForChild(child);
    close(held[0]);
    quorate::test::skipTest("no process may be traced here: " + reason);
    return;
  }

  // Whoever looks late sees the end of the hold later, never earlier.
  const auto before = std::chrono::steady_clock::now();
  kill(child, SIGKILL);
  CHECK(quorate::test::waitForChild(child) == 256 + SIGKILL);
  CHECK(hasEnded(held[0], kPatienceMs));
  CHECK(std::chrono::steady_clock::now() - before >= std::chrono::nanoseconds(kHoldNs));
  int status = 0;
  REQUIRE(waitpid(keeper, &status, __WALL) == keeper);
  CHECK((status >> 8) == (SIGTRAP | (PTRACE_EVENT_EXIT << 8)));
  ptrace(PTRACE_CONT, keeper, nullptr, nullptr);
  CHECK(waitpid(keeper, &status, __WALL) == keeper);
  CHECK(WIFEXITED(status));
  close(held[0]);
}

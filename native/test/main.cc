// The test program's entry. Tests that need something this machine lacks (an RDMA device) call skipTest() and return;
// what was skipped is counted and printed last, so that a run without a device is never mistaken for a full one.
// With QUORATE_REQUIRE_RDMA=1 a skip is a failure.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "test/skip.h"

namespace quorate::test {
namespace {
int g_skipped = 0;
}

void skipTest(const std::string& reason) {
  const char* required = std::getenv("QUORATE_REQUIRE_RDMA");
  if (required != nullptr && std::string(required) == "1") {
    FAIL("skipped although QUORATE_REQUIRE_RDMA=1: ", reason);
    return;
  }
  g_skipped++;
  MESSAGE("SKIPPED: ", reason);
}

}  // namespace quorate::test

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  const int result = context.run();
  if (context.shouldExit()) return result;
  if (quorate::test::g_skipped > 0) {
    std::printf("SKIPPED %d test cases that need what this machine lacks (see the messages above)\n",
                quorate::test::g_skipped);
  }
  return result;
}

// How a test says that it cannot run here.
#pragma once

#include <string>

namespace quorate::test {

// Prints the reason and counts the skip; the test case returns afterwards. Fails instead with QUORATE_REQUIRE_RDMA=1.
void skipTest(const std::string& reason);

}  // namespace quorate::test

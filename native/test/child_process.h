// Tests that need another process: a forked child runs a function and reports through its exit status.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <functional>

namespace quorate::test {

// Runs `body` in a forked child, which ends with the value that it returns (0 to 255) without running destructors or
// exit handlers of the parent's objects. Returns the pid.
pid_t forkChild(const std::function<int()>& body);

// Waits for the child; its exit status, or 256 + the number of the signal that ended it. Kills it after `limitMs`.
int waitForChild(pid_t pid, int limitMs = 30000);

// From here on this process can map about so many bytes more. For a child: there is no way back.
void limitAddressSpace(size_t moreBytes);

}  // namespace quorate::test

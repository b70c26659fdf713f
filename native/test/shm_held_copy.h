// Holds a requester thread of this process in the middle of its copy, so that a test can revoke while it stands there, or
// before it claims a receive of a shared queue.
#pragma once

#include <functional>

#include "test/shm_fixture.h"

namespace quorate::test {

// Runs `send` in a thread of its own until half of its message is copied, then `revoke` here, and lets it go on. Fails
// the test if a byte of `end`'s memory changes after `revoke` has returned.
void revokeInMidCopy(Endpoint& end, const std::function<void()>& send, const std::function<void()>& revoke);

// Runs `send` in a thread of its own until it is about to claim a receive, then `meanwhile` here, and lets it go on.
void holdBeforeClaim(const std::function<void()>& send, const std::function<void()>& meanwhile);

}  // namespace quorate::test

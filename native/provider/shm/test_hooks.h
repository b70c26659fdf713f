// Where the C++ tests reach into the provider: they stop a requester exactly between two steps of an operation, and
// switch the drain off to prove that the race tests would notice. Nothing but the tests writes these; the addon does
// not expose them. The cost on the hot path is one load of a constant cache line.
#pragma once

#include <atomic>

namespace quorate::shm {

enum class HookPoint {
  BeforeClaim,    // the next receive of a shared queue is known, and not claimed yet
  AfterClaim,     // it is claimed, and that is not counted yet
  AfterTake,      // the word is taken, the region not yet validated
  BeforeCopy,     // everything is validated
  MidCopy,        // half of the chunk is copied
  BeforeRelease,  // all of the chunk is copied
};

struct TestHooks {
  std::atomic<void (*)(HookPoint)> reached{nullptr};
  std::atomic<bool> skipDrain{false};  // UNSOUND: revocation does not wait for operations under way
  std::atomic<bool> skipMove{false};   // UNSOUND: a stuck operation is passed over, but its memory is not moved
};

extern TestHooks testHooks;

inline void reached(HookPoint point) {
  if (auto* hook = testHooks.reached.load(std::memory_order_relaxed)) [[unlikely]]
    hook(point);
}

}  // namespace quorate::shm

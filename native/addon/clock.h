// Time as the addon's arguments count it: nanoseconds, never negative.
#pragma once

#include <cstdint>
#include <ctime>

#include "provider/clock.h"

namespace quorate::addon {

constexpr uint64_t kNsPerSecond = 1'000'000'000;
// The longest that one call may be asked to wait.
constexpr uint64_t kMaxWaitNs = 60 * kNsPerSecond;

inline uint64_t nowNs() {
  return static_cast<uint64_t>(monotonic_ns());
}

inline timespec toTimespec(uint64_t ns) {
  return {static_cast<time_t>(ns / kNsPerSecond), static_cast<long>(ns % kNsPerSecond)};
}

}  // namespace quorate::addon

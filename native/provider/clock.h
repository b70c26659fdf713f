// The clock by which this library measures how long something takes: CLOCK_MONOTONIC, as one number.
#pragma once

#include <cstdint>
#include <ctime>

namespace quorate {

inline int64_t monotonic_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

}  // namespace quorate

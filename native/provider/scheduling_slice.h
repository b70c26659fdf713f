// Short slices for threads that must run soon after they wake on a host whose processors are all busy (Linux 6.12 and
// later: among threads of one priority the one with the shorter slice goes first, for as long as it has had less than
// its share).
#pragma once

#include <cstdint>

namespace quorate {

// For the calling thread. False if the kernel knows no slice of a thread, or the thread's policy has none; then nothing
// has changed.
bool setSchedulingSlice(uint64_t slice_ns);

}  // namespace quorate

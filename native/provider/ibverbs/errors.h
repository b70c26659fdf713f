// How failing verbs become VerbsErrors: one sentence with what failed, on what, why the kernel says so and what to do.
// The case users meet first, a locked-memory limit that is too small, is recognized and explained here.
#pragma once

#include <cstdint>
#include <string>

#include "verbs/verbs.h"

namespace quorate::ibverbs {

std::string errnoText(int errnum);  // "ENOMEM, Cannot allocate memory"

// Throws QUORATE_SYSTEM: "<what> failed: <errno text>. <advice>".
[[noreturn]] void throwSystemError(const char* syscall, int errnum, const std::string& what, const std::string& advice);

// For calls that pin memory. ENOMEM under a finite RLIMIT_MEMLOCK, without the capability that lifts it, becomes
// QUORATE_MEMLOCK naming the size wanted and the limit found; anything else becomes QUORATE_SYSTEM.
[[noreturn]] void throwPinningError(const char* syscall, int errnum, const std::string& what, uint64_t wantedBytes,
                                    const std::string& advice);

}  // namespace quorate::ibverbs

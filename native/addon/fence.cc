// See fence.h.
#include "addon/fence.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <mutex>
#include <string>

#include "addon/cpu_pause.h"

namespace quorate::addon {

namespace {
constexpr int kSpins = 200;  // some microseconds: several times as long as a copy of one log entry

void futexWait(std::atomic<uint32_t>* word, uint32_t expected) {
  ::syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}
void futexWakeOne(std::atomic<uint32_t>* word) {
  ::syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}
}  // namespace

void FenceLock::lock() {
  for (int i = 0; i < kSpins; i++) {
    uint32_t expected = kFree;
    if (word_.load(std::memory_order_relaxed) == kFree &&
        word_.compare_exchange_weak(expected, kHeld, std::memory_order_acquire, std::memory_order_relaxed)) {
      return;
    }
    cpuPause();
  }
  // Whoever takes the lock from here on marks it contended: it cannot know whether it was the last to wait.
  while (word_.exchange(kContended, std::memory_order_acquire) != kFree) futexWait(&word_, kContended);
}

void FenceLock::unlock() {
  if (word_.exchange(kFree, std::memory_order_release) == kContended) futexWakeOne(&word_);
}

void Fence::close() {
  std::lock_guard<FenceLock> guard(lock_);
  closed_.store(true, std::memory_order_release);
}

uint64_t Fence::raise(uint64_t epoch) {
  std::lock_guard<FenceLock> guard(lock_);
  if (closed_.load(std::memory_order_relaxed)) throw VerbsError("QUORATE_CLOSED", "this Fence is closed");
  const uint64_t previous = epoch_.load(std::memory_order_relaxed);
  if (epoch < previous) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT", "a fence is never lowered: it holds epoch " +
                                                     std::to_string(previous) + " and was asked to hold " +
                                                     std::to_string(epoch));
  }
  epoch_.store(epoch, std::memory_order_release);
  return previous;
}

Fence::Outcome Fence::copy(uint64_t epoch, void* target, const void* source, size_t length) {
  std::lock_guard<FenceLock> guard(lock_);
  if (closed_.load(std::memory_order_relaxed)) return Outcome::Closed;
  if (epoch_.load(std::memory_order_relaxed) != epoch) return Outcome::Fenced;
  std::memmove(target, source, length);
  return Outcome::Copied;
}

}  // namespace quorate::addon

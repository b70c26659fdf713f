// The lock around a queue pair's or completion queue's few hundred nanoseconds of work. It spins, then yields, then
// sleeps, so that a holder which was preempted (or has a lower real-time priority on the same core) gets to run.
// Releasing is a plain store: that is what makes it cheaper than a futex on the hot path.
#pragma once

#include <atomic>
#include <cstdint>

namespace quorate::shm {

inline void pauseCpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

class SpinLock {
 public:
  SpinLock() = default;
  SpinLock(const SpinLock&) = delete;
  SpinLock& operator=(const SpinLock&) = delete;

  void lock() {
    if (!locked_.exchange(true, std::memory_order_acquire)) [[likely]]
      return;
    lockSlowly();
  }
  bool try_lock() { return !locked_.exchange(true, std::memory_order_acquire); }
  void unlock() { locked_.store(false, std::memory_order_release); }

  // Does another thread wait for it? Then a holder with much work lets go for a moment: see letOthersIn().
  bool contended() const { return waiters_.load(std::memory_order_relaxed) != 0; }
  void letOthersIn();

 private:
  void lockSlowly();

  std::atomic<bool> locked_{false};
  std::atomic<uint32_t> waiters_{0};
};

}  // namespace quorate::shm

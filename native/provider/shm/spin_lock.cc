// The slow path of SpinLock.
#include "provider/shm/spin_lock.h"

#include <sched.h>
#include <time.h>

namespace quorate::shm {
namespace {

constexpr int kSpins = 200;
constexpr int kYields = 100;
constexpr long kSleep_ns = 50'000;

}  // namespace

void SpinLock::lockSlowly() {
  waiters_.fetch_add(1, std::memory_order_relaxed);
  for (int attempt = 0;; attempt++) {
    if (!locked_.load(std::memory_order_relaxed) && try_lock()) break;
    if (attempt < kSpins) {
      pauseCpu();
    } else if (attempt < kSpins + kYields) {
      sched_yield();
    } else {
      const timespec pause = {0, kSleep_ns};
      nanosleep(&pause, nullptr);
    }
  }
  waiters_.fetch_sub(1, std::memory_order_relaxed);
}

void SpinLock::letOthersIn() {
  unlock();
  for (int attempt = 0; attempt < kYields && contended(); attempt++) sched_yield();
  lock();
}

}  // namespace quorate::shm

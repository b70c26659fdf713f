// An epoch behind a lock: a copy that carries an epoch runs inside the lock and only if the epoch is the fence's. It is
// how a leader's own append is fenced (a deposed leader must not write its own log either): raise() takes the same
// lock, so when it returns no copy of a lower epoch is running or will run. Threads of one process share a fence.
//
// The lock spins for a moment, since a copy takes well under a microsecond, and then sleeps in a futex, since its
// holder can be preempted in the middle.
#pragma once

#include <atomic>
#include <cstdint>

#include "verbs/verbs.h"

namespace quorate::addon {

class FenceLock {
 public:
  void lock();
  void unlock();

 private:
  enum : uint32_t { kFree = 0, kHeld = 1, kContended = 2 };
  std::atomic<uint32_t> word_{kFree};
};

class Fence : public VerbsObject {
 public:
  const char* kind() const override { return "Fence"; }
  void close() override;
  bool closed() const override { return closed_.load(std::memory_order_acquire); }

  uint64_t epoch() const { return epoch_.load(std::memory_order_acquire); }
  // Returns the previous epoch. QUORATE_INVALID_ARGUMENT if `epoch` is lower than the current one.
  uint64_t raise(uint64_t epoch);

  enum class Outcome { Copied, Fenced, Closed };
  // Copies if the fence holds exactly `epoch`. Both ranges must be valid; they may overlap.
  Outcome copy(uint64_t epoch, void* target, const void* source, size_t length);

 private:
  FenceLock lock_;
  std::atomic<uint64_t> epoch_{0};  // written under the lock
  std::atomic<bool> closed_{false};
};

}  // namespace quorate::addon

// The send or the receive queue of a queue pair, as seen by the completion queue that reports on it: which requests are
// outstanding, and under which wrId the caller knows them.
//
// Every request goes to the device under a cookie that names its queue and its position instead of the caller's wrId.
// A completion can then be attributed without doubt, also a failed one (whose opcode is undefined) and one of a queue
// pair that is gone; and it retires all earlier requests of its queue, the unsignaled ones among them.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>

namespace quorate::ibverbs {

class WorkQueue {
 public:
  WorkQueue(bool receives, uint32_t capacity, bool datagrams = false)
      : receives_(receives),
        datagrams_(datagrams),
        capacity_(capacity),
        indexMask_(std::bit_ceil(capacity == 0 ? 1u : capacity) - 1),
        wrIds_(std::make_unique<uint64_t[]>(size_t{indexMask_} + 1)) {}

  bool receives() const { return receives_; }
  bool datagrams() const { return datagrams_; }  // of a UD queue pair

  // --- By the poster, who holds the mutex of the queue.
  uint32_t freeEntries() const {
    return capacity_ - (posted_.load(std::memory_order_relaxed) - retired_.load(std::memory_order_acquire));
  }
  uint32_t nextPosition() const { return posted_.load(std::memory_order_relaxed); }
  uint64_t prepare(uint32_t position, uint64_t wrId) {
    wrIds_[position & indexMask_] = wrId;
    return cookiePrefix_ | position;
  }
  // Before the device sees the requests, because their completions may be polled at once; and again, with the true
  // end, if the device took fewer.
  void publish(uint32_t endPosition) { posted_.store(endPosition, std::memory_order_release); }

  // --- By the poller, who holds the mutex of the completion queue.
  bool outstanding(uint32_t position) const {
    const uint32_t retired = retired_.load(std::memory_order_relaxed);
    return position - retired < posted_.load(std::memory_order_acquire) - retired;
  }
  // Returns how many requests ended with the one at `position`, which must be outstanding.
  uint32_t retireThrough(uint32_t position, uint64_t* wrId) {
    const uint32_t count = position + 1 - retired_.load(std::memory_order_relaxed);
    *wrId = wrIds_[position & indexMask_];
    retired_.store(position + 1, std::memory_order_release);
    return count;
  }

  // --- With nobody posting and the mutex of the completion queue held.
  // Gives up all outstanding requests and returns how many they were.
  uint32_t retireAll() {
    const uint32_t posted = posted_.load(std::memory_order_acquire);
    return posted - retired_.exchange(posted, std::memory_order_acq_rel);
  }
  void setCookiePrefix(uint64_t prefix) { cookiePrefix_ = prefix; }

 private:
  const bool receives_, datagrams_;
  const uint32_t capacity_;  // requests posted and not yet retired by a polled completion
  const uint32_t indexMask_;
  const std::unique_ptr<uint64_t[]> wrIds_;
  uint64_t cookiePrefix_ = 0;
  std::atomic<uint32_t> posted_{0};   // positions below are or were with the device; wraps around
  std::atomic<uint32_t> retired_{0};  // positions below have ended; wraps around
};

}  // namespace quorate::ibverbs

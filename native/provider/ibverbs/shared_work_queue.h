// The receives of a shared receive queue, as seen by the completion queues that report on them. Unlike those of a queue
// pair they complete in any order, on any of several completion queues.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "provider/ibverbs/lifecycle.h"

namespace quorate::ibverbs {

// In the place of the slot number of a cookie (completion_queue.cc) this bit says that the rest numbers a shared queue.
constexpr uint32_t kSharedSlotBit = 0x8000;
constexpr uint32_t kMaxSharedQueueNumber = kSharedSlotBit - 1;

class SharedWorkQueue {
 public:
  SharedWorkQueue(uint32_t number, uint32_t capacity)
      : number_(number), wrIds_(capacity), outstanding_(capacity), available_(capacity) {
    free_.reserve(capacity);
    for (uint32_t index = capacity; index > 0; index--) free_.push_back(index - 1);
  }

  uint32_t number() const { return number_; }
  uint32_t capacity() const { return static_cast<uint32_t>(wrIds_.size()); }

  // Takes a free entry for a receive and gives its cookie; false if there is none.
  bool take(uint64_t wrId, uint64_t* cookie) {
    std::lock_guard<AdaptiveMutex> lock(mutex_);
    if (available_ == 0) return false;
    available_--;
    const uint32_t index = free_.back();
    free_.pop_back();
    wrIds_[index] = wrId;
    outstanding_[index] = true;
    *cookie = static_cast<uint64_t>(kSharedSlotBit | number_) << 32 | index;
    return true;
  }
  // The entry's receive has completed (or was never posted), and counts until giveBack(). False if it is not
  // outstanding.
  bool retire(uint32_t index, uint64_t* wrId) {
    std::lock_guard<AdaptiveMutex> lock(mutex_);
    if (index >= outstanding_.size() || !outstanding_[index]) return false;
    outstanding_[index] = false;
    *wrId = wrIds_[index];
    free_.push_back(index);  // within what was reserved
    return true;
  }
  // As many retired ones can be taken again: their completions were handed out, or never will be.
  void giveBack(uint32_t count) {
    std::lock_guard<AdaptiveMutex> lock(mutex_);
    available_ += count;
  }
  // The device has no such queue any more, and so reports on it no more.
  void end() { ended_.store(true, std::memory_order_release); }
  bool ended() const { return ended_.load(std::memory_order_acquire); }

 private:
  std::atomic<bool> ended_{false};
  const uint32_t number_;
  AdaptiveMutex mutex_;
  std::vector<uint64_t> wrIds_;
  std::vector<bool> outstanding_;
  std::vector<uint32_t> free_;  // not outstanding
  uint32_t available_;          // of those, without the ones whose completion was not handed out yet
};

}  // namespace quorate::ibverbs

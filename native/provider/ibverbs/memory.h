// Memory that regions are registered over: anonymous pages, huge pages, or a file of shared memory that outlives the
// process. Mapped and pre-faulted at once, since registering untouched pages takes seconds per GiB.
#pragma once

#include <atomic>
#include <memory>

#include "verbs/verbs.h"

namespace quorate::ibverbs {

constexpr size_t kMaxMemoryBytes = size_t{1} << 40;  // per Memory

class MappedMemory final : public Memory {
 public:
  // Throws QUORATE_INVALID_ARGUMENT, QUORATE_OUT_OF_RANGE or QUORATE_SYSTEM.
  static std::shared_ptr<MappedMemory> map(const MemoryOptions& options);
  ~MappedMemory() override;

  uint8_t* data() const override { return data_; }
  size_t length() const override { return length_; }
  // Marks it closed, so that nothing new is registered over it; the pages go with the last holder.
  void close() override { closed_.store(true, std::memory_order_release); }
  bool closed() const override { return closed_.load(std::memory_order_acquire); }

 private:
  MappedMemory() = default;
  void mapAnonymous(const MemoryOptions& options);
  void mapFile(const MemoryOptions& options);

  uint8_t* data_ = nullptr;
  size_t length_ = 0;        // as asked for
  size_t mappedLength_ = 0;  // rounded up to whole pages
  int file_ = -1;            // holds the lock on the shared file
  unsigned forkGeneration_ = 0;
  std::atomic<bool> closed_{false};
};

}  // namespace quorate::ibverbs

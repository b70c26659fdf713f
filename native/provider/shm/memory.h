// Registered memory of the shm provider: one segment (a file) each, which revocation can replace by a fresh one at the
// same address.
//
// While a memory moves (ShmMemory::finishMove(), only ever from a revocation that met a stopped requester) its bytes
// are copied and then remapped. Stores by this process's own threads into it during that time may be lost: keeping
// them away is the caller's duty. (A replicated log is written by its own process only under a fence, which is raised
// before the revocation.) Loads are always fine.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "provider/shm/directory.h"
#include "verbs/verbs.h"

namespace quorate::shm {

class ShmContext;

class ShmMemory final : public Memory {
 public:
  static std::shared_ptr<ShmMemory> allocate(std::shared_ptr<ShmContext> context, const MemoryOptions& options);
  ~ShmMemory() override;

  uint8_t* data() const override { return segment_.mapping.data(); }
  size_t length() const override { return length_; }
  // No new regions over it. The bytes stay until the last holder of this object is gone.
  void close() override { closed_.store(true); }
  bool closed() const override { return closed_.load(); }

  // The context closes: the segment's file goes (a shared one stays and may be taken by the next process), the mapping
  // lives on for whoever holds this object.
  void retire();

  const std::shared_ptr<ShmContext>& context() const { return context_; }
  uint32_t slotIndex() const { return slotIndex_; }
  uint64_t segmentId() const { return segment_.id; }

  // Moving, in steps, by the revoker under its lock.
  void prepareMove();  // makes the fresh segment; throws if there is no room, and then nothing has changed
  void abandonMove();
  void finishMove();  // copies, remaps, renames or unlinks, and publishes the new segment in the memory slot
  // It is on its way (region_tag::kMoving), and operations on it may have been passed over, so it must move before any
  // revocation may return.
  bool moveOwed = false;

 private:
  struct Segment {
    uint64_t id = 0;
    std::string name;   // in the directory, or the full path of a shared one
    FileDescriptor fd;  // of a shared one: holds the lock that keeps other processes from using it
    Mapping mapping;
  };

  explicit ShmMemory(std::shared_ptr<ShmContext> context) : context_(std::move(context)) {}
  Segment makePrivateSegment();
  Segment makeSharedSegment();  // at sharedPath_ + kNewSuffix, locked
  void openShared();
  void publish(uint64_t segmentId);
  void removeFile();

  const std::shared_ptr<ShmContext> context_;
  size_t length_ = 0;
  size_t mappedBytes_ = 0;
  std::string sharedPath_;
  uint32_t slotIndex_ = ~0u;
  Segment segment_;
  Segment next_;
  bool retired_ = false;
  std::atomic<bool> closed_{false};
};

}  // namespace quorate::shm

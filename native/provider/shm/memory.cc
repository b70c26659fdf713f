// Making segments, and moving a memory from one to the next.
#include "provider/shm/memory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>

#include "provider/shm/context.h"
#include "provider/shm/leftovers.h"

namespace quorate::shm {
namespace {

constexpr const char* kNewSuffix = ".quorate-new";
constexpr int kMaxAttempts = 100;  // at a file that others create and remove at the same time

std::string absolutePath(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string parent = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  const std::string file = slash == std::string::npos ? path : path.substr(slash + 1);
  if (file.empty() || file == "." || file == "..") {
    throw VerbsError("QUORATE_INVALID_ARGUMENT", "sharedPath '" + path + "' does not name a file");
  }
  char* resolved = realpath(parent.c_str(), nullptr);
  if (resolved == nullptr) {
    throw systemError("realpath", errno, "the directory of sharedPath " + path, "Create it first");
  }
  std::string full = std::string(resolved) == "/" ? "/" + file : std::string(resolved) + "/" + file;
  std::free(resolved);
  if (full.size() > kMaxPathBytes - std::strlen(kNewSuffix)) {
    throw VerbsError(
        "QUORATE_INVALID_ARGUMENT",
        "sharedPath " + full + " is longer than " + std::to_string(kMaxPathBytes - std::strlen(kNewSuffix)) + " bytes");
  }
  return full;
}

bool isAt(int fd, const std::string& path) {
  struct stat open, named;
  return fstat(fd, &open) == 0 && lstat(path.c_str(), &named) == 0 && open.st_ino == named.st_ino &&
         open.st_dev == named.st_dev;
}

bool tryLock(int fd) {
  return flock(fd, LOCK_EX | LOCK_NB) == 0;
}

VerbsError inUse(const std::string& path) {
  return VerbsError("QUORATE_SYSTEM",
                    "The shared memory file " + path +
                        " is in use by another context that is still open. Close that one first: two owners of one "
                        "memory would overwrite each other.",
                    EWOULDBLOCK, "flock");
}

}  // namespace

std::shared_ptr<ShmMemory> ShmMemory::allocate(std::shared_ptr<ShmContext> context, const MemoryOptions& options) {
  context->requireOpen("Context");
  if (options.lengthBytes == 0 || options.lengthBytes > kMaxMemoryBytes) {
    throw VerbsError("QUORATE_OUT_OF_RANGE", "lengthBytes is " + std::to_string(options.lengthBytes) +
                                                 ", must be 1 to " + std::to_string(kMaxMemoryBytes));
  }
  if (options.hugePages) {
    throw VerbsError("QUORATE_UNSUPPORTED",
                     "The shm provider has no huge pages of its own: its segments are files of the directory " +
                         context->directory()->path() +
                         ". Mount that directory with huge=always, or do not ask for hugePages.");
  }
  if (options.shared && options.sharedPath.empty()) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT", "shared memory needs a sharedPath");
  }
  std::shared_ptr<ShmMemory> memory(new ShmMemory(context));
  memory->length_ = options.lengthBytes;
  memory->mappedBytes_ = roundUpToPage(options.lengthBytes);
  memory->slotIndex_ = context->memoryIndices().take();
  if (options.shared) {
    memory->sharedPath_ = absolutePath(options.sharedPath);
    memory->openShared();
  } else {
    memory->segment_ = memory->makePrivateSegment();
  }
  MemorySlot& slot = context->control()->memories[memory->slotIndex_];
  slot.length.store(memory->mappedBytes_, std::memory_order_relaxed);
  slot.pathBytes.store(static_cast<uint32_t>(memory->sharedPath_.size()), std::memory_order_relaxed);
  for (size_t i = 0; i < memory->sharedPath_.size(); i++) {
    slot.path[i].store(static_cast<uint8_t>(memory->sharedPath_[i]), std::memory_order_relaxed);
  }
  memory->publish(memory->segment_.id);
  context->adoptMemory(memory);
  return memory;
}

ShmMemory::~ShmMemory() {
  if (context_->forked()) return;
  retire();
  if (slotIndex_ != ~0u) context_->memoryIndices().give(slotIndex_);
}

void ShmMemory::retire() {
  const std::lock_guard<std::mutex> guard(context_->revoker().mutex());
  if (retired_) return;
  retired_ = true;
  closed_.store(true);
  if (slotIndex_ == ~0u) return;
  publish(0);
  removeFile();
}

void ShmMemory::removeFile() {
  if (!segment_.mapping) return;
  if (sharedPath_.empty()) {
    unlinkat(context_->directory()->fd(), segment_.name.c_str(), 0);
  } else {
    flock(segment_.fd.get(), LOCK_UN);  // at once, although a forked child may hold the descriptor too
    segment_.fd.reset();
  }
}

void ShmMemory::publish(uint64_t segmentId) {
  context_->control()->memories[slotIndex_].segmentId.store(segmentId, std::memory_order_seq_cst);
}

ShmMemory::Segment ShmMemory::makePrivateSegment() {
  Segment segment;
  segment.id = context_->nextSegmentId();
  segment.name = ShmDirectory::segmentName(context_->hcaId(), segment.id);
  const FileDescriptor fd = createSegment(context_->directory()->fd(), segment.name, mappedBytes_, "a memory segment");
  try {
    segment.mapping = Mapping::ofFile(fd.get(), mappedBytes_, Mapping::Pages::Present, "a memory segment");
  } catch (...) {
    unlinkat(context_->directory()->fd(), segment.name.c_str(), 0);
    throw;
  }
  return segment;
}

ShmMemory::Segment ShmMemory::makeSharedSegment() {
  Segment segment;
  segment.id = context_->nextSegmentId();
  segment.name = sharedPath_ + kNewSuffix;
  for (int attempt = 0; attempt < kMaxAttempts; attempt++) {
    try {
      segment.fd = createSegment(AT_FDCWD, segment.name, mappedBytes_, "the shared memory file " + segment.name);
    } catch (const VerbsError& error) {
      if (error.errnum != EEXIST) throw;
      // Someone is making one at this moment, or died while doing so.
      const FileDescriptor other(open(segment.name.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
      if (!other) {
        if (errno == ENOENT) continue;
        throw systemError("open", errno, segment.name);
      }
      if (!tryLock(other.get())) throw inUse(segment.name);
      if (isAt(other.get(), segment.name)) unlink(segment.name.c_str());
      continue;
    }
    if (!tryLock(segment.fd.get()) || !isAt(segment.fd.get(), segment.name)) continue;  // taken for a leftover
    try {
      segment.mapping = Mapping::ofFile(segment.fd.get(), mappedBytes_, Mapping::Pages::Present, segment.name);
    } catch (...) {
      unlink(segment.name.c_str());
      throw;
    }
    return segment;
  }
  throw inUse(segment.name);
}

// A file that is there already came from an earlier process. A requester that was connected to that process may have
// been stopped in the middle of a store and go on at any time, so its file is never used again: the bytes are copied
// to a fresh one, which takes its place. Before that, what dead processes left open is fenced, so that no store after
// the copy can be reported as a success.
void ShmMemory::openShared() {
  for (int attempt = 0; attempt < kMaxAttempts; attempt++) {
    const FileDescriptor old(open(sharedPath_.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    if (!old) {
      if (errno != ENOENT) {
        throw systemError("open", errno, "the shared memory file " + sharedPath_,
                          errno == ELOOP ? "It is a symbolic link: name the file itself" : "");
      }
      segment_ = makeSharedSegment();
      if (link(segment_.name.c_str(), sharedPath_.c_str()) == 0) {
        unlink(segment_.name.c_str());
        segment_.name = sharedPath_;
        return;
      }
      const int errnum = errno;
      unlink(segment_.name.c_str());
      segment_ = Segment();
      if (errnum != EEXIST) throw systemError("link", errnum, sharedPath_);
      continue;
    }
    if (!tryLock(old.get())) throw inUse(sharedPath_);
    if (!isAt(old.get(), sharedPath_)) continue;
    struct stat status;
    if (fstat(old.get(), &status) != 0) throw systemError("fstat", errno, sharedPath_);
    if (!S_ISREG(status.st_mode) || status.st_uid != geteuid() || (status.st_mode & 0077) != 0) {
      throw VerbsError("QUORATE_INVALID_ARGUMENT", "The shared memory file " + sharedPath_ +
                                                       " must be a regular file of user " + std::to_string(geteuid()) +
                                                       " with mode 0600: others could write a replica's memory.");
    }
    if (static_cast<uint64_t>(status.st_size) != mappedBytes_) {
      throw VerbsError("QUORATE_INVALID_ARGUMENT",
                       "The shared memory file " + sharedPath_ + " holds " + std::to_string(status.st_size) +
                           " bytes, but " + std::to_string(mappedBytes_) +
                           " were asked for. Ask for its size, or remove it if its content is not needed.");
    }
    removeLeftovers(*context_->directory());
    segment_ = makeSharedSegment();
    try {
      const Mapping content = Mapping::ofFile(old.get(), mappedBytes_, Mapping::Pages::Present, sharedPath_);
      std::memcpy(segment_.mapping.data(), content.data(), mappedBytes_);
    } catch (...) {
      unlink(segment_.name.c_str());
      throw;
    }
    if (rename(segment_.name.c_str(), sharedPath_.c_str()) != 0) {
      const int errnum = errno;
      unlink(segment_.name.c_str());
      throw systemError("rename", errnum, sharedPath_);
    }
    segment_.name = sharedPath_;
    return;
  }
  throw inUse(sharedPath_);
}

void ShmMemory::prepareMove() {
  assert(!next_.mapping);
  next_ = sharedPath_.empty() ? makePrivateSegment() : makeSharedSegment();
}

void ShmMemory::abandonMove() {
  if (!next_.mapping) return;
  unlinkat(context_->directory()->fd(), next_.name.c_str(), 0);
  next_ = Segment();
}

void ShmMemory::finishMove() {
  assert(next_.mapping && next_.mapping.size() == segment_.mapping.size());
  uint8_t* const address = segment_.mapping.data();
  std::memcpy(next_.mapping.data(), address, mappedBytes_);
  publish(0);
  // Replaces the old mapping in one step, page tables and all: a thread that reads meanwhile waits for it.
  void* moved = mremap(next_.mapping.data(), mappedBytes_, mappedBytes_, MREMAP_MAYMOVE | MREMAP_FIXED, address);
  if (moved != address) {
    const int errnum = errno;
    abandonMove();
    throw VerbsError("QUORATE_REVOKE_FAILED",
                     "A memory could not be moved away from a stopped requester (mremap failed): the right is not "
                     "proven revoked. Close the object again, or end this process.",
                     errnum, "mremap");
  }
  next_.mapping.release();
  // The kernel has already unmapped the old segment; `segment_.mapping` now stands for the new one.
  if (sharedPath_.empty()) {
    if (!retired_) unlinkat(context_->directory()->fd(), segment_.name.c_str(), 0);
    if (retired_) unlinkat(context_->directory()->fd(), next_.name.c_str(), 0);
    segment_.name = next_.name;
  } else {
    if (retired_) {
      unlink(next_.name.c_str());
    } else if (rename(next_.name.c_str(), sharedPath_.c_str()) != 0) {
      // The bytes are safe in this process, but a restart would find the old file.
      const int errnum = errno;
      unlink(next_.name.c_str());
      flock(next_.fd.get(), LOCK_UN);  // the mapping, which stays, would hold it: no other file could be made here
      segment_.id = next_.id;
      next_ = Segment();
      throw VerbsError("QUORATE_REVOKE_FAILED",
                       "The moved segment could not take its place at " + sharedPath_ +
                           ": what is written from now on would not outlive this process. See to that place and close "
                           "the object again, or end this process and start again.",
                       errnum, "rename");
    } else {
      segment_.fd = std::move(next_.fd);
    }
  }
  segment_.id = next_.id;
  next_ = Segment();
  if (!retired_) publish(segment_.id);
}

}  // namespace quorate::shm

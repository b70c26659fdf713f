// The provider's directory and the files in it. Whoever can write here can write replicas' memory, so the directory
// must be ours alone (0700, no symbolic link) and every file is created exclusively with mode 0600.
//
// Names: <hca>.ctl control segment, <hca>.seg-<n> memory segment, <hca>.ch-<n> FIFO of a completion channel, where
// <hca> is the HCA's 64-bit id in 16 hexadecimal digits; <hca>.new-<pid>-<start time>-<PID namespace> is a control
// segment that is not ready yet.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "verbs/verbs.h"

namespace quorate::shm {

// A VerbsError of code QUORATE_SYSTEM for the errno of a call that just failed.
VerbsError systemError(const std::string& call, int errnum, const std::string& what, const std::string& advice = {});

class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.release()) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  ~FileDescriptor() { reset(); }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release();
  void reset();

 private:
  int fd_ = -1;
};

// A shared mapping of a whole segment. It is not inherited by fork(): a child that only forked must not keep the
// memory of a dead replica writable.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping() { reset(); }
  // Present: the first access costs no page fault. OnDemand: pages that nobody looks at cost nothing, neither now nor
  // when the process ends, which holds a processor until all its pages are unmapped. Existing: as Present, for files
  // all of whose pages exist, in a third of the time.
  enum class Pages : uint8_t { Present, Existing, OnDemand };
  // Maps `bytes` of the file, whose pages exist. Throws.
  static Mapping ofFile(int fd, size_t bytes, Pages pages, const std::string& what);
  uint8_t* data() const { return data_; }
  size_t size() const { return bytes_; }
  explicit operator bool() const { return data_ != nullptr; }
  void release() { data_ = nullptr; }  // the pages now belong to someone else
  void reset();

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
  uint64_t forks_ = 0;
};

size_t roundUpToPage(size_t bytes);

// How often this process image came out of a fork(): what was made under another count belongs to the parent.
extern std::atomic<uint64_t> forksSoFar;
inline uint64_t forkCount() {
  return forksSoFar.load(std::memory_order_relaxed);
}

class ShmDirectory {
 public:
  // Opens or creates it; throws QUORATE_SYSTEM if that fails and QUORATE_INVALID_ARGUMENT if it is not ours alone.
  static std::shared_ptr<ShmDirectory> open(const std::string& path);

  const std::string& path() const { return path_; }
  int fd() const { return fd_.get(); }

  static std::string controlName(uint64_t hcaId);
  static std::string segmentName(uint64_t hcaId, uint64_t segmentId);
  static std::string channelName(uint64_t hcaId, uint32_t channel);

 private:
  std::string path_;
  FileDescriptor fd_;
};

// The directory to use: `option`, else $QUORATE_SHM_DIR, else /dev/shm/quorate-<uid>.
std::string chooseDirectory(const std::string& option);

// Creates a file of `bytes` whose blocks are all reserved, so that a full file system is an error here and not a
// SIGBUS later. `at` as for openat(2). Throws and leaves nothing behind.
FileDescriptor createSegment(int at, const std::string& name, size_t bytes, const std::string& what);
// Opens a peer's file: ours, regular, no symbolic link, not shorter than `bytes`. Empty if there is no such file.
FileDescriptor openSegment(int at, const std::string& name, size_t bytes, size_t* actualBytes);

}  // namespace quorate::shm

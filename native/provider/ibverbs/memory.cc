// See memory.h.
#include "provider/ibverbs/memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <string>

#include "provider/ibverbs/errors.h"
#include "provider/ibverbs/library.h"
#include "provider/reserve.h"

namespace quorate::ibverbs {
namespace {

size_t roundedUp(size_t value, size_t unit) {
  return (value + unit - 1) / unit * unit;
}

size_t pageBytes() {
  return static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

size_t hugePageBytes() {
  uint64_t kilobytes = 0;
  if (FILE* info = std::fopen("/proc/meminfo", "re")) {
    char line[256];
    while (std::fgets(line, sizeof(line), info) != nullptr && kilobytes == 0) {
      if (std::sscanf(line, "Hugepagesize: %" SCNu64 " kB", &kilobytes) != 1) kilobytes = 0;
    }
    std::fclose(info);
  }
  if (kilobytes == 0) {
    throw VerbsError("QUORATE_UNSUPPORTED",
                     "Huge pages were asked for, but this kernel has none (no Hugepagesize in /proc/meminfo). Ask for "
                     "ordinary pages.");
  }
  return kilobytes * 1024;
}

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_;
};

}  // namespace

std::shared_ptr<MappedMemory> MappedMemory::map(const MemoryOptions& options) {
  if (options.lengthBytes == 0 || options.lengthBytes > kMaxMemoryBytes) {
    throw VerbsError("QUORATE_OUT_OF_RANGE", "lengthBytes of a Memory is " + std::to_string(options.lengthBytes) +
                                                 ", must be 1 to " + std::to_string(kMaxMemoryBytes) + ".");
  }
  if (options.shared != !options.sharedPath.empty()) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT", options.shared
                                                     ? "Shared memory needs sharedPath, the file that holds it."
                                                     : "sharedPath is given but `shared` is not; set both or neither.");
  }
  std::shared_ptr<MappedMemory> memory(new MappedMemory());
  memory->length_ = options.lengthBytes;
  memory->forkGeneration_ = forkGeneration();
  if (options.shared) {
    memory->mapFile(options);
  } else {
    memory->mapAnonymous(options);
  }
  assert(memory->data_ != nullptr && reinterpret_cast<uintptr_t>(memory->data_) % pageBytes() == 0);
  assert(memory->mappedLength_ >= memory->length_);
  return memory;
}

MappedMemory::~MappedMemory() {
  // A child made by fork() never got the anonymous pages, and may have put something else at their place.
  if (forkGeneration_ != forkGeneration()) return;
  if (data_ != nullptr) munmap(data_, mappedLength_);
  if (file_ >= 0) ::close(file_);
}

void MappedMemory::mapAnonymous(const MemoryOptions& options) {
  mappedLength_ = roundedUp(length_, options.hugePages ? hugePageBytes() : pageBytes());
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | (options.hugePages ? MAP_HUGETLB : 0);
  void* address = mmap(nullptr, mappedLength_, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (address == MAP_FAILED) {
    throwSystemError(
        "mmap", errno,
        "Mapping " + std::to_string(mappedLength_) + " bytes of " + (options.hugePages ? "huge pages" : "memory"),
        options.hugePages ? "Reserve more huge pages (sysctl vm.nr_hugepages=N; HugePages_Free in /proc/meminfo says "
                            "how many are left), or ask for ordinary pages."
                          : "Ask for less, or give the process more memory.");
  }
  data_ = static_cast<uint8_t*>(address);
  // A child that shared these pages would, on kernels before 5.12, take away the pages that the device writes to when
  // this process touches them next; and no child has any business with them.
  if (madvise(data_, mappedLength_, MADV_DONTFORK) != 0) {
    throwSystemError("madvise", errno, "Keeping the memory out of forked children (MADV_DONTFORK)", "");
  }
}

void MappedMemory::mapFile(const MemoryOptions& options) {
  const std::string& path = options.sharedPath;
  const std::string what = "The shared memory file " + path;
  FileDescriptor file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (file.get() < 0) {
    throwSystemError("open", errno, "Opening the shared memory file " + path,
                     "Use a file in /dev/shm, in a directory of your own; it must not be a symbolic link.");
  }
  struct stat status {};
  struct statfs fileSystem {};
  if (fstat(file.get(), &status) != 0 || fstatfs(file.get(), &fileSystem) != 0) {
    throwSystemError("fstat", errno, "Examining the shared memory file " + path, "");
  }
  if (!S_ISREG(status.st_mode) || status.st_uid != geteuid() || (status.st_mode & 077) != 0) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     what +
                         " is not a regular file that belongs to this user alone (mode 0600). Remove it or name "
                         "another one.");
  }
  const bool onHugePages = static_cast<uint64_t>(fileSystem.f_type) == HUGETLBFS_MAGIC;
  if (!onHugePages && static_cast<uint64_t>(fileSystem.f_type) != TMPFS_MAGIC) {
    // Devices write behind the file system's back: on a disk file system such pages are lost or corrupt it, and newer
    // kernels refuse to pin them.
    throw VerbsError("QUORATE_INVALID_ARGUMENT", what +
                                                     " is not on tmpfs or hugetlbfs. Memory that a device writes to "
                                                     "cannot lie on a disk; use a file in /dev/shm.");
  }
  if (options.hugePages != onHugePages) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     what + (onHugePages ? " is on hugetlbfs but hugePages is not asked for; set hugePages."
                                         : " is not on hugetlbfs; with hugePages, name a file on a hugetlbfs mount."));
  }
  if (flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    throwSystemError("flock", errno, "Locking the shared memory file " + path,
                     "Another process (or another Memory of this one) is using it; end that first or name another "
                     "file.");
  }
  mappedLength_ = roundedUp(length_, onHugePages ? static_cast<size_t>(fileSystem.f_bsize) : pageBytes());
  if (status.st_size != 0 && static_cast<uint64_t>(status.st_size) != mappedLength_) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     what + " holds " + std::to_string(status.st_size) + " bytes but " + std::to_string(mappedLength_) +
                         " were asked for. Ask for its size, or remove it to start afresh.");
  }
  const int errnum = reserveFile(file.get(), mappedLength_);
  if (errnum != 0) {
    if (status.st_size == 0) unlink(path.c_str());
    throwSystemError("fallocate", errnum, "Reserving " + std::to_string(mappedLength_) + " bytes for " + path,
                     "Free space on its file system or mount it larger (mount -o remount,size=... /dev/shm).");
  }
  void* address = mmap(nullptr, mappedLength_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file.get(), 0);
  if (address == MAP_FAILED) {
    const int mapErrnum = errno;
    if (status.st_size == 0) unlink(path.c_str());
    throwSystemError("mmap", mapErrnum, "Mapping " + std::to_string(mappedLength_) + " bytes of " + path, "");
  }
  data_ = static_cast<uint8_t*>(address);
  file_ = file.release();
}

}  // namespace quorate::ibverbs

// Creating, opening and mapping the provider's files.
#include "provider/shm/directory.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "provider/reserve.h"

namespace quorate::shm {

std::atomic<uint64_t> forksSoFar{0};

namespace {

constexpr size_t kFaultAroundBytes = 64 * 1024;  // the kernel's default; where it maps less, first uses map the rest

const int kForkHandlerError =
    pthread_atfork(nullptr, nullptr, [] { forksSoFar.fetch_add(1, std::memory_order_relaxed); });

std::string hex(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016" PRIx64, value);
  return text;
}

// The kernel maps the pages around one that is read, as far as they exist. MAP_POPULATE goes through them one by one.
void touch(const volatile uint8_t* data, size_t bytes) {
  for (size_t at = 0; at < bytes; at += kFaultAroundBytes) (void)data[at];
}

}  // namespace

VerbsError systemError(const std::string& call, int errnum, const std::string& what, const std::string& advice) {
  char text[128];
  const char* reason = strerror_r(errnum, text, sizeof(text));
  return VerbsError("QUORATE_SYSTEM",
                    call + " failed for " + what + ": " + reason + (advice.empty() ? "" : ". " + advice), errnum, call);
}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = other.release();
  }
  return *this;
}

int FileDescriptor::release() {
  const int fd = fd_;
  fd_ = -1;
  return fd;
}

void FileDescriptor::reset() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

Mapping::Mapping(Mapping&& other) noexcept : data_(other.data_), bytes_(other.bytes_), forks_(other.forks_) {
  other.data_ = nullptr;
}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    reset();
    data_ = other.data_;
    bytes_ = other.bytes_;
    forks_ = other.forks_;
    other.data_ = nullptr;
  }
  return *this;
}

Mapping Mapping::ofFile(int fd, size_t bytes, Pages pages, const std::string& what) {
  assert(bytes > 0);
  Mapping mapping;
  mapping.forks_ = forkCount();
  const int flags = MAP_SHARED | (pages == Pages::Present ? MAP_POPULATE : 0);
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (data == MAP_FAILED) {
    throw systemError("mmap", errno, what + " (" + std::to_string(bytes) + " bytes)",
                      "Check the address space limit (ulimit -v) and vm.max_map_count");
  }
  mapping.data_ = static_cast<uint8_t*>(data);
  mapping.bytes_ = bytes;
  if (pages == Pages::Existing) touch(mapping.data_, bytes);
  if (madvise(data, bytes, MADV_DONTFORK) != 0) throw systemError("madvise", errno, what);
  return mapping;
}

void Mapping::reset() {
  // After a fork() the address range is not ours: the mapping was not inherited, and another may be there.
  if (data_ != nullptr && forks_ == forkCount()) munmap(data_, bytes_);
  data_ = nullptr;
}

size_t roundUpToPage(size_t bytes) {
  static const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

namespace {

constexpr const char* kVariable = "QUORATE_SHM_DIR";

std::string defaultDirectory() {
  return "/dev/shm/quorate-" + std::to_string(geteuid());
}

// How to name another directory than this one: as this one was named, by what can be told of that.
std::string nameAnother(const std::string& path) {
  const char* fromEnvironment = std::getenv(kVariable);
  if (fromEnvironment != nullptr && path == fromEnvironment) {
    return "name another one with the environment variable QUORATE_SHM_DIR, which names this one";
  }
  const std::string option = "name another one with the option shmDirectory";
  return option + (path == defaultDirectory() ? "; this is the default" : ", which names this one");
}

std::string makingAdvice(const std::string& path, int errnum) {
  switch (errnum) {
    case ENOENT:
      return "Create the directory that it is to be in, or " + nameAnother(path);
    case EACCES:
    case EPERM:
    case EROFS:
      return "Let this user write to the directory that it is to be in, or " + nameAnother(path);
    case ENOSPC:
    case EDQUOT:
      return "Make room on that file system, or " + nameAnother(path);
    default:
      return "If that cannot be mended, " + nameAnother(path);
  }
}

}  // namespace

std::string chooseDirectory(const std::string& option) {
  if (!option.empty()) return option;
  const char* fromEnvironment = std::getenv(kVariable);
  if (fromEnvironment != nullptr && fromEnvironment[0] != '\0') return fromEnvironment;
  return defaultDirectory();
}

std::shared_ptr<ShmDirectory> ShmDirectory::open(const std::string& path) {
  if (kForkHandlerError != 0) throw systemError("pthread_atfork", kForkHandlerError, "the detection of fork()");
  auto directory = std::make_shared<ShmDirectory>();
  directory->path_ = path;
  const bool created = mkdir(path.c_str(), 0700) == 0;
  if (!created && errno != EEXIST) {
    const int errnum = errno;
    throw systemError("mkdir", errnum, "the shared-memory directory " + path, makingAdvice(path, errnum));
  }
  directory->fd_ = FileDescriptor(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!directory->fd_) {
    if (errno == ENOTDIR || errno == ELOOP) {
      throw VerbsError("QUORATE_INVALID_ARGUMENT",
                       "The shared-memory directory " + path +
                           " is a symbolic link or not a directory. Name the directory itself, so that nobody can turn "
                           "it elsewhere.",
                       errno, "open");
    }
    throw systemError("open", errno, "the shared-memory directory " + path);
  }
  struct stat status;
  if (fstat(directory->fd(), &status) != 0) throw systemError("fstat", errno, path);
  if (status.st_uid != geteuid() || (status.st_mode & 0077) != 0) {
    char mode[8];
    std::snprintf(mode, sizeof(mode), "%04o", static_cast<unsigned>(status.st_mode & 07777));
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     "The shared-memory directory " + path + " must belong to user " + std::to_string(geteuid()) +
                         " with mode 0700, but belongs to user " + std::to_string(status.st_uid) + " with mode " +
                         mode +
                         ": others could write the memory of replicas. Remove it or chmod 700 it, or " +
                         nameAnother(path) + ".");
  }
  return directory;
}

std::string ShmDirectory::controlName(uint64_t hcaId) {
  return hex(hcaId) + ".ctl";
}
std::string ShmDirectory::segmentName(uint64_t hcaId, uint64_t segmentId) {
  return hex(hcaId) + ".seg-" + std::to_string(segmentId);
}
std::string ShmDirectory::channelName(uint64_t hcaId, uint32_t channel) {
  return hex(hcaId) + ".ch-" + std::to_string(channel);
}

FileDescriptor createSegment(int at, const std::string& name, size_t bytes, const std::string& what) {
  FileDescriptor fd(openat(at, name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd) throw systemError("openat", errno, what + " (" + name + ")");
  const int errnum = reserveFile(fd.get(), bytes);
  if (errnum != 0) {
    unlinkat(at, name.c_str(), 0);
    throw systemError("fallocate", errnum, what + " of " + std::to_string(bytes) + " bytes",
                      errnum == ENOSPC || errnum == ENOMEM || errnum == EFBIG
                          ? "The file system is full: free shared memory, enlarge it (mount -o remount,size=... "
                            "/dev/shm; docker run --shm-size=...), or name another directory"
                          : "");
  }
  return fd;
}

FileDescriptor openSegment(int at, const std::string& name, size_t bytes, size_t* actualBytes) {
  FileDescriptor fd(openat(at, name.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd) return fd;
  struct stat status;
  if (fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode) || status.st_uid != geteuid() || status.st_size < 0 ||
      static_cast<uint64_t>(status.st_size) < bytes) {
    return FileDescriptor();
  }
  if (actualBytes != nullptr) *actualBytes = static_cast<size_t>(status.st_size);
  return fd;
}

}  // namespace quorate::shm

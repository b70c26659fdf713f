// See reserve.h.
#include "provider/reserve.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>

namespace quorate {
namespace {

// On some kernels (6.1, not 6.18) tmpfs gives an allocation up, and undoes it, when any signal arrives that is not
// blocked. A timer or a profiler that sends one every millisecond would never let a large one end. What cannot be
// blocked (SIGSTOP) comes seldom.
constexpr int kMaxInterruptions = 100;
constexpr uint64_t kStatBlockBytes = 512;  // of st_blocks, stat(2)

// What can be had without ending other programs: MemAvailable and SwapFree of proc(5). All there is where unknown.
uint64_t availableMemoryBytes() {
  uint64_t available = 0, swap = 0;
  bool known = false;
  if (FILE* info = std::fopen("/proc/meminfo", "re")) {
    char line[256];
    while (std::fgets(line, sizeof(line), info) != nullptr) {
      if (std::sscanf(line, "MemAvailable: %" SCNu64 " kB", &available) == 1) known = true;
      if (std::sscanf(line, "SwapFree: %" SCNu64 " kB", &swap) == 1) break;  // stands below MemAvailable
    }
    std::fclose(info);
  }
  return known ? (available + swap) * 1024 : UINT64_MAX;
}

}  // namespace

int reserveFile(int fd, size_t bytes) {
  struct stat status {};
  struct statfs fileSystem {};
  if (fstat(fd, &status) != 0 || fstatfs(fd, &fileSystem) != 0) return errno;
  const uint64_t held = static_cast<uint64_t>(status.st_blocks) * kStatBlockBytes;
  const uint64_t missing = bytes > held ? bytes - held : 0;
  // A tmpfs without a limit reports no blocks at all.
  const uint64_t blockBytes = static_cast<uint64_t>(fileSystem.f_bsize);
  if (fileSystem.f_blocks != 0 && missing / blockBytes > fileSystem.f_bavail) return ENOSPC;
  // The pages of hugetlbfs were set aside before; those of tmpfs are the machine's.
  if (static_cast<uint64_t>(fileSystem.f_type) == TMPFS_MAGIC && missing > availableMemoryBytes()) return ENOMEM;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int errnum = EINTR;
  for (int tries = 0; tries < kMaxInterruptions && errnum == EINTR; tries++) {
    errnum = fallocate(fd, 0, 0, static_cast<off_t>(bytes)) == 0 ? 0 : errno;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return errnum;
}

}  // namespace quorate

// See errors.h.
#include "provider/ibverbs/errors.h"

#include <sys/resource.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>

namespace quorate::ibverbs {
namespace {

struct LockedMemory {
  bool mayExceedLimit = false;  // CAP_IPC_LOCK
  uint64_t pinnedBytes = 0;     // already counted against the limit
};

LockedMemory readLockedMemory() {
  constexpr unsigned kCapIpcLock = 14;
  LockedMemory result;
  FILE* status = std::fopen("/proc/self/status", "re");
  if (status == nullptr) return result;
  char line[256];
  while (std::fgets(line, sizeof(line), status) != nullptr) {
    uint64_t value = 0;
    if (std::sscanf(line, "VmPin: %" SCNu64 " kB", &value) == 1) {
      result.pinnedBytes = value * 1024;
    } else if (std::sscanf(line, "CapEff: %" SCNx64, &value) == 1) {
      result.mayExceedLimit = (value >> kCapIpcLock & 1) != 0;
    }
  }
  std::fclose(status);
  return result;
}

}  // namespace

std::string errnoText(int errnum) {
  const char* name = strerrorname_np(errnum);
  const char* description = strerrordesc_np(errnum);
  if (name == nullptr || description == nullptr) return "error " + std::to_string(errnum);
  return std::string(name) + ", " + description;
}

void throwSystemError(const char* syscall, int errnum, const std::string& what, const std::string& advice) {
  throw VerbsError("QUORATE_SYSTEM",
                   what + " failed: " + errnoText(errnum) + "." + (advice.empty() ? "" : " ") + advice, errnum,
                   syscall);
}

void throwPinningError(const char* syscall, int errnum, const std::string& what, uint64_t wantedBytes,
                       const std::string& advice) {
  rlimit limit{};
  if (errnum == ENOMEM && getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    const LockedMemory locked = readLockedMemory();
    if (!locked.mayExceedLimit) {
      throw VerbsError(
          "QUORATE_MEMLOCK",
          what + " failed: it pins " + std::to_string(wantedBytes) +
              " bytes or somewhat more, the process has pinned " + std::to_string(locked.pinnedBytes) +
              " bytes already, and its limit on locked memory (RLIMIT_MEMLOCK) is " + std::to_string(limit.rlim_cur) +
              " bytes. Raise the limit: \"LimitMEMLOCK=infinity\" in the systemd unit, lines \"* soft memlock "
              "unlimited\" and \"* hard memlock unlimited\" in /etc/security/limits.conf (then log in again), "
              "\"ulimit -l unlimited\" in the shell, or \"--ulimit memlock=-1\" for a container.",
          errnum, syscall);
    }
  }
  throwSystemError(syscall, errnum, what, advice);
}

}  // namespace quorate::ibverbs

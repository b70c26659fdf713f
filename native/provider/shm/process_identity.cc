// Start times from /proc and pidfds.
#include "provider/shm/process_identity.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

namespace quorate::shm {
namespace {

using StatText = std::array<char, 1024>;

FileDescriptor openStat(pid_t pid) {
  return FileDescriptor(open(("/proc/" + std::to_string(pid) + "/stat").c_str(), O_RDONLY | O_CLOEXEC));
}

// The end of field 2 of /proc/<pid>/stat: that may hold anything, the fields after its last parenthesis are plain. Null if
// the process has gone.
const char* readStat(const FileDescriptor& stat, StatText* text) {
  if (!stat) return nullptr;
  const ssize_t length = pread(stat.get(), text->data(), text->size() - 1, 0);
  if (length <= 0) return nullptr;
  (*text)[static_cast<size_t>(length)] = '\0';
  return std::strrchr(text->data(), ')');
}

uint64_t startTimeOf(pid_t pid) {
  StatText text;
  const char* field = readStat(openStat(pid), &text);
  for (int i = 2; field != nullptr && i < 22; i++) {
    field = std::strchr(field + 1, ' ');
  }
  return field == nullptr ? 0 : std::strtoull(field + 1, nullptr, 10);
}

uint64_t pidNamespaceHere() {
  struct stat status;
  return stat("/proc/self/ns/pid", &status) == 0 ? status.st_ino : 0;
}

int openPidfd(pid_t pid) {
  return static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
}

bool visibleFromHere(const ProcessIdentity& process) {
  return process.pid > 0 && process.pidNamespace != 0 && process.pidNamespace == pidNamespaceHere();
}

}  // namespace

ProcessIdentity thisProcess() {
  return ProcessIdentity{getpid(), startTimeOf(getpid()), pidNamespaceHere()};
}

bool mayBeRunning(const ProcessIdentity& process) {
  if (!visibleFromHere(process)) return true;
  if (kill(process.pid, 0) != 0 && errno == ESRCH) return false;
  const uint64_t startTime = startTimeOf(process.pid);
  return startTime == 0 || process.startTime == 0 || startTime == process.startTime;
}

ProcessExit::ProcessExit(const ProcessIdentity& process) {
  if (!visibleFromHere(process) || process.startTime == 0) return;
  FileDescriptor pidfd(openPidfd(process.pid));
  if (!pidfd) {
    goneBefore_ = errno == ESRCH;
    return;
  }
  // What was opened names whoever has the id now. That it is the right process is known from its start time, read after.
  FileDescriptor stat = openStat(process.pid);
  const uint64_t startTime = startTimeOf(process.pid);
  if (startTime == process.startTime) {
    pidfd_ = std::move(pidfd);
    stat_ = std::move(stat);
  } else if (startTime != 0) {
    goneBefore_ = true;
  }
}

ProcessState ProcessExit::state() const {
  StatText text;
  const char* name = readStat(stat_, &text);
  if (name == nullptr || name[1] != ' ') return ProcessState::Unknown;
  switch (name[2]) {
    case 'R':
    case 'S':
    case 'D':
    case 'I':
      return ProcessState::Running;
    case 'T':
    case 't':
      return ProcessState::Stopped;
    default:
      return ProcessState::Unknown;  // on its way out
  }
}

bool ProcessExit::hasExited(int timeoutMs) const {
  if (goneBefore_) return true;
  if (!pidfd_) return false;
  pollfd entry = {pidfd_.get(), POLLIN, 0};
  return poll(&entry, 1, timeoutMs) == 1 && (entry.revents & POLLIN) != 0;
}

}  // namespace quorate::shm

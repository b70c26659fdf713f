// Which process something belongs to, in a way that a reused process id does not confuse.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "provider/shm/directory.h"
#include "verbs/verbs.h"

namespace quorate::shm {

struct ProcessIdentity {
  pid_t pid = 0;
  uint64_t startTime = 0;     // field 22 of /proc/<pid>/stat; 0: unknown
  uint64_t pidNamespace = 0;  // inode of /proc/<pid>/ns/pid; 0: unknown
};

ProcessIdentity thisProcess();

// False only if that process has surely gone (or its id is in use by another). Unknown counts as running.
bool mayBeRunning(const ProcessIdentity& process);

// Tells when *every* thread of a process has executed its last instruction. The liveness word cannot: it speaks for
// one thread, at the start of the process's exit, when other threads may still be in the middle of a store.
class ProcessExit {
 public:
  ProcessExit() = default;
  // Takes hold of the process, if it still runs and can be seen from here.
  explicit ProcessExit(const ProcessIdentity& process);

  // True if the process has surely exited. Waits up to timeoutMs for it.
  bool hasExited(int timeoutMs) const;
  // Whether it is stopped (proc_pid_stat(5): T or t) at this instant; unknown where it cannot be seen, or has exited. Some
  // microseconds.
  ProcessState state() const;
  int pidfd() const { return pidfd_.get(); }  // readable at exit; -1 if the process could not be taken hold of

 private:
  FileDescriptor pidfd_;
  FileDescriptor stat_;  // stays that process's, whoever gets its id afterwards
  bool goneBefore_ = false;  // it had exited before we looked
};

}  // namespace quorate::shm

// See child_process.h.
#include "test/child_process.h"

#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <stdexcept>

namespace quorate::test {

pid_t forkChild(const std::function<int()>& body) {
  std::fflush(nullptr);
  const pid_t pid = fork();
  if (pid != 0) return pid;
  int status = 250;
  try {
    status = body();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "child process: %s\n", error.what());
    status = 251;
  }
  std::fflush(nullptr);
  _exit(status);
}

int waitForChild(pid_t pid, int limitMs) {
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (fd >= 0) {
    pollfd ended{fd, POLLIN, 0};
    if (poll(&ended, 1, limitMs) == 0) kill(pid, SIGKILL);
    close(fd);
  }
  int status = 0;
  if (waitpid(pid, &status, 0) != pid) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

void limitAddressSpace(size_t moreBytes) {
  size_t pages = 0;
  if (FILE* sizes = std::fopen("/proc/self/statm", "re")) {
    if (std::fscanf(sizes, "%zu", &pages) != 1) pages = 0;
    std::fclose(sizes);
  }
  const rlim_t limit = pages * static_cast<size_t>(sysconf(_SC_PAGESIZE)) + moreBytes;
  const rlimit limits{limit, limit};
  if (pages == 0 || setrlimit(RLIMIT_AS, &limits) != 0) throw std::runtime_error("no limit of the address space");
}

}  // namespace quorate::test

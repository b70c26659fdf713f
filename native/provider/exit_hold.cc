// See exit_hold.h.
#include "provider/exit_hold.h"

#include <dlfcn.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <mutex>
#include <set>
#include <string>
#include <system_error>

#ifdef __SANITIZE_THREAD__
// What the sanitizer puts in the place of clone(3) is made for copies of the memory: the new process reads what was on
// the stack of its caller, which has returned by then.
extern "C" int __clone(int (*function)(void*), void* stack, int flags, void* argument, ...) noexcept;
#define QUORATE_CLONE ::__clone
#else
#define QUORATE_CLONE ::clone
#endif

namespace quorate {

namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr uint64_t kNsPerSecond = 1'000'000'000;
// What tells the keeper that its parent has ended. Anybody may send it; it looks whether that is true.
constexpr int kParentEnded = SIGTERM;
constexpr char kName[] = "quorate-hold";
// close_range(2), the same on all architectures; headers older than Linux 5.9 do not have it.
constexpr long kCloseRange = 436;

// What the keeper reads, also after its parent's end: the memory is still there, that is the point.
struct Order {
  pid_t parent = 0;
  std::atomic<uint64_t> holdNs{0};
};

struct Keeper {
  std::mutex mutex;
  std::multiset<uint64_t> holds;
  pid_t pid = 0;
  void* stack = nullptr;
  Order order;
};

// Never destroyed: holds may end later than static objects do.
Keeper& theKeeper() {
  static Keeper* const keeper = new Keeper;
  return *keeper;
}

#if defined(__x86_64__)
#define QUORATE_EXIT_HOLD 1
[[gnu::always_inline]] inline long rawSystemCall(long number, long a, long b, long c, long d, long e) {
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                   : "rcx", "r11", "memory");
  return result;
}
#elif defined(__aarch64__)
#define QUORATE_EXIT_HOLD 1
[[gnu::always_inline]] inline long rawSystemCall(long number, long a, long b, long c, long d, long e) {
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
  return x0;
}
#endif

#ifdef QUORATE_EXIT_HOLD
// The keeper. No stack protector and no sanitizer: both use what belongs to the thread that started it.
[[gnu::no_stack_protector, gnu::no_sanitize("address", "thread", "undefined")]] int keep(void* argument) {
  Order* const order = static_cast<Order*>(argument);
  rawSystemCall(SYS_prctl, PR_SET_PDEATHSIG, kParentEnded, 0, 0, 0);
  rawSystemCall(SYS_prctl, PR_SET_NAME, reinterpret_cast<long>(kName), 0, 0, 0);
  const uint64_t signals = uint64_t{1} << (kParentEnded - 1);
  // The end of the one thread that started it sends the signal, too; the process may go on without that.
  while (rawSystemCall(SYS_getppid, 0, 0, 0, 0, 0) == order->parent) {
    rawSystemCall(SYS_rt_sigtimedwait, reinterpret_cast<long>(&signals), 0, 0, sizeof(signals), 0);
  }
  const uint64_t holdNs = order->holdNs.load(std::memory_order_relaxed);
  long time[2] = {static_cast<long>(holdNs / kNsPerSecond), static_cast<long>(holdNs % kNsPerSecond)};
  rawSystemCall(SYS_nanosleep, reinterpret_cast<long>(time), 0, 0, 0, 0);
  // The end of a process gives memory back before it closes descriptors. Who starts again wants the ports now.
  rawSystemCall(kCloseRange, 0, UINT_MAX, 0, 0, 0);
  rawSystemCall(SYS_exit_group, 0, 0, 0, 0, 0);
  return 0;
}

// Its code has to stay where it is, even if the last environment that loaded the addon ends.
void pinThisLibrary() {
  Dl_info info{};
  if (::dladdr(reinterpret_cast<void*>(&keep), &info) != 0 && info.dli_fname != nullptr) {
    ::dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
  }
}
#endif

[[noreturn]] void refuse(const char* call, int errnum) {
  throw VerbsError(
      "QUORATE_SYSTEM",
      "cannot hold memory and descriptors after the end of this process: " + std::generic_category().message(errnum),
      errnum, call);
}

// With the mutex held.
void endKeeper(Keeper& keeper) {
  if (keeper.pid == 0 || keeper.order.parent != ::getpid()) return;  // a fork(2) has no keeper
  ::kill(keeper.pid, SIGKILL);
  while (::waitpid(keeper.pid, nullptr, __WALL) < 0 && errno == EINTR) {
  }
  ::munmap(keeper.stack, kStackBytes);
  keeper.pid = 0;
  keeper.stack = nullptr;
}

// exit(3) is no emergency: nobody needs what this process had. (process.exit() calls no finalizers.)
void endKeeperAtExit() {
  Keeper& keeper = theKeeper();
  std::lock_guard<std::mutex> guard(keeper.mutex);
  endKeeper(keeper);
}

// With the mutex held.
void startKeeper(Keeper& keeper) {
#ifdef QUORATE_EXIT_HOLD
  static const bool prepared = [] {
    pinThisLibrary();
    return std::atexit(endKeeperAtExit) == 0;
  }();
  static_cast<void>(prepared);
  keeper.order.parent = ::getpid();
  void* const stack =
      ::mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (stack == MAP_FAILED) refuse("mmap", errno);
  // It inherits the mask: no handler of this process ever runs in it.
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  // Without a signal at its end it is nobody's business: wait(2) for any child does not see it.
  const int pid = QUORATE_CLONE(keep, static_cast<char*>(stack) + kStackBytes, CLONE_VM | CLONE_FILES, &keeper.order);
  const int errnum = errno;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) {
    ::munmap(stack, kStackBytes);
    refuse("clone", errnum);
  }
  keeper.pid = pid;
  keeper.stack = stack;
#else
  refuse("clone", ENOSYS);
#endif
}

}  // namespace

std::shared_ptr<ExitHold> ExitHold::open(uint64_t holdNs) {
  Keeper& keeper = theKeeper();
  std::lock_guard<std::mutex> guard(keeper.mutex);
  if (keeper.holds.empty()) startKeeper(keeper);
  keeper.holds.insert(holdNs);
  keeper.order.holdNs.store(*keeper.holds.rbegin(), std::memory_order_relaxed);
  return std::shared_ptr<ExitHold>(new ExitHold(holdNs, keeper.pid));
}

void ExitHold::close() {
  Keeper& keeper = theKeeper();
  std::lock_guard<std::mutex> guard(keeper.mutex);
  if (closed_.exchange(true)) return;
  keeper.holds.erase(keeper.holds.find(holdNs_));
  if (keeper.holds.empty()) {
    endKeeper(keeper);
  } else {
    keeper.order.holdNs.store(*keeper.holds.rbegin(), std::memory_order_relaxed);
  }
}

}  // namespace quorate

// Waiting without an event loop, for worker threads: futexes on words of a Memory, timer slack, the clock. The futexes
// are shared ones (not FUTEX_PRIVATE), so that other processes which map the same memory can wake a waiter.
#include <linux/futex.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <string>
#include <system_error>

#include "addon/arguments.h"
#include "addon/clock.h"
#include "addon/environment.h"
#include "provider/clock.h"
#include "provider/scheduling_slice.h"

namespace quorate::addon {

namespace {

// A wait is made of slices: when the shm provider moves a memory to a fresh segment, a waiter on the old one is not
// woken by a wake on the new one, and a remote WRITE wakes nobody. So the word is looked at again this often.
constexpr uint64_t kSliceNs = 50'000'000;
// The kernel's own bounds of a slice.
constexpr uint64_t kMinSliceNs = 100'000;
constexpr uint64_t kMaxSliceNs = 100'000'000;

// What a caller loads from shared memory before this is loaded before the clock is read, and what it loads afterwards,
// after: reads by lease depend on it.
uint64_t monotonicNs() {
  std::atomic_thread_fence(std::memory_order_acquire);
  const int64_t now_ns = monotonic_ns();
  std::atomic_thread_fence(std::memory_order_acquire);
  return static_cast<uint64_t>(now_ns);
}

struct Word {
  std::shared_ptr<Memory> memory;  // keeps the mapping
  uint32_t* address;
};

Word readWord(const Napi::CallbackInfo& info) {
  Word word;
  word.memory = readHandleAs<Memory>(info[0], "memory", Kind::Memory);
  const uint64_t offset = readInteger(info[1], "byteOffset", 0, kMaxSafeInteger);
  if (offset % sizeof(uint32_t) != 0) {
    throwOutOfRange("byteOffset must be a multiple of 4, got " + std::to_string(offset));
  }
  if (word.memory->length() < sizeof(uint32_t) || offset > word.memory->length() - sizeof(uint32_t)) {
    throwOutOfRange("byteOffset " + std::to_string(offset) + " is outside the memory of " +
                    std::to_string(word.memory->length()) + " bytes");
  }
  word.address = reinterpret_cast<uint32_t*>(word.memory->data() + offset);
  return word;
}

int wakeAll(uint32_t* address) {
  const long woken = ::syscall(SYS_futex, address, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  if (woken < 0) {
    const int errnum = errno;
    throw VerbsError("QUORATE_SYSTEM", "cannot wake waiters: " + std::generic_category().message(errnum), errnum,
                     "futex(FUTEX_WAKE)");
  }
  return static_cast<int>(woken);
}

Napi::Value waitWord(Environment& environment, const Napi::CallbackInfo& info) {
  const Word word = readWord(info);
  const uint32_t expected = static_cast<uint32_t>(readInteger(info[2], "expected", 0, 0xffffffff));
  const uint64_t timeoutNs = readInteger(info[3], "timeoutNs", 0, kMaxWaitNs);
  const auto result = [&](int value) { return number(environment.env(), value); };
  const uint64_t deadline = monotonicNs() + timeoutNs;
  const std::atomic_ref<uint32_t> value(*word.address);
  while (value.load(std::memory_order_seq_cst) == expected) {
    const uint64_t now = monotonicNs();
    if (now >= deadline) return result(1);
    const uint64_t slice = std::min(deadline - now, kSliceNs);
    const timespec relative = toTimespec(slice);
    if (::syscall(SYS_futex, word.address, FUTEX_WAIT, expected, &relative, nullptr, 0) == 0) return result(0);
    const int errnum = errno;
    if (errnum != EAGAIN && errnum != ETIMEDOUT && errnum != EINTR) {
      throw VerbsError("QUORATE_SYSTEM", "cannot wait for a word: " + std::generic_category().message(errnum), errnum,
                       "futex(FUTEX_WAIT)");
    }
  }
  return result(0);
}

Napi::Value wakeWord(Environment& environment, const Napi::CallbackInfo& info) {
  const Word word = readWord(info);
  return number(environment.env(), wakeAll(word.address));
}

Napi::Value addWord(Environment& environment, const Napi::CallbackInfo& info) {
  const Word word = readWord(info);
  if (!info[2].IsNumber()) throwInvalidArgument("delta must be a number");
  const double given = info[2].As<Napi::Number>().DoubleValue();
  const bool negative = given < 0;
  const uint64_t magnitude = negative
                                 ? readInteger(number(environment.env(), -given), "-delta", 0, 0x80000000u)
                                 : readInteger(info[2], "delta", 0, 0xffffffff);
  const uint32_t delta = negative ? 0u - static_cast<uint32_t>(magnitude) : static_cast<uint32_t>(magnitude);
  const std::atomic_ref<uint32_t> value(*word.address);
  const uint32_t sum = value.fetch_add(delta, std::memory_order_seq_cst) + delta;
  wakeAll(word.address);
  return number(environment.env(), sum);
}

Napi::Value setTimerSlack(Environment& environment, const Napi::CallbackInfo& info) {
  const uint64_t ns = readInteger(info[0], "ns", 0, kNsPerSecond);
  if (::prctl(PR_SET_TIMERSLACK, ns, 0, 0, 0) != 0) {
    const int errnum = errno;
    throw VerbsError("QUORATE_SYSTEM", "cannot set the timer slack: " + std::generic_category().message(errnum), errnum,
                     "prctl(PR_SET_TIMERSLACK)");
  }
  return environment.env().Undefined();
}

Napi::Value setSchedulingSlice(Environment& environment, const Napi::CallbackInfo& info) {
  const uint64_t slice_ns = readInteger(info[0], "ns", kMinSliceNs, kMaxSliceNs);
  return Napi::Boolean::New(environment.env(), quorate::setSchedulingSlice(slice_ns));
}

Napi::Value setRealtimePriority(Environment& environment, const Napi::CallbackInfo& info) {
  sched_param parameters{};
  parameters.sched_priority = static_cast<int>(readInteger(info[0], "priority", 1, 99));
  // With 0 for the process it is the calling thread's alone. Threads and processes that it starts do not inherit it.
  if (::sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &parameters) != 0) {
    const int errnum = errno;
    throw VerbsError("QUORATE_SYSTEM",
                     "cannot give the thread real-time priority " + std::to_string(parameters.sched_priority) + ": " +
                         std::generic_category().message(errnum) +
                         "; it takes CAP_SYS_NICE, or a limit RLIMIT_RTPRIO (ulimit -r) of at least that",
                     errnum, "sched_setscheduler");
  }
  return environment.env().Undefined();
}

Napi::Value setCpuAffinity(Environment& environment, const Napi::CallbackInfo& info) {
  if (!info[0].IsArray()) throwInvalidArgument("cpus must be an array");
  const Napi::Array cpus = info[0].As<Napi::Array>();
  if (cpus.Length() == 0) throwInvalidArgument("cpus must not be empty");
  cpu_set_t set;
  CPU_ZERO(&set);
  std::string list;
  for (uint32_t i = 0; i < cpus.Length(); i++) {
    const uint64_t cpu = readInteger(cpus.Get(i), "cpus[" + std::to_string(i) + "]", 0, CPU_SETSIZE - 1);
    CPU_SET(cpu, &set);
    list += (i == 0 ? "" : ", ") + std::to_string(cpu);
  }
  if (::sched_setaffinity(0, sizeof(set), &set) != 0) {
    const int errnum = errno;
    throw VerbsError("QUORATE_SYSTEM",
                     "cannot keep the thread on processors " + list + ": " + std::generic_category().message(errnum) +
                         "; none of them is there, or the process may not use them (see taskset(1))",
                     errnum, "sched_setaffinity");
  }
  return environment.env().Undefined();
}

Napi::Value lockFile(Environment& environment, const Napi::CallbackInfo& info) {
  const int descriptor = static_cast<int>(readInteger(info[0], "descriptor", 0, INT32_MAX));
  // Of the open file, so that it ends with the process, however that ends, and keeps out others of this process, too.
  if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) return Napi::Boolean::New(environment.env(), true);
  const int errnum = errno;
  if (errnum == EWOULDBLOCK) return Napi::Boolean::New(environment.env(), false);
  throw VerbsError("QUORATE_SYSTEM", "cannot lock the file: " + std::generic_category().message(errnum), errnum,
                   "flock");
}

napi_value monotonicNsCallback(napi_env env, napi_callback_info) {
  napi_value result = nullptr;
  napi_create_double(env, static_cast<double>(monotonicNs()), &result);
  return result;
}

}  // namespace

std::vector<napi_property_descriptor> waitFunctions(Environment* environment) {
  return {
      function<waitWord>(environment, "waitWord"),
      function<wakeWord>(environment, "wakeWord"),
      function<addWord>(environment, "addWord"),
      function<setTimerSlack>(environment, "setTimerSlack"),
      function<setSchedulingSlice>(environment, "setSchedulingSlice"),
      function<setRealtimePriority>(environment, "setRealtimePriority"),
      function<setCpuAffinity>(environment, "setCpuAffinity"),
      function<lockFile>(environment, "lockFile"),
      {"monotonicNs", nullptr, monotonicNsCallback, nullptr, nullptr, nullptr, napi_enumerable, environment},
  };
}

}  // namespace quorate::addon

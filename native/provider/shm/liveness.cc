// The robust futex: its holder and its waiters.
#include "provider/shm/liveness.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <climits>
#include <thread>

#include "provider/clock.h"
#include "provider/scheduling_slice.h"
#include "provider/shm/peer_hca.h"

namespace quorate::shm {
namespace {

constexpr int64_t kNsPerSecond = 1'000'000'000;
constexpr uint64_t kSlice_ns = 100'000;

int futex(std::atomic<uint32_t>* word, int operation, uint32_t value, const timespec* timeout) {
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));
  return static_cast<int>(syscall(SYS_futex, word, operation, value, timeout, nullptr, 0));
}

}  // namespace

bool isAlive(uint32_t livenessWord) {
  return (livenessWord & FUTEX_TID_MASK) != 0 && (livenessWord & FUTEX_OWNER_DIED) == 0;
}

struct LivenessHolder::State {
  std::atomic<uint32_t>* word = nullptr;
  std::function<bool()> service;
  std::atomic<uint32_t> kicks{0};
  std::atomic<bool> stopping{false};
  std::atomic<bool> begun{false};
  int errnum = 0;  // why the word is not held, once it has begun
  // The list stays in private memory: only the word itself can be reached by peers.
  robust_list node = {};
  robust_list_head head = {};
  pthread_t thread = {};
  bool running = false;
  uint64_t forks = 0;

  void run();
};

void LivenessHolder::State::run() {
  prctl(PR_SET_NAME, "quorate-shm");
  // It has little to do, and its end is what tells of the process's: it is not to wait for the ends of all others.
  setSchedulingSlice(kSlice_ns);
  // This replaces the list that libc keeps for the thread's robust mutexes; the thread uses none.
  node.next = reinterpret_cast<robust_list*>(&head);
  head.list.next = &node;
  head.futex_offset = reinterpret_cast<char*>(word) - reinterpret_cast<char*>(&node);
  head.list_op_pending = nullptr;
  const bool isHeld = syscall(SYS_set_robust_list, &head, sizeof(head)) == 0;
  if (isHeld) word->store(static_cast<uint32_t>(syscall(SYS_gettid)), std::memory_order_seq_cst);
  else errnum = errno;
  begun.store(true, std::memory_order_release);
  begun.notify_all();
  if (!isHeld) return;

  long period_ns = kServicePeriod_ns;
  for (uint32_t before = 0; !stopping.load(std::memory_order_acquire);) {
    const uint32_t seen = kicks.load(std::memory_order_acquire);
    const bool again = service();
    if (stopping.load(std::memory_order_acquire)) break;
    period_ns = !again || seen != before ? kServicePeriod_ns : std::min(2 * period_ns, kLongestServicePeriod_ns);
    before = seen;
    const timespec period = {0, period_ns};
    futex(&kicks, FUTEX_WAIT_PRIVATE, seen, again ? &period : nullptr);
  }

  word->store(0, std::memory_order_seq_cst);
  futex(word, FUTEX_WAKE, INT_MAX, nullptr);
  head.list.next = reinterpret_cast<robust_list*>(&head);
}

LivenessHolder::LivenessHolder(std::atomic<uint32_t>* livenessWord, std::function<bool()> service)
    : state_(std::make_unique<State>()) {
  state_->word = livenessWord;
  state_->service = std::move(service);
  state_->forks = forkCount();
  // Signals are the application's: none is to be handled on this thread.
  sigset_t all, previous;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &previous);
  const int errnum = pthread_create(
      &state_->thread, nullptr,
      [](void* state) -> void* {
        static_cast<State*>(state)->run();
        return nullptr;
      },
      state_.get());
  pthread_sigmask(SIG_SETMASK, &previous, nullptr);
  if (errnum != 0) throw systemError("pthread_create", errnum, "the thread that holds a context's liveness");
  state_->begun.wait(false, std::memory_order_acquire);
  if (state_->errnum != 0) {
    pthread_join(state_->thread, nullptr);
    // Its peers would take this process for alive for ever.
    throw systemError("set_robust_list", state_->errnum, "the liveness of a context",
                      "Shared memory takes a Linux kernel with robust futexes; some sandboxes and emulators have none");
  }
  state_->running = true;
}

LivenessHolder::~LivenessHolder() {
  stop();
}

void LivenessHolder::kick() {
  state_->kicks.fetch_add(1, std::memory_order_release);
  futex(&state_->kicks, FUTEX_WAKE_PRIVATE, 1, nullptr);
}

void LivenessHolder::stop() {
  if (!state_->running) return;
  state_->running = false;
  if (state_->forks != forkCount()) return;  // a child of fork(): the thread is the parent's
  assert(!pthread_equal(state_->thread, pthread_self()));
  state_->stopping.store(true, std::memory_order_release);
  kick();
  pthread_join(state_->thread, nullptr);
}

bool waitUntilNotAlive(std::atomic<uint32_t>* livenessWord, int64_t timeout_ns) {
  const int64_t deadline = monotonic_ns() + timeout_ns;
  for (;;) {
    uint32_t value = livenessWord->load(std::memory_order_seq_cst);
    if (!isAlive(value)) return true;
    const int64_t left = deadline - monotonic_ns();
    if (left <= 0) return false;
    // Without this bit the kernel would mark the word at death but wake nobody.
    if ((value & FUTEX_WAITERS) == 0 &&
        !livenessWord->compare_exchange_strong(value, value | FUTEX_WAITERS, std::memory_order_seq_cst)) {
      continue;
    }
    const timespec timeout = {static_cast<time_t>(left / kNsPerSecond), static_cast<long>(left % kNsPerSecond)};
    futex(livenessWord, FUTEX_WAIT, value | FUTEX_WAITERS, &timeout);
  }
}

struct PeerLiveness::State {
  std::shared_ptr<ShmDirectory> directory;
  std::shared_ptr<PeerHca> peer;
};

PeerLiveness::PeerLiveness(std::unique_ptr<State> state) : state_(std::move(state)) {}
PeerLiveness::~PeerLiveness() = default;

std::shared_ptr<PeerLiveness> PeerLiveness::open(const std::string& directory, const Gid& gid) {
  uint64_t hcaId = 0;
  if (!parseGid(gid, &hcaId)) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     "GID " + gid.toString() + " does not belong to a device of shared memory");
  }
  auto state = std::make_unique<State>();
  state->directory = ShmDirectory::open(chooseDirectory(directory));
  state->peer = PeerHca::open(state->directory, hcaId);
  if (state->peer == nullptr) return nullptr;
  return std::shared_ptr<PeerLiveness>(new PeerLiveness(std::move(state)));
}

bool PeerLiveness::alive() const {
  return state_->peer->alive();
}
bool PeerLiveness::waitUntilDead(int64_t timeout_ns) const {
  return waitUntilNotAlive(&state_->peer->control()->header.liveness, timeout_ns);
}
bool PeerLiveness::exited() const {
  return state_->peer->process().hasExited(0);
}
int PeerLiveness::pidfd() const {
  return state_->peer->process().pidfd();
}
pid_t PeerLiveness::pid() const {
  return state_->peer->pid();
}

}  // namespace quorate::shm

// See waiter.h.
#include "addon/waiter.h"

#include <linux/futex.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <system_error>
#include <utility>

#include "addon/clock.h"

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

namespace quorate::addon {

namespace {

// struct futex_waitv of Linux 5.16; headers may be older.
struct FutexWait {
  uint64_t value;
  uint64_t address;
  uint32_t flags;
  uint32_t reserved;
};
std::atomic<bool> hasWaitv{true};

// Flags of futex_waitv(2): a word of 32 bits; of this process only, which the kernel need not look up in page tables.
constexpr uint32_t kFutex32 = 2;
constexpr uint32_t kFutexPrivate = FUTEX_PRIVATE_FLAG;

FutexWait waitOn(const std::atomic<uint32_t>* word, uint32_t expected, uint32_t flags = 0) {
  return {expected, reinterpret_cast<uintptr_t>(word), kFutex32 | flags, 0};
}

void wakeAll(std::atomic<uint32_t>* word, int flags = 0) {
  ::syscall(SYS_futex, word, FUTEX_WAKE | flags, INT_MAX, nullptr, nullptr, 0);
}

[[noreturn]] void throwSystem(const char* syscall, int errnum) {
  throw VerbsError("QUORATE_SYSTEM", "a thread cannot wait: " + std::generic_category().message(errnum), errnum,
                   syscall);
}

}  // namespace

Waiter::Waiter() : eventFd_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (eventFd_ < 0) throwSystem("eventfd", errno);
}

Waiter::~Waiter() {
  ::close(eventFd_);
}

void Waiter::close() {
  closed_.store(true, std::memory_order_release);
  wake();
}

void Waiter::wake() {
  wakes_.fetch_add(1, std::memory_order_seq_cst);
  wakeAll(&wakes_, FUTEX_PRIVATE_FLAG);
  const uint64_t one = 1;
  // Fails only when the counter is at its limit; then the descriptor is readable anyway.
  [[maybe_unused]] const ssize_t written = ::write(eventFd_, &one, sizeof(one));
}

void Waiter::watchQueue(std::shared_ptr<CompletionQueue> completionQueue, std::shared_ptr<CompletionChannel> channel) {
  CompletionQueue::Doorbell doorbell;
  if (completionQueue != nullptr) {
    doorbell = completionQueue->doorbell();
    if (doorbell.word == nullptr && channel == nullptr) {
      throw VerbsError("QUORATE_INVALID_ARGUMENT",
                       "to wait for this CompletionQueue its CompletionChannel is needed: create it with one and pass "
                       "it to watchQueue()");
    }
  }
  queue_ = std::move(completionQueue);
  doorbell_ = doorbell.word;
  sleepers_ = doorbell.sleepers;
  channel_ = doorbell_ == nullptr ? std::move(channel) : nullptr;
  if (doorbell_ != nullptr) seenDoorbell_ = doorbell_->load(std::memory_order_seq_cst);
  channelHasNews_ = queue_ != nullptr;  // what came before counts as news
  if (channel_ != nullptr) armQueue();
}

void Waiter::watchPeer(size_t slot, std::shared_ptr<PeerProcess> peer) {
  if (peer != nullptr) peersEnd_ = std::max(peersEnd_, slot + 1);
  peers_.at(slot) = Peer{std::move(peer), false};
}

void Waiter::armQueue() {
  if (queue_ != nullptr && !queue_->closed()) queue_->requestNotify(false);
}

uint32_t Waiter::look() {
  uint32_t reasons = 0;
  const uint32_t wakes = wakes_.load(std::memory_order_seq_cst);
  if (wakes != seenWakes_) {
    seenWakes_ = wakes;
    reasons |= kWoken;
  }
  if (doorbell_ != nullptr) {
    const uint32_t doorbell = doorbell_->load(std::memory_order_seq_cst);
    if (doorbell != seenDoorbell_) {
      seenDoorbell_ = doorbell;
      reasons |= kCompletion;
    }
  }
  if (channelHasNews_) {
    channelHasNews_ = false;
    reasons |= kCompletion;
  }
  for (Peer& peer : peers()) {
    if (peer.process == nullptr || peer.reported || peer.process->alive()) continue;
    peer.reported = true;
    wakeAll(peer.process->livenessWord());  // the kernel woke one of those who wait for this death
    reasons |= kPeerDied;
  }
  return reasons;
}

uint32_t Waiter::wait(uint64_t timeout_ns) {
  const uint64_t deadline_ns = nowNs() + timeout_ns;
  for (;;) {
    const uint32_t reasons = look();
    if (reasons != 0) return reasons;
    if (nowNs() >= deadline_ns) return 0;
    if (channel_ != nullptr) {
      sleepOnDescriptors(deadline_ns);
    } else {
      sleepOnFutexes(deadline_ns);
    }
  }
}

// Returns when something may have changed, or when it is time.
void Waiter::sleepOnFutexes(uint64_t deadline_ns) {
  std::array<FutexWait, kMaxPeers + 2> waits;
  size_t count = 0;
  waits[count++] = waitOn(&wakes_, seenWakes_, kFutexPrivate);
  for (const Peer& peer : peers()) {
    if (peer.process == nullptr || peer.reported) continue;
    std::atomic<uint32_t>* word = peer.process->livenessWord();
    uint32_t value = word->load(std::memory_order_seq_cst);
    // Without this bit the kernel would mark the word at death but wake nobody.
    if ((value & FUTEX_WAITERS) == 0 &&
        !word->compare_exchange_strong(value, value | FUTEX_WAITERS, std::memory_order_seq_cst)) {
      return;  // it has just changed: look again
    }
    if (!peer.process->alive()) return;
    waits[count++] = waitOn(word, value | FUTEX_WAITERS);
  }
  if (doorbell_ != nullptr) {
    sleepers_->fetch_add(1, std::memory_order_seq_cst);
    waits[count++] = waitOn(doorbell_, seenDoorbell_);
  }
  const timespec deadline = toTimespec(deadline_ns);
  long woken = -1;
  const char* call = "futex_waitv";
  if (hasWaitv.load(std::memory_order_relaxed)) {
    woken = ::syscall(SYS_futex_waitv, waits.data(), count, 0, &deadline, CLOCK_MONOTONIC);
    // Missing, or forbidden by a sandbox that does not know it.
    if (woken < 0 && (errno == ENOSYS || errno == EPERM)) hasWaitv.store(false, std::memory_order_relaxed);
  }
  if (!hasWaitv.load(std::memory_order_relaxed)) {
    call = "futex(FUTEX_WAIT_BITSET)";  // unlike FUTEX_WAIT it takes a point in time
    woken = ::syscall(SYS_futex, &wakes_, FUTEX_WAIT_BITSET_PRIVATE, seenWakes_, &deadline, nullptr,
                      FUTEX_BITSET_MATCH_ANY);
  }
  const int errnum = woken < 0 ? errno : 0;
  if (doorbell_ != nullptr) sleepers_->fetch_sub(1, std::memory_order_seq_cst);
  if (errnum != 0 && errnum != EAGAIN && errnum != ETIMEDOUT && errnum != EINTR) throwSystem(call, errnum);
}

void Waiter::sleepOnDescriptors(uint64_t deadline_ns) {
  std::array<pollfd, 2> descriptors = {pollfd{eventFd_, POLLIN, 0}, pollfd{channel_->fd(), POLLIN, 0}};
  const uint64_t now = nowNs();
  const timespec left = toTimespec(deadline_ns > now ? deadline_ns - now : 0);
  if (::ppoll(descriptors.data(), descriptors.size(), &left, nullptr) < 0) {
    if (errno == EINTR) return;
    throwSystem("ppoll", errno);
  }
  if (descriptors[0].revents != 0) {
    uint64_t wakes = 0;
    [[maybe_unused]] const ssize_t length = ::read(eventFd_, &wakes, sizeof(wakes));
  }
  if (descriptors[1].revents != 0) {
    while (channel_->getEvent() != nullptr) channelHasNews_ = true;
    // Armed again before the caller polls: what comes after its last poll makes an event.
    if (channelHasNews_) armQueue();
  }
}

}  // namespace quorate::addon

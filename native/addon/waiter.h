// How a thread without an event loop sleeps until there is something to do: it is woken by other threads of the
// process, by news of one completion queue, and by the death of peer processes of the same host.
//
// On shared memory all of these are futexes, and the thread sleeps on them at once with futex_waitv(2): a dead process
// is noticed by the kernel's own wake at the start of its exit. Where that call is missing (before Linux 5.16) the
// thread sleeps on its own word only, and sees the rest when its time is up. With a device of the kernel it sleeps in
// ppoll(2) on an eventfd and the descriptor of the queue's completion channel.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>

#include "verbs/verbs.h"

namespace quorate::addon {

class Waiter : public VerbsObject {
 public:
  static constexpr size_t kMaxPeers = 64;
  // Reasons for which wait() returned; none of them if the time was up.
  enum Reason : uint32_t { kWoken = 1, kCompletion = 2, kPeerDied = 4 };

  Waiter();
  ~Waiter() override;

  const char* kind() const override { return "Waiter"; }
  void close() override;
  bool closed() const override { return closed_.load(std::memory_order_acquire); }

  // Any thread. The wait that is on, or else the next one, ends with kWoken.
  void wake();

  // The rest is for the thread that waits.

  // The queue whose news ends a wait; null for none. With a device of the kernel it needs a completion channel of its
  // own, whose events are taken here.
  void watchQueue(std::shared_ptr<CompletionQueue> completionQueue, std::shared_ptr<CompletionChannel> channel);
  // The process whose death ends a wait, once; null for none. A peer that is dead already ends the next wait.
  void watchPeer(size_t slot, std::shared_ptr<PeerProcess> peer);
  // Sleeps until there is a reason, or until timeout_ns have passed; returns the reasons.
  uint32_t wait(uint64_t timeout_ns);

 private:
  struct Peer {
    std::shared_ptr<PeerProcess> process;
    bool reported = false;
  };

  std::span<Peer> peers() { return {peers_.data(), peersEnd_}; }
  uint32_t look();
  void sleepOnFutexes(uint64_t deadline_ns);
  void sleepOnDescriptors(uint64_t deadline_ns);
  void armQueue();

  std::atomic<bool> closed_{false};
  std::atomic<uint32_t> wakes_{0};
  uint32_t seenWakes_ = 0;
  const int eventFd_;
  std::shared_ptr<CompletionQueue> queue_;
  std::shared_ptr<CompletionChannel> channel_;
  std::atomic<uint32_t>* doorbell_ = nullptr;
  std::atomic<uint32_t>* sleepers_ = nullptr;
  uint32_t seenDoorbell_ = 0;
  bool channelHasNews_ = false;
  std::array<Peer, kMaxPeers> peers_;
  size_t peersEnd_ = 0;  // slots from here on were never used
};

}  // namespace quorate::addon

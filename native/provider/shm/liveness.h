// Liveness of HCA instances on one host. The context that opened an instance keeps a thread that holds a robust futex
// in the control segment: at the very start of the process's exit (also by SIGKILL) the kernel marks the word and
// wakes whoever waits on it, some 100 us after the signal where a closed socket or a pidfd takes several times that.
//
// What it says: the process is dying, or has closed the context. What it does not say: that its other threads have
// executed their last store (for that: PeerLiveness::exited()), or that a process which is alive makes progress.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "provider/shm/process_identity.h"
#include "verbs/verbs.h"

namespace quorate::shm {

struct ControlSegment;

bool isAlive(uint32_t livenessWord);

// Holds the robust futex of one HCA instance in a thread of its own. The thread also does the instance's occasional
// work: `service` is called when kick() was called and, as long as it returns true, again: first after
// kServicePeriod_ns, then ever more seldom up to kLongestServicePeriod_ns.
class LivenessHolder {
 public:
  // Returns when the word holds the thread's id. The word must stay mapped until stop() has returned. Throws QUORATE_SYSTEM
  // where threads cannot be made, or the kernel has no robust futexes.
  LivenessHolder(std::atomic<uint32_t>* livenessWord, std::function<bool()> service);
  ~LivenessHolder();
  void kick();
  // Lets go in good order (word 0, waiters woken) and ends the thread. Not to be called from `service`.
  void stop();
  static constexpr long kServicePeriod_ns = 200'000;
  static constexpr long kLongestServicePeriod_ns = 3'200'000;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Another instance's liveness, for failure detectors and for operations.
class PeerLiveness {
 public:
  // The instance behind `gid`, looked for in `directory` (empty: the default one). Null if there is none (any more).
  static std::shared_ptr<PeerLiveness> open(const std::string& directory, const Gid& gid);
  ~PeerLiveness();

  bool alive() const;  // one load
  // Blocks until the instance dies or closes (true) or timeout_ns passed (false).
  bool waitUntilDead(int64_t timeout_ns) const;
  // Every thread of its process has executed its last instruction (false if that cannot be known).
  bool exited() const;
  int pidfd() const;  // readable at exit; -1 if there is none
  pid_t pid() const;

 private:
  struct State;
  explicit PeerLiveness(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// The wait behind PeerLiveness::waitUntilDead(), on a mapped word.
bool waitUntilNotAlive(std::atomic<uint32_t>* livenessWord, int64_t timeout_ns);

}  // namespace quorate::shm

// Revocation: proving that no operation which has lost its right can still store a byte.
//
// The caller first takes the right away (clears bits of a responder word, or invalidates a region's tag), then calls
// drain(). An operation that is under way at that moment is, in this order:
//   1. waited for, up to kLongestWait_ns: it normally ends within microseconds;
//   2. taken over, if every thread of its process has exited (pidfd): it can store nothing any more;
//   3. passed over, if it only reads: it will notice, and not report success;
//   4. else its requester is stopped, or so slow that it makes no difference. It may store into its mapping of the
//      segment at any later time, so the memory moves: a fresh segment with the same bytes is mapped at the same
//      address, and late stores land in the old one that nobody reads.
// A queue pair whose operation was taken or passed over is in ERR at both ends.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "provider/shm/layout.h"
#include "provider/shm/peer_hca.h"
#include "provider/shm/spin_lock.h"

namespace quorate::shm {

class ShmContext;
class ShmMemory;

// The responder side of one queue pair.
struct Responder {
  QueuePairSlot* slot = nullptr;
  SpinLock* postLock = nullptr;       // null: nobody posts any more
  std::shared_ptr<PeerHca> peer;      // whose operations these are, as far as known
  std::function<void()> announce;     // "the queue pair has news": called after its word changed
  bool datagram = false;              // UD: the sender has to be looked for, see datagram.cc
  std::atomic<bool> revoking{false};  // passed over, its memory not yet moved: receives must not be flushed yet
};

struct RevocationCounts {
  std::atomic<uint64_t> drains{0};     // calls
  std::atomic<uint64_t> waited{0};     // operations that ended by themselves while waited for
  std::atomic<uint64_t> takenOver{0};  // operations of exited processes
  std::atomic<uint64_t> passedOver{0};
  std::atomic<uint64_t> moves{0};  // memories moved
};

// Takes all rights from a word: it is no longer open, and in error.
void closeWord(QueuePairSlot& slot);
// Ends operation `operation` of a word on its requester's behalf. False if it had ended by itself. `exited`: nobody is
// left to notice it.
bool passOver(QueuePairSlot& slot, uint64_t operation, bool exited);

class Revoker {
 public:
  explicit Revoker(ShmContext& context) : context_(context) {}

  // Held during a revocation, and whenever responders, regions or the segments of memories change.
  std::mutex& mutex() { return mutex_; }

  // All of the following with mutex() held.
  void addResponder(uint32_t index, Responder* responder) { responders_[index] = responder; }
  void removeResponder(uint32_t index) { responders_[index] = nullptr; }
  // Its queue pair goes, but an operation may be under way on it that still has its right: later revocations see it.
  void leaveResponder(uint32_t index);
  void addRegion(uint32_t index, ShmMemory* memory) { regions_[index] = memory; }
  void removeRegion(uint32_t index) { regions_[index] = nullptr; }

  using Concerns = std::function<bool(const Responder&, uint64_t word)>;
  // Returns when no operation that `concerns` can store any more. Throws QUORATE_REVOKE_FAILED or QUORATE_SYSTEM if
  // that could not be reached (a memory had to move but there is no room): then nothing is proven, and the call may
  // be repeated.
  void drain(const Concerns& concerns);
  // Returns when no thread of this process is inside a post that began before the call.
  void waitForLocalPosts();

  const RevocationCounts& counts() const { return counts_; }

 private:
  struct Pending {
    Responder* responder;
    uint64_t word;
  };
  std::vector<Pending> collect(const Concerns& concerns) const;
  void waitFor(std::vector<Pending>* pending, int64_t budget_ns);
  int64_t waitBudget_ns(const std::vector<Pending>& pending) const;
  bool endWithoutMove(const Pending& pending);
  void move(const std::vector<ShmMemory*>& memories);
  void setMoving(const std::vector<ShmMemory*>& memories, bool moving);
  bool isAmong(uint32_t region, const std::vector<ShmMemory*>& memories) const;

  ShmContext& context_;
  std::mutex mutex_;
  std::array<Responder*, kMaxQueuePairs> responders_ = {};
  std::vector<std::unique_ptr<Responder>> left_;
  std::array<ShmMemory*, kMaxMemoryRegions> regions_ = {};
  bool movesOwed_ = false;  // some memory's moveOwed is set
  RevocationCounts counts_;
};

}  // namespace quorate::shm

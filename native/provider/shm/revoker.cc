// See revoker.h. Every access to a responder word or a region tag here is sequentially consistent: it is one half of
// the argument with the requester (requester.cc) that one of the two sees the other.
#include "provider/shm/revoker.h"

#include <sched.h>

#include <algorithm>
#include <cassert>

#include "provider/clock.h"
#include "provider/shm/context.h"
#include "provider/shm/memory.h"
#include "provider/shm/test_hooks.h"

namespace quorate::shm {
namespace {

constexpr int64_t kSpin_ns = 100'000;           // before yielding the CPU to whoever may have been preempted
constexpr int64_t kLongestWait_ns = 1'000'000;  // for operations to end by themselves
constexpr int64_t kWaitForOthers_ns = 200'000;  // for further operations on a memory that is about to move
constexpr int64_t kCopyBytesPerNs = 4;          // about what moving costs: no use waiting longer than that

bool isIn(const std::vector<ShmMemory*>& memories, const ShmMemory* memory) {
  return std::find(memories.begin(), memories.end(), memory) != memories.end();
}

}  // namespace

void closeWord(QueuePairSlot& slot) {
  slot.word.fetch_or(word::kError, std::memory_order_seq_cst);
  slot.word.fetch_and(~(word::kOpen | word::kRights), std::memory_order_seq_cst);
}

bool passOver(QueuePairSlot& slot, uint64_t operation, bool exited) {
  uint64_t current = slot.word.load(std::memory_order_seq_cst);
  while (word::sameOperation(current, operation)) {
    const uint64_t next =
        (word::idle(current) & ~(word::kOpen | word::kRights)) | word::kError | (exited ? 0 : word::kStuck);
    if (slot.word.compare_exchange_weak(current, next, std::memory_order_seq_cst)) return true;
  }
  return false;
}

void Revoker::leaveResponder(uint32_t index) {
  auto left = std::make_unique<Responder>();
  left->slot = responders_[index]->slot;
  left->peer = responders_[index]->peer;
  left->announce = [] {};
  left->datagram = responders_[index]->datagram;
  responders_[index] = left.get();
  left_.push_back(std::move(left));
}

std::vector<Revoker::Pending> Revoker::collect(const Concerns& concerns) const {
  std::vector<Pending> pending;
  for (Responder* responder : responders_) {
    if (responder == nullptr) continue;
    const uint64_t word = responder->slot->word.load(std::memory_order_seq_cst);
    if (word::busy(word) && concerns(*responder, word)) pending.push_back({responder, word});
  }
  return pending;
}

int64_t Revoker::waitBudget_ns(const std::vector<Pending>& pending) const {
  int64_t copy_ns = 0;
  for (const Pending& entry : pending) {
    const ShmMemory* memory = regions_[word::region(entry.word)];
    if (memory != nullptr) copy_ns = std::max(copy_ns, static_cast<int64_t>(memory->length()) / kCopyBytesPerNs);
  }
  return std::min(kSpin_ns + copy_ns, kLongestWait_ns);
}

void Revoker::waitFor(std::vector<Pending>* pending, int64_t budget_ns) {
  const int64_t start = monotonic_ns();
  for (;;) {
    counts_.waited += std::erase_if(*pending, [](const Pending& entry) {
      return !word::sameOperation(entry.responder->slot->word.load(std::memory_order_seq_cst), entry.word);
    });
    if (pending->empty()) return;
    const int64_t waited = monotonic_ns() - start;
    if (waited >= budget_ns) return;
    if (waited < kSpin_ns) {
      pauseCpu();
    } else {
      sched_yield();
    }
  }
}

// Ends an operation that cannot store: its process is gone, or it only reads, or it names no memory of ours. (In the
// last case its requester has yet to look at the region, will find that the key does not match, and let go.)
bool Revoker::endWithoutMove(const Pending& entry) {
  if (const PeerHca* peer = entry.responder->peer.get()) {
    // A dying process needs a moment until its last thread is gone; a living one is not waited for again.
    if (peer->process().hasExited(peer->alive() ? 0 : 1)) {
      if (passOver(*entry.responder->slot, entry.word, true)) counts_.takenOver++;
      return true;
    }
  }
  if (entry.responder->datagram && senderHasExited(context_.control()->header, *entry.responder->slot)) {
    if (passOver(*entry.responder->slot, entry.word, true)) counts_.takenOver++;
    return true;
  }
  if (!storesIntoTarget(word::kind(entry.word)) || regions_[word::region(entry.word)] == nullptr) {
    if (passOver(*entry.responder->slot, entry.word, false)) counts_.passedOver++;
    return true;
  }
  return false;
}

bool Revoker::isAmong(uint32_t region, const std::vector<ShmMemory*>& memories) const {
  return std::find(memories.begin(), memories.end(), regions_[region]) != memories.end();
}

void Revoker::drain(const Concerns& concerns) {
  counts_.drains++;
  if (testHooks.skipDrain.load(std::memory_order_relaxed)) return;

  std::vector<Pending> pending = collect(concerns);
  if (!pending.empty()) waitFor(&pending, waitBudget_ns(pending));
  std::vector<ShmMemory*> memories;
  if (movesOwed_) [[unlikely]] {
    for (ShmMemory* memory : regions_) {
      if (memory != nullptr && memory->moveOwed && !isIn(memories, memory)) memories.push_back(memory);
    }
  }
  std::vector<Responder*> changed;
  for (const Pending& entry : pending) {
    changed.push_back(entry.responder);
    if (endWithoutMove(entry)) continue;
    ShmMemory* memory = regions_[word::region(entry.word)];
    if (!isIn(memories, memory)) memories.push_back(memory);
  }
  if (!memories.empty()) move(memories);
  for (Responder* responder : changed) responder->announce();
}

void Revoker::move(const std::vector<ShmMemory*>& memories) {
  try {
    for (ShmMemory* memory : memories) memory->prepareMove();
  } catch (const VerbsError& error) {
    for (ShmMemory* memory : memories) memory->abandonMove();
    throw VerbsError("QUORATE_REVOKE_FAILED",
                     "A requester is stopped in the middle of a store, and its memory could not be moved out of its "
                     "reach, so the right is not proven revoked: " +
                         std::string(error.what()) + " Then close the object again.",
                     error.errnum, error.syscall);
  }
  // From here on no new operation starts on these memories; those under way end or are passed over. Where one cannot be
  // moved after all, that stays so until a further revocation has moved it.
  for (ShmMemory* memory : memories) memory->moveOwed = movesOwed_ = true;
  setMoving(memories, true);
  std::vector<Pending> pending = collect([&](const Responder&, uint64_t word) {
    return storesIntoTarget(word::kind(word)) && isAmong(word::region(word), memories);
  });
  waitFor(&pending, kWaitForOthers_ns);
  std::vector<Responder*> changed;
  for (const Pending& entry : pending) {
    entry.responder->revoking.store(true, std::memory_order_seq_cst);
    changed.push_back(entry.responder);
    if (passOver(*entry.responder->slot, entry.word, false)) counts_.passedOver++;
  }
  for (ShmMemory* memory : memories) {
    if (testHooks.skipMove.load(std::memory_order_relaxed)) {
      memory->abandonMove();
    } else {
      try {
        memory->finishMove();
      } catch (...) {
        for (ShmMemory* other : memories) other->abandonMove();  // they still owe it, and begin anew
        throw;
      }
      counts_.moves++;
    }
    memory->moveOwed = false;
    setMoving({memory}, false);
  }
  movesOwed_ = false;  // drain() named every memory that owed one
  for (Responder* responder : responders_) {
    if (responder != nullptr) responder->revoking.store(false, std::memory_order_seq_cst);
  }
  for (Responder* responder : changed) responder->announce();
}

void Revoker::setMoving(const std::vector<ShmMemory*>& memories, bool moving) {
  for (uint32_t index = 0; index < kMaxMemoryRegions; index++) {
    if (regions_[index] == nullptr || !isAmong(index, memories)) continue;
    RegionSlot& slot = context_.control()->regions[index];
    uint64_t tag = slot.tag.load(std::memory_order_seq_cst);
    if ((tag & region_tag::kValid) == 0) continue;  // just revoked, and to stay so
    // Releasing: who sees the new id sees that the tag had changed.
    if (!moving) slot.segmentId.store(regions_[index]->segmentId(), std::memory_order_release);
    // A peer may invalidate a memory window meanwhile.
    while ((tag & region_tag::kValid) != 0 &&
           !slot.tag.compare_exchange_weak(
               tag,
               region_tag::make(region_tag::key(tag), tag, region_tag::kValid | (moving ? region_tag::kMoving : 0)),
               std::memory_order_seq_cst)) {
    }
  }
}

void Revoker::waitForLocalPosts() {
  for (Responder* responder : responders_) {
    if (responder == nullptr || responder->postLock == nullptr) continue;
    responder->postLock->lock();
    responder->postLock->unlock();
  }
}

}  // namespace quorate::shm

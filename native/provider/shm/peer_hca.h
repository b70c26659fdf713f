// Another HCA instance as a requester sees it: its control segment, and its memory segments as they come to be used.
// Nothing read through here is trusted: indices, lengths and paths are bounded where they are used.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "provider/shm/directory.h"
#include "provider/shm/layout.h"
#include "provider/shm/liveness.h"
#include "provider/shm/process_identity.h"

namespace quorate::shm {

class PeerHca {
 public:
  // Null if there is no such instance, or its control segment is not one of ours.
  static std::shared_ptr<PeerHca> open(std::shared_ptr<ShmDirectory> directory, uint64_t hcaId);

  uint64_t id() const { return hcaId_; }
  ControlSegment* control() const { return control_; }
  bool alive() const { return isAlive(control_->header.liveness.load(std::memory_order_relaxed)); }
  const ProcessExit& process() const { return process_; }
  pid_t pid() const { return pid_; }

  // A mapping of the segment that memory slot `memory` publishes under `segmentId`; null if it publishes another one
  // by now, or its file cannot be used. Shared by all queue pairs of this context.
  std::shared_ptr<Mapping> mapSegment(uint32_t memory, uint64_t segmentId);

  // Tells completion queue `index` that one of its queue pairs has news; wakes its channel if it is armed for that.
  void ring(uint32_t index, bool solicited);
  // Wakes the reader of its asynchronous events, if there is one.
  void ringAsync();

 private:
  bool wake(uint32_t channel, uint32_t index, uint32_t arming);

  std::shared_ptr<ShmDirectory> directory_;
  uint64_t hcaId_ = 0;
  pid_t pid_ = 0;
  Mapping mapping_;
  ControlSegment* control_ = nullptr;
  ProcessExit process_;

  std::mutex mutex_;
  std::unordered_map<uint64_t, std::weak_ptr<Mapping>> segments_;
  std::mutex channelsMutex_;
  std::unordered_map<uint32_t, FileDescriptor> channels_;
};

// An event of a completion channel as it goes through its FIFO: smaller than PIPE_BUF, so written as a whole.
struct ChannelEvent {
  uint32_t completionQueue = 0;
  uint32_t arming = 0;  // that it answers
};

// Wakes the threads that sleep on the slot's doorbell.
void wakeSleepers(CompletionQueueSlot& slot);

// Wakes whoever waits for completion queue `index` if it is armed for this: calls `wake(channel, index, arming)`,
// which writes the event and returns whether it could.
template <typename Wake>
void wakeIfArmed(CompletionQueueSlot& slot, uint32_t index, bool solicited, Wake wake) {
  uint32_t armed = slot.armed.load(std::memory_order_seq_cst);
  if (armedFor(armed) == Armed::No) [[likely]]
    return;
  if (armedFor(armed) == Armed::SolicitedOnly && !solicited) return;
  // First the event, then disarm (this arming only): one who dies in between costs a spurious event, not a lost one.
  const auto send = [&] { return wake(slot.channel.load(std::memory_order_relaxed), index, armingOf(armed)); };
  bool sent = send();
  if (!sent) [[unlikely]] {
    // Whoever reads the channel sends it when there is room; if all has been read meanwhile, there is room now.
    slot.unsent.store(1, std::memory_order_seq_cst);
    sent = send();
  }
  if (sent) {
    slot.armed.compare_exchange_strong(armed, armed & ~kArmedMask, std::memory_order_seq_cst);
  }
}

// The same for news that the queue must look for in its queue pairs.
template <typename Wake>
void ringDoorbell(CompletionQueueSlot& slot, uint32_t index, bool solicited, Wake wake) {
  slot.doorbell.fetch_add(1, std::memory_order_seq_cst);
  if (slot.sleepers.load(std::memory_order_seq_cst) != 0) [[unlikely]]
    wakeSleepers(slot);
  wakeIfArmed(slot, index, solicited, wake);
}

}  // namespace quorate::shm

// One open device: an HCA instance with its control segment, its tables and its service thread.
//
// Locks, in the order in which they are taken: a queue pair's modify mutex, attendMutex_, the revoker's mutex, a queue
// pair's post lock, a completion queue's lock, a queue pair's receive lock; tablesMutex_ last of all. While
// attendMutex_ is held post locks are only tried.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "provider/shm/async_events.h"
#include "provider/shm/directory.h"
#include "provider/shm/layout.h"
#include "provider/shm/liveness.h"
#include "provider/shm/peer_hca.h"
#include "provider/shm/process_identity.h"
#include "provider/shm/revoker.h"
#include "verbs/verbs.h"

namespace quorate::shm {

class ShmMemory;
class ShmMemoryWindow;
class ShmQueuePair;

// Hands out the indices of a table, the longest unused one first, so that stale names stay invalid for long.
class IndexPool {
 public:
  IndexPool(const char* what, uint32_t size) : what_(what), size_(size) {
    for (uint32_t i = 0; i < size; i++) free_.push_back(i);
  }
  uint32_t take();  // throws QUORATE_LIMIT
  void give(uint32_t index);

 private:
  const char* const what_;
  const uint32_t size_;
  std::mutex mutex_;
  std::deque<uint32_t> free_;
};

// What a parent must close before itself. Holds no child alive.
class Children {
 public:
  // Throws QUORATE_CLOSED once closeAll() has begun: whoever makes the child drops it then, and nothing is left open
  // behind a parent that another thread closes meanwhile.
  void add(const std::shared_ptr<VerbsObject>& child);
  void remove(const VerbsObject* child);
  // Closes those that still live, the newest first; memory windows before all others, since they keep regions in use.
  // Where it throws, the parent stays open and takes children again.
  void closeAll();

 private:
  std::mutex mutex_;
  int closings_ = 0;  // calls of closeAll() that are under way or have succeeded
  std::vector<std::weak_ptr<VerbsObject>> children_;
  size_t pruneAt_ = 64;
};

// A region as local work requests see it: private to this process, so trusted.
struct LocalRegion {
  std::atomic<uint64_t> tag{0};  // key << 32 | 1 while valid; the rest is only written while it is not
  uint8_t* bytes = nullptr;
  uint64_t address = 0;  // by which requests name the first byte: 0 in a zero-based region
  uint64_t length = 0;
  uint32_t access = 0;
  uint32_t protectionDomain = 0;
};

class ShmContext final : public Context {
 public:
  static std::shared_ptr<ShmContext> open(const std::string& directory);
  ~ShmContext() override;

  const DeviceInfo& device() const override { return device_; }
  DeviceAttributes queryDevice() override;
  PortAttributes queryPort(int portNum) override;
  std::vector<GidEntry> queryGids(int portNum) override;
  uint16_t queryPkey(int portNum, int index) override;
  AddressVector addressVectorFromCompletion(int portNum, const WorkCompletion& completion, const uint8_t* grh) override;
  std::shared_ptr<Memory> allocateMemory(const MemoryOptions& options) override;
  std::shared_ptr<ProtectionDomain> allocateProtectionDomain() override;
  std::shared_ptr<CompletionChannel> createCompletionChannel() override;
  std::shared_ptr<CompletionQueue> createCompletionQueue(int depth, std::shared_ptr<CompletionChannel> channel,
                                                         const CqOptions& options = {}) override;
  int asyncFd() override;
  bool getAsyncEvent(AsyncEvent* event) override;
  bool accessFlagsRevocationIsSynchronous() const override { return true; }  // see revoker.h
  bool checksummedReads() const override { return true; }
  std::shared_ptr<PeerProcess> openPeerProcess(const Gid& gid) override;
  void close() override;
  bool closed() const override { return closed_.load(std::memory_order_acquire); }

  // For the other objects of the provider.
  static DeviceInfo describe(uint64_t hcaId);
  void requireOpen(const char* kind) const;  // throws QUORATE_CLOSED
  bool forked() const { return forks_ != forkCount(); }
  const std::shared_ptr<ShmDirectory>& directory() const { return directory_; }
  uint64_t hcaId() const { return hcaId_; }
  const ProcessIdentity& self() const { return self_; }
  ControlSegment* control() const { return control_; }
  Revoker& revoker() { return revoker_; }
  Children& children() { return children_; }
  uint64_t nextSegmentId() { return ++lastSegmentId_; }
  uint32_t nextChannelNumber() { return ++lastChannel_; }
  uint32_t nextProtectionDomain() { return ++lastProtectionDomain_; }
  void adoptMemory(const std::shared_ptr<ShmMemory>& memory);
  std::shared_ptr<PeerHca> peer(uint64_t hcaId);  // null if it is not there

  IndexPool& memoryIndices() { return memoryIndices_; }
  IndexPool& regionIndices() { return regionIndices_; }
  IndexPool& completionQueueIndices() { return completionQueueIndices_; }
  // Of a shared receive queue. What a kept-back slot of a queue pair drew from is kept back with it: its requester may
  // be about to claim a receive.
  struct SharedQueuePlace {
    uint32_t index = 0;
    uint32_t base = 0;
    uint32_t capacity = 0;
    uint32_t scatterBase = 0;
    uint32_t scatterEntries = 0;
  };
  SharedQueuePlace takeSharedPlace(uint32_t capacity, uint32_t maxSge);  // throws QUORATE_LIMIT
  void giveSharedPlace(const SharedQueuePlace& place);
  // By index; guarded by the revoker's mutex.
  std::unordered_map<uint32_t, ShmMemoryWindow*>& memoryWindows() { return memoryWindows_; }
  AsyncEvents& asyncEvents() { return asyncEvents_; }
  std::mutex& multicastMutex() { return multicastMutex_; }  // who attaches and detaches holds it
  std::array<LocalRegion, kMaxMemoryRegions>& localRegions() { return localRegions_; }

  // The bytes that a local work request names, null if it may not use them. Called under the post lock, which
  // deregistration waits for.
  uint8_t* localBytes(uint32_t key, uint64_t address, uint64_t length, uint32_t access,
                      uint32_t protectionDomain) const {
    const LocalRegion& region = localRegions_[regionIndexOf(key)];
    if (region.tag.load(std::memory_order_acquire) != (uint64_t{key} << 32 | 1)) return nullptr;
    const bool allowed = address >= region.address && length <= region.length &&
                         address - region.address <= region.length - length && (region.access & access) == access &&
                         region.protectionDomain == protectionDomain;
    return allowed ? region.bytes + (address - region.address) : nullptr;
  }

  // Slots of queue pairs, with their part of the receive arena. A slot whose last operation was passed over while its
  // requester lived is kept back until that requester has noticed or exited: it may still store into the slot.
  struct QueuePairPlace {
    uint32_t index = 0;
    uint32_t number = 0;
    uint32_t receiveBase = 0;
    uint32_t receiveCapacity = 0;
    uint32_t scatterBase = 0;
    uint32_t scatterEntries = 0;
    uint32_t sharedQueue = 0;  // index of its shared receive queue and 1; 0: none
  };
  // maxSge: elements of each receive
  QueuePairPlace takePlace(uint32_t receiveCapacity, uint32_t maxSge);
  void givePlace(const QueuePairPlace& place, std::shared_ptr<PeerHca> lastPeer);

  // Queue pairs that the service thread and pollers look after: stalled requests, deferred drains.
  void registerQueuePair(ShmQueuePair* queuePair);
  void unregisterQueuePair(ShmQueuePair* queuePair);  // returns when nobody is attending to it
  void requestAttention();
  bool attentionWanted() const { return attention_.load(std::memory_order_relaxed); }
  bool attend(bool mayDrain);  // true: call again soon

 private:
  ShmContext();
  void releasePlace(const QueuePairPlace& place);
  uint32_t takeScatterLocked(uint32_t entries);
  void giveScatterLocked(uint32_t base, uint32_t entries);
  void releaseSharedPlace(const SharedQueuePlace& place);
  void sweepKeptBack();

  DeviceInfo device_;
  std::shared_ptr<ShmDirectory> directory_;
  const uint64_t forks_ = forkCount();
  uint64_t hcaId_ = 0;
  ProcessIdentity self_;
  Mapping controlMapping_;
  ControlSegment* control_ = nullptr;
  std::unique_ptr<LivenessHolder> holder_;
  bool linked_ = false;
  std::mutex closeMutex_;
  std::atomic<bool> closed_{false};

  Revoker revoker_{*this};
  Children children_;
  std::atomic<uint64_t> lastSegmentId_{0};
  std::atomic<uint32_t> lastChannel_{0}, lastProtectionDomain_{0};
  IndexPool memoryIndices_{"memories", kMaxMemories};
  IndexPool regionIndices_{"memory regions", kMaxMemoryRegions};
  IndexPool completionQueueIndices_{"completion queues", kMaxCompletionQueues};
  IndexPool sharedQueueIndices_{"shared receive queues", kMaxSharedReceiveQueues};
  AsyncEvents asyncEvents_{*this};
  std::mutex multicastMutex_;
  std::array<LocalRegion, kMaxMemoryRegions> localRegions_;
  std::unordered_map<uint32_t, ShmMemoryWindow*> memoryWindows_;

  struct KeptBack {
    QueuePairPlace place;
    std::shared_ptr<PeerHca> peer;
  };
  std::mutex tablesMutex_;
  std::deque<uint32_t> freePlaces_;
  std::array<uint16_t, kMaxQueuePairs> placeGenerations_ = {};
  std::vector<KeptBack> keptBack_;
  std::vector<SharedQueuePlace> sharedKeptBack_;
  std::vector<bool> arenaUsed_;    // in units of kArenaUnit entries
  std::vector<bool> sharedUsed_;   // entries of shared receive queues, in the same units
  std::vector<bool> scatterUsed_;  // in the same units
  std::unordered_map<uint64_t, std::shared_ptr<PeerHca>> peers_;
  std::vector<std::weak_ptr<ShmMemory>> memories_;

  std::mutex attendMutex_;
  std::vector<ShmQueuePair*> attended_;
  std::atomic<bool> attention_{false};
};

// Random bits from the kernel.
uint64_t random64();

}  // namespace quorate::shm

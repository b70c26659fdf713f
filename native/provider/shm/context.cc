// Opening and closing an HCA instance, and its tables.
#include "provider/shm/context.h"

#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>
#include <cinttypes>
#include <climits>
#include <cstdio>

#include "provider/shm/completion.h"
#include "provider/shm/leftovers.h"
#include "provider/shm/memory.h"
#include "provider/shm/queue_pair.h"
#include "provider/shm/region.h"
#include "verbs/grh.h"

namespace quorate::shm {
namespace {

constexpr uint32_t kArenaUnit = 16;
// Mapping a peer's control segment takes a good 100 us, so it is kept while the peer lives.
constexpr size_t kMaxPeersKept = 256;
constexpr uint32_t kNumberBits = 24;
constexpr uint32_t kGenerationMask = (1u << (kNumberBits - kQueuePairIndexBits)) - 1;

// First fit of `units` unused ones in a row, which are then used; the end of the vector if there are none.
size_t takeRun(std::vector<bool>* used, size_t units) {
  size_t run = 0, end = 0;
  while (run < units && end < used->size()) run = (*used)[end++] ? 0 : run + 1;
  if (run < units) return used->size();
  for (size_t unit = end - units; unit < end; unit++) (*used)[unit] = true;
  return end - units;
}

void requirePort(int portNum) {
  if (portNum != 1) {
    throw VerbsError("QUORATE_OUT_OF_RANGE",
                     "Device shm has no port " + std::to_string(portNum) + "; its only port is 1");
  }
}

// Closing lets go of the peer's control segment; the peer notices nothing.
class ShmPeerProcess final : public PeerProcess {
 public:
  explicit ShmPeerProcess(std::shared_ptr<PeerHca> peer) : peer_(std::move(peer)) {}
  bool alive() const override { return peer_->alive(); }
  ProcessState state() const override { return peer_->process().state(); }
  std::atomic<uint32_t>* livenessWord() const override { return &peer_->control()->header.liveness; }
  void close() override { closed_.store(true); }
  bool closed() const override { return closed_.load(); }

 private:
  const std::shared_ptr<PeerHca> peer_;
  std::atomic<bool> closed_{false};
};

}  // namespace

uint64_t random64() {
  uint64_t value = 0;
  while (getrandom(&value, sizeof(value), 0) != sizeof(value)) {
    if (errno != EINTR) throw systemError("getrandom", errno, "a random identifier");
  }
  return value;
}

uint32_t IndexPool::take() {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (free_.empty()) {
    throw VerbsError("QUORATE_LIMIT", "All " + std::to_string(size_) + " " + what_ +
                                          " of this shm context are in use; close some, or open another context");
  }
  const uint32_t index = free_.front();
  free_.pop_front();
  return index;
}

void IndexPool::give(uint32_t index) {
  const std::lock_guard<std::mutex> guard(mutex_);
  free_.push_back(index);
}

void Children::add(const std::shared_ptr<VerbsObject>& child) {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (closings_ > 0) {
    throw VerbsError("QUORATE_CLOSED", std::string("The ") + child->kind() +
                                           " could not be made: another thread closed what it was to belong to");
  }
  if (children_.size() >= pruneAt_) {
    std::erase_if(children_, [](const auto& entry) { return entry.expired(); });
    pruneAt_ = std::max<size_t>(64, 2 * children_.size());
  }
  children_.push_back(child);
}

void Children::remove(const VerbsObject* child) {
  const std::lock_guard<std::mutex> guard(mutex_);
  std::erase_if(children_, [child](const auto& entry) { return entry.lock().get() == child; });
}

void Children::closeAll() {
  std::vector<std::shared_ptr<VerbsObject>> living;
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    closings_++;
    for (auto entry = children_.rbegin(); entry != children_.rend(); ++entry) {
      if (std::shared_ptr<VerbsObject> child = entry->lock()) living.push_back(std::move(child));
    }
  }
  std::stable_partition(living.begin(), living.end(),
                        [](const auto& child) { return dynamic_cast<MemoryWindow*>(child.get()) != nullptr; });
  try {
    for (const auto& child : living) child->close();
  } catch (...) {
    const std::lock_guard<std::mutex> guard(mutex_);
    closings_--;
    throw;
  }
}

ShmContext::ShmContext()
    : arenaUsed_(kReceiveArenaEntries / kArenaUnit),
      sharedUsed_(kSharedReceiveEntries / kArenaUnit),
      scatterUsed_(kScatterEntries / kArenaUnit) {
  for (uint32_t index = 0; index < kMaxQueuePairs; index++) {
    freePlaces_.push_back(index);
    placeGenerations_[index] = static_cast<uint16_t>(random64() & kGenerationMask);
  }
}

DeviceInfo ShmContext::describe(uint64_t hcaId) {
  DeviceInfo info;
  info.name = "shm";
  info.provider = "shm";
  info.driver = "shm";
  info.nodeType = "CA";
  info.transport = "SharedMemory";
  info.nodeGuid = hcaId;
  return info;
}

std::shared_ptr<ShmContext> ShmContext::open(const std::string& directory) {
  std::shared_ptr<ShmContext> context(new ShmContext());
  context->directory_ = ShmDirectory::open(chooseDirectory(directory));
  removeLeftovers(*context->directory_);
  context->hcaId_ = random64();
  context->device_ = describe(context->hcaId_);

  // The segment gets its name only when it is alive, so that nobody takes it for a leftover.
  const ProcessIdentity self = context->self_ = thisProcess();
  const int at = context->directory_->fd();
  const std::string name = ShmDirectory::controlName(context->hcaId_);
  const std::string unready = unreadyName(context->hcaId_, self);
  const FileDescriptor fd = createSegment(at, unready, sizeof(ControlSegment), "the control segment of a context");
  try {
    context->controlMapping_ =
        Mapping::ofFile(fd.get(), sizeof(ControlSegment), Mapping::Pages::OnDemand, "the control segment of a context");
    context->control_ = reinterpret_cast<ControlSegment*>(context->controlMapping_.data());
    ControlHeader& header = context->control_->header;
    header.version.store(kControlVersion);
    header.pid.store(static_cast<uint32_t>(self.pid));
    header.startTime.store(self.startTime);
    header.pidNamespace.store(self.pidNamespace);
    header.hcaId.store(context->hcaId_);
    header.totalBytes.store(sizeof(ControlSegment));
    header.magic.store(kControlMagic, std::memory_order_release);
    context->holder_ =
        std::make_unique<LivenessHolder>(&header.liveness, [context = context.get()] { return context->attend(true); });
    if (linkat(at, unready.c_str(), at, name.c_str(), 0) != 0) {
      throw systemError("linkat", errno, "the control segment " + name + " in " + context->directory_->path());
    }
    context->linked_ = true;
    unlinkat(at, unready.c_str(), 0);
  } catch (...) {
    unlinkat(at, unready.c_str(), 0);
    throw;
  }
  return context;
}

ShmContext::~ShmContext() {
  try {
    close();
  } catch (const VerbsError& error) {
    std::fprintf(stderr, "quorate: closing a context of shared memory: %s\n", error.what());
  }
  if (holder_ != nullptr) holder_->stop();
}

void ShmContext::close() {
  const std::lock_guard<std::mutex> guard(closeMutex_);
  if (closed_.load()) return;
  if (forked()) {  // everything belongs to the parent process
    closed_.store(true);
    return;
  }
  if (control_ == nullptr) return;
  children_.closeAll();  // throws if a right could not be revoked: then the context stays open
  closed_.store(true, std::memory_order_release);
  asyncEvents_.close();
  std::vector<std::shared_ptr<ShmMemory>> memories;
  std::unordered_map<uint64_t, std::shared_ptr<PeerHca>> peers;
  {
    const std::lock_guard<std::mutex> tables(tablesMutex_);
    peers.swap(peers_);
    for (const auto& entry : memories_) {
      if (std::shared_ptr<ShmMemory> memory = entry.lock()) memories.push_back(std::move(memory));
    }
    memories_.clear();
  }
  for (const auto& memory : memories) memory->retire();
  if (holder_ != nullptr) holder_->stop();
  if (linked_) unlinkat(directory_->fd(), ShmDirectory::controlName(hcaId_).c_str(), 0);
  linked_ = false;
}

void ShmContext::requireOpen(const char* kind) const {
  if (forked()) {
    throw VerbsError("QUORATE_CLOSED", std::string("This ") + kind +
                                           " was opened before a fork() and belongs to the parent process; open the "
                                           "device anew in the child");
  }
  if (closed()) throw VerbsError("QUORATE_CLOSED", std::string("The context of this ") + kind + " was closed");
}

DeviceAttributes ShmContext::queryDevice() {
  requireOpen(kind());
  DeviceAttributes attributes;
  attributes.firmwareVersion = std::to_string(kControlVersion);
  attributes.nodeGuid = attributes.sysImageGuid = hcaId_;
  attributes.maxMrSize = kMaxMemoryBytes;
  attributes.pageSizeCap = roundUpToPage(1);
  attributes.maxQp = kMaxQueuePairs;
  attributes.maxQpWr = kMaxReceiveWr;
  attributes.maxSge = attributes.maxSgeRd = attributes.maxSrqSge = kMaxSge;
  attributes.maxCq = kMaxCompletionQueues;
  attributes.maxCqe = kMaxCqe;
  attributes.maxMr = kMaxMemoryRegions;
  attributes.maxPd = 1 << 20;
  attributes.maxQpRdAtom = attributes.maxQpInitRdAtom = kMaxRdAtomic;
  attributes.maxResRdAtom = kMaxRdAtomic * static_cast<int>(kMaxQueuePairs);
  attributes.atomicCap = 2;  // global: they are the CPU's own atomics
  attributes.maxAh = INT_MAX;
  attributes.maxMw = kMaxMemoryRegions;
  attributes.deviceCapFlags = kDeviceMemWindow | kDeviceMemWindowType2b;
  attributes.completionTimestampMask = ~uint64_t{0};
  attributes.hcaCoreClockKhz = 1'000'000;  // CLOCK_MONOTONIC in nanoseconds
  attributes.maxSrq = kMaxSharedReceiveQueues;
  attributes.maxSrqWr = kMaxReceiveWr;
  attributes.maxMcastGrp = kMaxMulticastEntries;
  attributes.maxPkeys = 1;
  attributes.physPortCnt = 1;
  return attributes;
}

PortAttributes ShmContext::queryPort(int portNum) {
  requireOpen(kind());
  requirePort(portNum);
  PortAttributes port;
  port.state = PortState::Active;
  port.maxMtuBytes = port.activeMtuBytes = 4096;
  port.gidTblLen = 1;
  port.pkeyTblLen = 1;
  port.maxMsgSz = kMaxMessageBytes;
  port.physState = 5;  // LinkUp
  port.linkLayer = "SharedMemory";
  return port;
}

std::vector<GidEntry> ShmContext::queryGids(int portNum) {
  requireOpen(kind());
  requirePort(portNum);
  GidEntry entry;
  entry.gid = makeGid(hcaId_);
  entry.type = GidType::Shm;
  return {entry};
}

uint16_t ShmContext::queryPkey(int portNum, int index) {
  requireOpen(kind());
  requirePort(portNum);
  if (index != 0) {
    throw VerbsError("QUORATE_OUT_OF_RANGE",
                     "Port 1 of device shm has one partition key, index 0, not " + std::to_string(index));
  }
  return 0xffff;  // the default partition, full membership
}

AddressVector ShmContext::addressVectorFromCompletion(int portNum, const WorkCompletion& completion,
                                                      const uint8_t* grh) {
  requireOpen(kind());
  requirePort(portNum);
  Grh header;
  uint64_t hcaId = 0;
  if ((completion.wcFlags & kWcGrh) == 0 || !readGrh(grh, &header) || !parseGid(header.sgid, &hcaId)) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     "There is no routing header of a datagram from an shm device: give the completion of a UD receive "
                     "and the first " +
                         std::to_string(kGrhBytes) + " bytes of its buffer");
  }
  AddressVector av;
  av.isGlobal = true;
  av.dgid = header.sgid;
  av.flowLabel = header.flowLabel;
  av.trafficClass = header.trafficClass;
  return av;
}

std::shared_ptr<Memory> ShmContext::allocateMemory(const MemoryOptions& options) {
  return ShmMemory::allocate(std::static_pointer_cast<ShmContext>(shared_from_this()), options);
}

std::shared_ptr<ProtectionDomain> ShmContext::allocateProtectionDomain() {
  requireOpen(kind());
  auto domain = std::make_shared<ShmProtectionDomain>(std::static_pointer_cast<ShmContext>(shared_from_this()));
  children_.add(domain);
  return domain;
}

std::shared_ptr<CompletionChannel> ShmContext::createCompletionChannel() {
  requireOpen(kind());
  auto channel = std::make_shared<ShmCompletionChannel>(std::static_pointer_cast<ShmContext>(shared_from_this()));
  children_.add(channel);
  return channel;
}

std::shared_ptr<CompletionQueue> ShmContext::createCompletionQueue(int depth,
                                                                   std::shared_ptr<CompletionChannel> channel,
                                                                   const CqOptions& options) {
  requireOpen(kind());
  auto completionQueue = ShmCompletionQueue::create(std::static_pointer_cast<ShmContext>(shared_from_this()), depth,
                                                    std::move(channel), options.timestamps);
  children_.add(completionQueue);
  return completionQueue;
}

void ShmContext::adoptMemory(const std::shared_ptr<ShmMemory>& memory) {
  const std::lock_guard<std::mutex> guard(tablesMutex_);
  if (closed()) {  // by another thread, which has looked for memories already or is about to
    throw VerbsError("QUORATE_CLOSED", "The Memory could not be made: another thread closed its context");
  }
  std::erase_if(memories_, [](const auto& entry) { return entry.expired(); });
  memories_.push_back(memory);
}

std::shared_ptr<PeerHca> ShmContext::peer(uint64_t hcaId) {
  const std::lock_guard<std::mutex> guard(tablesMutex_);
  const auto known = peers_.find(hcaId);
  if (known != peers_.end()) return known->second;
  std::erase_if(peers_, [](const auto& entry) { return !entry.second->alive(); });
  std::shared_ptr<PeerHca> peer = PeerHca::open(directory_, hcaId);
  if (peer == nullptr) return nullptr;
  if (peers_.size() >= kMaxPeersKept) peers_.clear();
  peers_[hcaId] = peer;
  return peer;
}

std::shared_ptr<PeerProcess> ShmContext::openPeerProcess(const Gid& gid) {
  requireOpen(kind());
  uint64_t hcaId = 0;
  if (!parseGid(gid, &hcaId)) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     "GID " + gid.toString() + " does not belong to a device of shared memory");
  }
  std::shared_ptr<PeerHca> instance = peer(hcaId);
  if (instance == nullptr) return nullptr;
  return std::make_shared<ShmPeerProcess>(std::move(instance));
}

// ---------------------------------------------------------------------------------------------------------------
// Places of queue pairs

ShmContext::QueuePairPlace ShmContext::takePlace(uint32_t receiveCapacity, uint32_t maxSge) {
  assert(receiveCapacity == 0 || std::has_single_bit(receiveCapacity));
  const std::lock_guard<std::mutex> guard(tablesMutex_);
  sweepKeptBack();
  if (freePlaces_.empty()) {
    throw VerbsError("QUORATE_LIMIT", "All " + std::to_string(kMaxQueuePairs) +
                                          " queue pairs of this shm context are in use (" +
                                          std::to_string(keptBack_.size()) +
                                          " of them kept back until a stopped requester goes on or exits); close some, "
                                          "or open another context");
  }
  QueuePairPlace place;
  place.receiveCapacity = receiveCapacity;
  const size_t units = (receiveCapacity + kArenaUnit - 1) / kArenaUnit;
  const size_t begin = takeRun(&arenaUsed_, units);
  if (units > 0 && begin == arenaUsed_.size()) {
    throw VerbsError("QUORATE_LIMIT", "No room for a receive queue of " + std::to_string(receiveCapacity) +
                                          " requests: all queue pairs of an shm context together have " +
                                          std::to_string(kReceiveArenaEntries));
  }
  place.receiveBase = static_cast<uint32_t>(begin * kArenaUnit);
  if (maxSge > 1 && receiveCapacity > 0) {
    place.scatterEntries = receiveCapacity * maxSge;
    try {
      place.scatterBase = takeScatterLocked(place.scatterEntries);
    } catch (...) {
      for (size_t unit = begin; unit < begin + units; unit++) arenaUsed_[unit] = false;
      throw;
    }
  }
  place.index = freePlaces_.front();
  freePlaces_.pop_front();
  uint16_t& generation = placeGenerations_[place.index];
  do {
    generation = static_cast<uint16_t>((generation + 1) & kGenerationMask);
    place.number = uint32_t{generation} << kQueuePairIndexBits | place.index;
  } while (place.number < 2);  // 0 and 1 are the special queue pairs of every HCA
  return place;
}

uint32_t ShmContext::takeScatterLocked(uint32_t entries) {
  const size_t begin = takeRun(&scatterUsed_, (entries + kArenaUnit - 1) / kArenaUnit);
  if (begin == scatterUsed_.size()) {
    throw VerbsError("QUORATE_LIMIT", "No room for receives with " + std::to_string(entries) +
                                          " scatter elements: all queues of an shm context together have " +
                                          std::to_string(kScatterEntries));
  }
  return static_cast<uint32_t>(begin * kArenaUnit);
}

void ShmContext::giveScatterLocked(uint32_t base, uint32_t entries) {
  const size_t begin = base / kArenaUnit;
  const size_t units = (entries + kArenaUnit - 1) / kArenaUnit;
  for (size_t unit = begin; unit < begin + units; unit++) scatterUsed_[unit] = false;
}

ShmContext::SharedQueuePlace ShmContext::takeSharedPlace(uint32_t capacity, uint32_t maxSge) {
  const std::lock_guard<std::mutex> guard(tablesMutex_);
  sweepKeptBack();
  SharedQueuePlace place;
  place.index = sharedQueueIndices_.take();
  try {
    const size_t begin = takeRun(&sharedUsed_, (capacity + kArenaUnit - 1) / kArenaUnit);
    if (begin == sharedUsed_.size()) {
      throw VerbsError("QUORATE_LIMIT", "No room for a shared receive queue of " + std::to_string(capacity) +
                                            " requests: all of an shm context together have " +
                                            std::to_string(kSharedReceiveEntries));
    }
    place.base = static_cast<uint32_t>(begin * kArenaUnit);
    place.capacity = capacity;
    if (maxSge > 1) {
      place.scatterBase = takeScatterLocked(capacity * maxSge);
      place.scatterEntries = capacity * maxSge;
    }
  } catch (...) {
    releaseSharedPlace(place);
    throw;
  }
  return place;
}

void ShmContext::giveSharedPlace(const SharedQueuePlace& place) {
  const std::lock_guard<std::mutex> guard(tablesMutex_);
  sharedKeptBack_.push_back(place);
  sweepKeptBack();
}

void ShmContext::releaseSharedPlace(const SharedQueuePlace& place) {
  const size_t begin = place.base / kArenaUnit;
  const size_t units = (place.capacity + kArenaUnit - 1) / kArenaUnit;
  for (size_t unit = begin; unit < begin + units; unit++) sharedUsed_[unit] = false;
  giveScatterLocked(place.scatterBase, place.scatterEntries);
  sharedQueueIndices_.give(place.index);
}

int ShmContext::asyncFd() {
  requireOpen(kind());
  return asyncEvents_.fd();
}

bool ShmContext::getAsyncEvent(AsyncEvent* event) {
  requireOpen(kind());
  return asyncEvents_.get(event);
}

void ShmContext::givePlace(const QueuePairPlace& place, std::shared_ptr<PeerHca> lastPeer) {
  const std::lock_guard<std::mutex> guard(tablesMutex_);
  keptBack_.push_back({place, std::move(lastPeer)});
  sweepKeptBack();
}

void ShmContext::sweepKeptBack() {
  std::erase_if(keptBack_, [this](const KeptBack& entry) {
    const uint64_t word = control_->queuePairs[entry.place.index].word.load(std::memory_order_acquire);
    if ((word & word::kStuck) != 0 && (entry.peer == nullptr || !entry.peer->process().hasExited(0)) &&
        !senderHasExited(control_->header, control_->queuePairs[entry.place.index])) {
      return false;
    }
    releasePlace(entry.place);
    return true;
  });
  std::erase_if(sharedKeptBack_, [this](const SharedQueuePlace& place) {
    const auto drewFromIt = [&](const KeptBack& entry) { return entry.place.sharedQueue == place.index + 1; };
    if (std::any_of(keptBack_.begin(), keptBack_.end(), drewFromIt)) return false;
    releaseSharedPlace(place);
    return true;
  });
}

void ShmContext::releasePlace(const QueuePairPlace& place) {
  const size_t begin = place.receiveBase / kArenaUnit;
  const size_t units = (place.receiveCapacity + kArenaUnit - 1) / kArenaUnit;
  for (size_t unit = begin; unit < begin + units; unit++) {
    assert(arenaUsed_[unit]);
    arenaUsed_[unit] = false;
  }
  giveScatterLocked(place.scatterBase, place.scatterEntries);
  freePlaces_.push_back(place.index);
}

// ---------------------------------------------------------------------------------------------------------------
// Attention

void ShmContext::registerQueuePair(ShmQueuePair* queuePair) {
  const std::lock_guard<std::mutex> guard(attendMutex_);
  attended_.push_back(queuePair);
}

void ShmContext::unregisterQueuePair(ShmQueuePair* queuePair) {
  const std::lock_guard<std::mutex> guard(attendMutex_);
  std::erase(attended_, queuePair);
}

void ShmContext::requestAttention() {
  if (!attention_.exchange(true, std::memory_order_acq_rel)) holder_->kick();
}

bool ShmContext::attend(bool mayDrain) {
  if (!attentionWanted()) return false;
  std::unique_lock<std::mutex> guard(attendMutex_, std::defer_lock);
  if (mayDrain) {
    guard.lock();
  } else if (!guard.try_lock()) {
    return true;  // someone else is at it
  }
  attention_.store(false, std::memory_order_seq_cst);
  bool again = false;
  for (ShmQueuePair* queuePair : attended_) {
    if (queuePair->attend(mayDrain)) again = true;
  }
  if (again && mayDrain) {
    attention_.store(true, std::memory_order_release);  // the service thread calls again by itself
  } else if (again) {
    requestAttention();
  }
  return again;
}

}  // namespace quorate::shm

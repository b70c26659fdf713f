// Registering memory and, the part that matters, revoking it.
#include "provider/shm/region.h"

#include <cstdio>

#include "provider/shm/address_handle.h"
#include "provider/shm/multicast.h"
#include "provider/shm/queue_pair.h"
#include "provider/shm/shared_receive_queue.h"

namespace quorate::shm {
namespace {

constexpr uint32_t kKnownAccess = kAccessLocalWrite | kAccessRemoteWrite | kAccessRemoteRead | kAccessRemoteAtomic;

}  // namespace

void ShmProtectionDomain::requireOpen() const {
  context_->requireOpen(kind());
  if (closed()) throw VerbsError("QUORATE_CLOSED", "This ProtectionDomain was closed");
}

std::shared_ptr<MemoryRegion> ShmProtectionDomain::registerMemory(std::shared_ptr<Memory> memory, size_t offset,
                                                                  size_t length, uint32_t access) {
  requireOpen();
  auto own = std::dynamic_pointer_cast<ShmMemory>(std::move(memory));
  if (own == nullptr || own->context() != context_) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     "The shm provider registers only memory that was allocated by the same context");
  }
  if (own->closed()) throw VerbsError("QUORATE_CLOSED", "The Memory to be registered was closed");
  if (length == 0 || offset > own->length() || length > own->length() - offset) {
    throw VerbsError("QUORATE_OUT_OF_RANGE", "Bytes " + std::to_string(offset) + " to " + std::to_string(offset) +
                                                 " + " + std::to_string(length) + " are not within a memory of " +
                                                 std::to_string(own->length()) + " bytes, or none at all");
  }
  if ((access & ~kKnownAccess) != 0) {
    throw VerbsError("QUORATE_UNSUPPORTED", "Access flags " + std::to_string(access) +
                                                " hold bits that the shm provider does not know (it knows " +
                                                std::to_string(kKnownAccess) + ")");
  }
  if ((access & (kAccessRemoteWrite | kAccessRemoteAtomic)) != 0 && (access & kAccessLocalWrite) == 0) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     "A region with REMOTE_WRITE or REMOTE_ATOMIC must have LOCAL_WRITE too (ibv_reg_mr(3))");
  }
  auto region = std::make_shared<ShmMemoryRegion>(std::static_pointer_cast<ShmProtectionDomain>(shared_from_this()),
                                                  std::move(own), offset, length, access);
  children_.add(region);
  return region;
}

std::shared_ptr<QueuePair> ShmProtectionDomain::createQueuePair(const QpInit& init) {
  requireOpen();
  auto queuePair = ShmQueuePair::create(std::static_pointer_cast<ShmProtectionDomain>(shared_from_this()), init);
  children_.add(queuePair);
  return queuePair;
}

std::shared_ptr<AddressHandle> ShmProtectionDomain::createAddressHandle(const AddressVector& av) {
  requireOpen();
  uint64_t hcaId = 0;
  if (!av.isGlobal || (!parseGid(av.dgid, &hcaId) && !isMulticast(av.dgid)) || av.sgidIndex != 0 || av.portNum != 1) {
    throw VerbsError(
        "QUORATE_INVALID_ARGUMENT",
        "An address handle of the shm provider needs av.isGlobal with the dgid of an shm device or a multicast "
        "group, sgidIndex 0 and portNum 1; got " +
            av.dgid.toString());
  }
  auto handle =
      std::make_shared<ShmAddressHandle>(std::static_pointer_cast<ShmProtectionDomain>(shared_from_this()), av, hcaId);
  children_.add(handle);
  return handle;
}

std::shared_ptr<SharedReceiveQueue> ShmProtectionDomain::createSharedReceiveQueue(uint32_t maxWr) {
  requireOpen();
  auto queue =
      std::make_shared<ShmSharedReceiveQueue>(std::static_pointer_cast<ShmProtectionDomain>(shared_from_this()), maxWr);
  context_->asyncEvents().watch(queue);
  children_.add(queue);
  return queue;
}

void ShmProtectionDomain::close() {
  if (!context_->forked()) children_.closeAll();
  closed_.store(true);
}

ShmMemoryRegion::ShmMemoryRegion(std::shared_ptr<ShmProtectionDomain> domain, std::shared_ptr<ShmMemory> memory,
                                 size_t offset, size_t length, uint32_t access)
    : domain_(std::move(domain)),
      memory_(std::move(memory)),
      address_(reinterpret_cast<uint64_t>(memory_->data()) + offset),
      length_(length),
      access_(access) {
  ShmContext& context = *domain_->context();
  index_ = context.regionIndices().take();
  RegionSlot& slot = context.control()->regions[index_];
  LocalRegion& local = context.localRegions()[index_];
  const std::lock_guard<std::mutex> guard(context.revoker().mutex());
  const uint64_t previous = slot.tag.load(std::memory_order_relaxed);
  do {
    key_ = static_cast<uint32_t>(random64()) << kRegionIndexBits | index_;
  } while (key_ == region_tag::key(previous) || key_ == 0);

  local.address = address_;
  local.length = length_;
  local.access = access_;
  local.protectionDomain = domain_->id();
  local.tag.store(uint64_t{key_} << 32 | 1, std::memory_order_release);

  // The slot's tag has not been valid since its last region was closed. Releasing: who sees a new field sees
  // that, too.
  slot.address.store(address_, std::memory_order_release);
  slot.length.store(length_, std::memory_order_release);
  slot.segmentOffset.store(offset, std::memory_order_release);
  slot.segmentId.store(memory_->segmentId(), std::memory_order_release);
  slot.access.store(access_, std::memory_order_release);
  slot.protectionDomain.store(domain_->id(), std::memory_order_release);
  slot.memory.store(memory_->slotIndex(), std::memory_order_release);
  // A memory that still has to move takes no new operations before it has.
  slot.tag.store(region_tag::make(key_, previous, region_tag::kValid | (memory_->moveOwed ? region_tag::kMoving : 0)),
                 std::memory_order_seq_cst);
  context.revoker().addRegion(index_, memory_.get());
}

ShmMemoryRegion::~ShmMemoryRegion() {
  try {
    close();
  } catch (const VerbsError& error) {
    // The region's slot and memory stay as they are: nothing is reused that might still be written.
    std::fprintf(stderr, "quorate: a memory region was dropped without a proven revocation: %s\n", error.what());
    new std::shared_ptr<ShmMemory>(memory_);
  }
}

void ShmMemoryRegion::close() {
  const std::lock_guard<std::mutex> once(closeMutex_);
  if (closed_.load()) return;
  ShmContext& context = *domain_->context();
  if (!context.forked()) {
    Revoker& revoker = context.revoker();
    const std::lock_guard<std::mutex> guard(revoker.mutex());
    RegionSlot& slot = context.control()->regions[index_];
    // First the right goes, then whoever is still using it: see layout.h.
    slot.tag.store(region_tag::make(key_, slot.tag.load(std::memory_order_relaxed), 0), std::memory_order_seq_cst);
    context.localRegions()[index_].tag.store(0, std::memory_order_seq_cst);
    revoker.drain([this](const Responder&, uint64_t word) { return word::region(word) == index_; });
    revoker.waitForLocalPosts();
    revoker.removeRegion(index_);
  }
  closed_.store(true);
  if (!context.forked()) context.regionIndices().give(index_);
  memory_.reset();
}

}  // namespace quorate::shm

// Registering memory and, the part that matters, revoking it.
#include "provider/shm/region.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "provider/shm/address_handle.h"
#include "provider/shm/multicast.h"
#include "provider/shm/queue_pair.h"
#include "provider/shm/shared_receive_queue.h"

namespace quorate::shm {
namespace {

// Relaxed ordering is a permission to the device, of which this one makes no use.
constexpr uint32_t kKnownAccess = kAccessLocalWrite | kAccessRemoteWrite | kAccessRemoteRead | kAccessRemoteAtomic |
                                  kAccessMwBind | kAccessZeroBased | kAccessRelaxedOrdering;
constexpr uint32_t kStoringAccess = kAccessRemoteWrite | kAccessRemoteAtomic;
constexpr uint32_t kWindowAccess = kStoringAccess | kAccessRemoteRead | kAccessZeroBased;

std::shared_ptr<ShmMemory> checkRegistration(const std::shared_ptr<ShmContext>& context, std::shared_ptr<Memory> memory,
                                             size_t offset, size_t length, uint32_t access) {
  auto own = std::dynamic_pointer_cast<ShmMemory>(std::move(memory));
  if (own == nullptr || own->context() != context) {
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
  if ((access & kStoringAccess) != 0 && (access & kAccessLocalWrite) == 0) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     "A region with REMOTE_WRITE or REMOTE_ATOMIC must have LOCAL_WRITE too (ibv_reg_mr(3))");
  }
  if ((access & kAccessZeroBased) != 0 && offset % roundUpToPage(1) != 0) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT", "A zero-based region must begin at a page, not at offset " +
                                                     std::to_string(offset) + " of its memory");
  }
  return own;
}

// Never freed: a stopped requester may still store into it.
void keepForEver(std::shared_ptr<ShmMemory> memory) {
  static std::mutex mutex;
  static auto* const kept = new std::vector<std::shared_ptr<ShmMemory>>();
  const std::lock_guard<std::mutex> guard(mutex);
  kept->push_back(std::move(memory));
}

uint32_t newKey(uint32_t index, uint32_t previous) {
  uint32_t key = 0;
  do {
    const uint64_t random = random64();
    key = static_cast<uint32_t>(random) << (kKeyBits + kRegionIndexBits) | index << kKeyBits |
          static_cast<uint32_t>(random >> 32 & kKeyMask);
  } while (key == previous || key == 0);
  return key;
}

}  // namespace

void ShmProtectionDomain::requireOpen() const {
  context_->requireOpen(kind());
  if (closed()) throw VerbsError("QUORATE_CLOSED", "This ProtectionDomain was closed");
}

std::shared_ptr<MemoryRegion> ShmProtectionDomain::registerMemory(std::shared_ptr<Memory> memory, size_t offset,
                                                                  size_t length, uint32_t access) {
  requireOpen();
  auto own = checkRegistration(context_, std::move(memory), offset, length, access);
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

std::shared_ptr<SharedReceiveQueue> ShmProtectionDomain::createSharedReceiveQueue(uint32_t maxWr, uint32_t maxSge) {
  requireOpen();
  auto queue = std::make_shared<ShmSharedReceiveQueue>(
      std::static_pointer_cast<ShmProtectionDomain>(shared_from_this()), maxWr, maxSge);
  context_->asyncEvents().watch(queue);
  children_.add(queue);
  return queue;
}

std::shared_ptr<MemoryWindow> ShmProtectionDomain::allocateMemoryWindow(int type) {
  requireOpen();
  if (type != 1 && type != 2) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     "A memory window is of type 1 or 2, not " + std::to_string(type) + " (ibv_alloc_mw(3))");
  }
  auto window =
      std::make_shared<ShmMemoryWindow>(std::static_pointer_cast<ShmProtectionDomain>(shared_from_this()), type);
  children_.add(window);
  return window;
}

void ShmProtectionDomain::close() {
  if (!context_->forked()) children_.closeAll();
  closed_.store(true);
}

// ---------------------------------------------------------------------------------------------------------------
// Regions

ShmMemoryRegion::ShmMemoryRegion(std::shared_ptr<ShmProtectionDomain> domain, std::shared_ptr<ShmMemory> memory,
                                 size_t offset, size_t length, uint32_t access)
    : domain_(std::move(domain)), memory_(std::move(memory)), offset_(offset), length_(length), access_(access) {
  ShmContext& context = *domain_->context();
  index_ = context.regionIndices().take();
  const std::lock_guard<std::mutex> guard(context.revoker().mutex());
  publish();
}

void ShmMemoryRegion::publish() {
  ShmContext& context = *domain_->context();
  RegionSlot& slot = context.control()->regions[index_];
  LocalRegion& local = context.localRegions()[index_];
  const uint64_t previous = slot.tag.load(std::memory_order_relaxed);
  const uint32_t key = newKey(index_, region_tag::key(previous));
  const uint32_t access = access_.load();
  uint8_t* const bytes = memory_->data() + offset_;
  const uint64_t address = (access & kAccessZeroBased) != 0 ? 0 : reinterpret_cast<uint64_t>(bytes);
  key_.store(key);
  address_.store(address);

  local.bytes = bytes;
  local.address = address;
  local.length = length_.load();
  local.access = access;
  local.protectionDomain = domain_->id();
  local.tag.store(uint64_t{key} << 32 | 1, std::memory_order_release);

  // The slot's tag has not been valid since its last region was closed. Releasing: who sees a new field sees
  // that, too.
  slot.address.store(address, std::memory_order_release);
  slot.length.store(length_.load(), std::memory_order_release);
  slot.segmentOffset.store(offset_, std::memory_order_release);
  slot.segmentId.store(memory_->segmentId(), std::memory_order_release);
  slot.access.store(access, std::memory_order_release);
  slot.protectionDomain.store(domain_->id(), std::memory_order_release);
  slot.memory.store(memory_->slotIndex(), std::memory_order_release);
  slot.queuePair.store(0, std::memory_order_release);
  // A memory that still has to move takes no new operations before it has.
  slot.tag.store(region_tag::make(key, previous, region_tag::kValid | (memory_->moveOwed ? region_tag::kMoving : 0)),
                 std::memory_order_seq_cst);
  context.revoker().addRegion(index_, memory_.get());
}

ShmMemoryRegion::~ShmMemoryRegion() {
  try {
    close();
  } catch (const VerbsError& error) {
    // The region's slot and memory stay as they are: nothing is reused that might still be written.
    std::fprintf(stderr, "quorate: a memory region was dropped without a proven revocation: %s\n", error.what());
    keepForEver(memory_);
  }
}

void ShmMemoryRegion::revoke() {
  ShmContext& context = *domain_->context();
  RegionSlot& slot = context.control()->regions[index_];
  // First the right goes, then whoever is still using it: see layout.h.
  slot.tag.store(region_tag::make(key_.load(), slot.tag.load(std::memory_order_relaxed), 0), std::memory_order_seq_cst);
  context.localRegions()[index_].tag.store(0, std::memory_order_seq_cst);
  context.revoker().drain([this](const Responder&, uint64_t word) {
    const uint32_t named = word::region(word);
    return named == index_ ||
           std::find(unprovenWindows_.begin(), unprovenWindows_.end(), named) != unprovenWindows_.end();
  });
  unprovenWindows_.clear();
  context.revoker().waitForLocalPosts();
  context.revoker().removeRegion(index_);
}

void ShmMemoryRegion::setUnproven(uint32_t window, bool unproven) {
  std::erase(unprovenWindows_, window);
  if (unproven) unprovenWindows_.push_back(window);
}

bool ShmMemoryRegion::hasWindows() const {
  for (const auto& [index, window] : domain_->context()->memoryWindows()) {
    if (window->region() == this && window->bound()) return true;
  }
  return false;
}

void ShmMemoryRegion::reregister(const Changes& changes) {
  const std::lock_guard<std::mutex> once(closeMutex_);
  domain_->requireOpen();
  if (closed_.load()) throw VerbsError("QUORATE_CLOSED", "This MemoryRegion was closed");
  const std::shared_ptr<ShmContext> context = domain_->context();
  std::shared_ptr<ShmProtectionDomain> domain = domain_;
  if (changes.domain != nullptr) {
    domain = std::dynamic_pointer_cast<ShmProtectionDomain>(changes.domain);
    if (domain == nullptr || domain->context() != context) {
      throw VerbsError("QUORATE_INVALID_ARGUMENT", "The new domain of a region must be of the same shm context");
    }
    domain->requireOpen();
  }
  const uint32_t access = changes.access.value_or(access_.load());
  std::shared_ptr<ShmMemory> memory = memory_;
  const size_t offset = changes.memory != nullptr ? changes.offset : offset_;
  const size_t length = changes.memory != nullptr ? changes.length : length_.load();
  memory = checkRegistration(context, changes.memory != nullptr ? changes.memory : memory_, offset, length, access);
  const bool moves = domain != domain_;
  if (moves) domain->children().add(shared_from_this());  // first, since a domain that is being closed refuses it
  try {
    const std::lock_guard<std::mutex> guard(context->revoker().mutex());
    if (hasWindows()) {
      throw VerbsError("QUORATE_INVALID_ARGUMENT",
                       "Memory windows are bound to this region; unbind or close them before it is registered anew");
    }
    revoke();
    memory_.swap(memory);
    offset_ = offset;
    length_.store(length);
    access_.store(access);
    domain_.swap(domain);
    publish();
  } catch (...) {
    if (moves) domain->children().remove(this);
    throw;
  }
  if (moves) domain->children().remove(this);  // `domain` is the old one now
}

void ShmMemoryRegion::close() {
  const std::lock_guard<std::mutex> once(closeMutex_);
  if (closed_.load()) return;
  ShmContext& context = *domain_->context();
  std::shared_ptr<ShmMemory> memory;  // let go without that mutex
  if (!context.forked()) {
    const std::lock_guard<std::mutex> guard(context.revoker().mutex());
    if (hasWindows()) {
      throw VerbsError("QUORATE_REVOKE_FAILED",
                       "Memory windows are bound to this memory region, so it cannot be deregistered. Unbind them "
                       "(LOCAL_INV, or a binding of length 0 for type 1) or close them, then close the region again.",
                       EBUSY, "ibv_dereg_mr");
    }
    revoke();
    memory.swap(memory_);  // from here on no window is bound to the region
  }
  closed_.store(true);
  if (!context.forked()) context.regionIndices().give(index_);
}

// ---------------------------------------------------------------------------------------------------------------
// Windows

ShmMemoryWindow::ShmMemoryWindow(std::shared_ptr<ShmProtectionDomain> domain, int type)
    : domain_(std::move(domain)), type_(type) {
  ShmContext& context = *domain_->context();
  index_ = context.regionIndices().take();
  const std::lock_guard<std::mutex> guard(context.revoker().mutex());
  key_.store(newKey(index_, region_tag::key(slot().tag.load(std::memory_order_relaxed))));
  context.memoryWindows()[index_] = this;
}

ShmMemoryWindow::~ShmMemoryWindow() {
  try {
    close();
  } catch (const VerbsError& error) {
    std::fprintf(stderr, "quorate: a memory window was dropped without a proven revocation: %s\n", error.what());
    ShmContext& context = *domain_->context();
    const std::lock_guard<std::mutex> guard(context.revoker().mutex());
    context.memoryWindows().erase(index_);
    keepForEver(held_.memory);
  }
}

bool ShmMemoryWindow::bound() const {
  return (slot().tag.load(std::memory_order_seq_cst) & region_tag::kValid) != 0;
}

uint32_t ShmMemoryWindow::takeNextKey() {
  const uint32_t key = key_.load();
  const uint32_t next = (key & ~kKeyMask) | ((key + 1) & kKeyMask);
  key_.store(next);
  return next;
}

// When it throws, the window is not usable, but it is not proven that nobody is in the middle of using it.
void ShmMemoryWindow::revoke() {
  ShmContext& context = *domain_->context();
  RegionSlot& slot = this->slot();
  const uint64_t tag = slot.tag.load(std::memory_order_relaxed);
  slot.tag.store(region_tag::make(region_tag::key(tag), tag, 0), std::memory_order_seq_cst);
  if (held_.region != nullptr) held_.region->setUnproven(index_, true);
  context.revoker().drain([this](const Responder&, uint64_t word) { return word::region(word) == index_; });
  if (held_.region != nullptr) held_.region->setUnproven(index_, false);
  context.revoker().removeRegion(index_);
}

WcStatus ShmMemoryWindow::bind(const MwBind& bind, uint32_t newKey, uint32_t domain, uint32_t queuePair, Held* before) {
  const auto region = std::dynamic_pointer_cast<ShmMemoryRegion>(bind.region);
  if (closed() || domain != domain_->id() || (bind.region != nullptr && region == nullptr)) return WcStatus::MwBindErr;
  if (type_ == 2) {
    const uint32_t key = key_.load();
    // An own binding that the peer has invalidated meanwhile leaves the window free, too.
    if (bound() || region == nullptr || bind.length == 0 || newKey == key || (newKey ^ key) > kKeyMask)
      return WcStatus::MwBindErr;
  } else if ((bind.access & kAccessZeroBased) != 0) {
    return WcStatus::MwBindErr;
  }
  if (bind.length > 0) {
    if (region == nullptr || region->memory() == nullptr || region->domain() != domain_) return WcStatus::MwBindErr;
    const uint32_t granted = region->access();
    if ((granted & kAccessMwBind) == 0 || (granted & kAccessZeroBased) != 0 || (bind.access & ~kWindowAccess) != 0 ||
        ((bind.access & kStoringAccess) != 0 && (granted & kAccessLocalWrite) == 0) ||
        bind.address < region->address() || bind.length > region->length() ||
        bind.address - region->address() > region->length() - bind.length) {
      return WcStatus::MwBindErr;
    }
  }
  try {
    revoke();
  } catch (const VerbsError&) {
    return WcStatus::LocQpOpErr;
  }
  key_.store(newKey);
  std::swap(held_, *before);
  held_ = Held();
  if (bind.length == 0) return WcStatus::Success;
  held_ = {region, region->memory()};
  queuePair_ = type_ == 2 ? queuePair : 0;
  RegionSlot& slot = this->slot();
  slot.address.store((bind.access & kAccessZeroBased) != 0 ? 0 : bind.address, std::memory_order_release);
  slot.length.store(bind.length, std::memory_order_release);
  slot.segmentOffset.store(region->offset() + (bind.address - region->address()), std::memory_order_release);
  slot.segmentId.store(held_.memory->segmentId(), std::memory_order_release);
  slot.access.store(bind.access, std::memory_order_release);
  slot.protectionDomain.store(domain_->id(), std::memory_order_release);
  slot.memory.store(held_.memory->slotIndex(), std::memory_order_release);
  slot.queuePair.store(queuePair_, std::memory_order_release);
  const uint64_t previous = slot.tag.load(std::memory_order_relaxed);
  slot.tag.store(
      region_tag::make(newKey, previous, region_tag::kValid | (held_.memory->moveOwed ? region_tag::kMoving : 0)),
      std::memory_order_seq_cst);
  domain_->context()->revoker().addRegion(index_, held_.memory.get());
  return WcStatus::Success;
}

WcStatus ShmMemoryWindow::invalidate(uint32_t domain, uint32_t queuePair) {
  if (type_ != 2 || closed() || domain != domain_->id() || !boundThrough(queuePair)) return WcStatus::LocQpOpErr;
  try {
    revoke();
  } catch (const VerbsError&) {
    return WcStatus::LocQpOpErr;  // not proven revoked, so not a success
  }
  return WcStatus::Success;
}

void ShmMemoryWindow::close() {
  const std::lock_guard<std::mutex> once(closeMutex_);
  if (closed_.load()) return;
  ShmContext& context = *domain_->context();
  Held before;  // let go without the lock
  if (!context.forked()) {
    const std::lock_guard<std::mutex> guard(context.revoker().mutex());
    revoke();
    context.memoryWindows().erase(index_);
    std::swap(before, held_);
  }
  closed_.store(true);
  if (!context.forked()) context.regionIndices().give(index_);
}

}  // namespace quorate::shm

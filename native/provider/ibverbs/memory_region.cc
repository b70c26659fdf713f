// See memory_region.h.
#include "provider/ibverbs/memory_region.h"

#include <cerrno>
#include <string>

#include "provider/ibverbs/errors.h"

namespace quorate::ibverbs {
namespace {

constexpr size_t kPageBytes = 4096;  // what the kernel aligns addresses of zero-based regions to, at least
constexpr uint32_t kOptionalAccess = kAccessRelaxedOrdering;

void checkArguments(const IbvContext& context, const MappedMemory& memory, size_t offset, size_t length,
                    uint32_t access) {
  if (length == 0 || offset > memory.length() || length > memory.length() - offset) {
    throw VerbsError("QUORATE_OUT_OF_RANGE", "A MemoryRegion of " + std::to_string(length) + " bytes at offset " +
                                                 std::to_string(offset) + " does not lie in the Memory of " +
                                                 std::to_string(memory.length()) + " bytes.");
  }
  if ((access & ~kAllAccess) != 0) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT", "Access flags " + std::to_string(access) +
                                                     " of a MemoryRegion have bits outside " +
                                                     std::to_string(kAllAccess) + ".");
  }
  if ((access & kAccessZeroBased) != 0 && reinterpret_cast<uintptr_t>(memory.data() + offset) % kPageBytes != 0) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT", "A zero-based region must begin at a page, not at offset " +
                                                     std::to_string(offset) + " of its memory.");
  }
  if ((access & (kAccessRemoteWrite | kAccessRemoteAtomic)) != 0 && (access & kAccessLocalWrite) == 0) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     "The right to write or to do atomics from remote needs the right to write locally, too "
                     "(ibv_reg_mr(3)); add LOCAL_WRITE.");
  }
  if ((access & kAccessRemoteAtomic) != 0 && context.limits().atomicCap == 0) {
    throw VerbsError("QUORATE_UNSUPPORTED", "The device " + context.device().name +
                                                " has no atomic operations; register without REMOTE_ATOMIC.");
  }
  if (length > context.limits().maxMrSize) {
    throw VerbsError("QUORATE_LIMIT", "A MemoryRegion of " + std::to_string(length) + " bytes exceeds the " +
                                          std::to_string(context.limits().maxMrSize) + " bytes that " +
                                          context.device().name + " allows; register it in parts.");
  }
}

}  // namespace

std::shared_ptr<IbvMemoryRegion> IbvMemoryRegion::registerOver(std::shared_ptr<IbvProtectionDomain> domain,
                                                               std::shared_ptr<Memory> memory, size_t offset,
                                                               size_t length, uint32_t access) {
  const IbvContext& context = *domain->context();
  auto mapped = std::dynamic_pointer_cast<MappedMemory>(memory);
  if (mapped == nullptr) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     "The Memory belongs to another provider; use one allocated by a Context of an ibverbs device.");
  }
  if (mapped->closed()) throwClosed("Memory");
  checkArguments(context, *mapped, offset, length, access);
  uint8_t* const start = mapped->data() + offset;
  errno = 0;
  const Library& lib = context.lib();
  const bool zeroBased = (access & kAccessZeroBased) != 0;
  const uint64_t address = zeroBased ? 0 : reinterpret_cast<uint64_t>(start);
  // The older call knows neither optional flags nor other addresses; what is optional is then left out.
  if (zeroBased && lib.regMrIova2 == nullptr) {
    throw VerbsError("QUORATE_UNSUPPORTED",
                     "This libibverbs is too old for zero-based regions (ibv_reg_mr_iova2 came with rdma-core 28).");
  }
  ibv_mr* handle = lib.regMrIova2 != nullptr
                       ? lib.regMrIova2(domain->handle(), start, length, address, access & ~kAccessZeroBased)
                       : lib.regMr(domain->handle(), start, length, static_cast<int>(access & ~kOptionalAccess));
  if (handle == nullptr) {
    const int errnum = errno;
    constexpr uint32_t kUnusual =
        kAccessMwBind | kAccessOnDemand | kAccessHugetlb | kAccessFlushGlobal | kAccessFlushPersistent;
    if (errnum == EOPNOTSUPP || (errnum == EINVAL && (access & kUnusual) != 0)) {
      throw VerbsError("QUORATE_UNSUPPORTED",
                       "Registering memory on " + context.device().name + " with access flags " +
                           std::to_string(access) + " failed: " + errnoText(errnum) +
                           ". The device lacks what one of them asks for (on-demand paging, flushes, huge pages).",
                       errnum, "ibv_reg_mr");
    }
    throwPinningError("ibv_reg_mr", errnum,
                      "Registering " + std::to_string(length) + " bytes of memory on " + context.device().name, length,
                      "The device allows " + std::to_string(context.limits().maxMr) + " regions.");
  }
  return std::shared_ptr<IbvMemoryRegion>(
      new IbvMemoryRegion(std::move(domain), std::move(mapped), offset, handle, address, length, access));
}

IbvMemoryRegion::IbvMemoryRegion(std::shared_ptr<IbvProtectionDomain> domain, std::shared_ptr<MappedMemory> memory,
                                 size_t offset, ibv_mr* handle, uint64_t address, size_t length, uint32_t access)
    : domain_(std::move(domain)),
      memory_(std::move(memory)),
      offset_(offset),
      handle_(handle),
      lkey_(handle->lkey),
      rkey_(handle->rkey),
      address_(address),
      length_(length),
      access_(access) {}

IbvMemoryRegion::~IbvMemoryRegion() {
  closeInDestructor(this, {domain_, memory_});
}

void IbvMemoryRegion::reregister(const Changes& changes) {
  const auto lock = lifecycle_.use();
  std::lock_guard<std::mutex> changing(changeMutex_);
  const std::shared_ptr<IbvContext> context = domain_->context();
  std::shared_ptr<IbvProtectionDomain> domain = domain_;
  std::shared_lock<std::shared_mutex> domainLock;
  if (changes.domain != nullptr) {
    domain = std::dynamic_pointer_cast<IbvProtectionDomain>(changes.domain);
    if (domain == nullptr || domain->context() != context) {
      throw VerbsError("QUORATE_INVALID_ARGUMENT", "The new domain of a MemoryRegion must be of the same Context.");
    }
    if (domain != domain_) domainLock = domain->lifecycle().useAsParent();
  }
  std::shared_ptr<MappedMemory> memory = memory_;
  if (changes.memory != nullptr) {
    memory = std::dynamic_pointer_cast<MappedMemory>(changes.memory);
    if (memory == nullptr) {
      throw VerbsError("QUORATE_INVALID_ARGUMENT",
                       "The Memory belongs to another provider; use one allocated by a Context of an ibverbs device.");
    }
    if (memory->closed()) throwClosed("Memory");
  }
  const size_t offset = changes.memory != nullptr ? changes.offset : offset_;
  const size_t length = changes.memory != nullptr ? changes.length : length_.load();
  const uint32_t access = changes.access.value_or(access_.load());
  checkArguments(*context, *memory, offset, length, access);
  if (((access | access_.load()) & kAccessZeroBased) != 0) {
    throw VerbsError("QUORATE_UNSUPPORTED",
                     "ibv_rereg_mr(3) cannot say where addresses begin, so it takes no zero-based regions.");
  }
  const std::string what = "Registering a memory region of " + context->device().name + " anew";
  uint8_t* const start = memory->data() + offset;
  int result = -1;
  errno = EOPNOTSUPP;
  if (context->lib().reregMr != nullptr) {
    const int flags = (domain != domain_ ? IBV_REREG_MR_CHANGE_PD : 0) |
                      (changes.memory != nullptr ? IBV_REREG_MR_CHANGE_TRANSLATION : 0) |
                      (changes.access.has_value() ? IBV_REREG_MR_CHANGE_ACCESS : 0);
    errno = 0;
    result = context->lib().reregMr(handle_, flags, domain->handle(), start, length,
                                    static_cast<int>(changes.access.value_or(0)));
  }
  if (result != 0 && result != IBV_REREG_MR_ERR_DO_FORK_OLD) {
    const int errnum = errno;
    if (errnum == EOPNOTSUPP || errnum == ENOSYS) {
      throw VerbsError("QUORATE_UNSUPPORTED",
                       what + " failed: the device has no re-registration (" + errnoText(errnum) +
                           "). Register another region, then close this one.",
                       errnum, "ibv_rereg_mr");
    }
    if (result != IBV_REREG_MR_ERR_INPUT && result != IBV_REREG_MR_ERR_DONT_FORK_NEW) {
      throw VerbsError("QUORATE_REVOKE_FAILED",
                       what + " failed: " + errnoText(errnum) +
                           ". Peers that know its key may still use it. The region is of no more use: close it.",
                       errnum, "ibv_rereg_mr");
    }
    throwPinningError("ibv_rereg_mr", errnum, what, length, "Nothing has changed.");
  }
  lkey_.store(handle_->lkey);
  rkey_.store(handle_->rkey);
  address_.store(reinterpret_cast<uint64_t>(start));
  length_.store(length);
  access_.store(access);
  offset_ = offset;
  memory_ = std::move(memory);
  if (domain != domain_) {
    domain->lifecycle().addChild(weak_from_this());
    domain_->lifecycle().removeChild(this);
    domain_.swap(domain);
  }
}

void IbvMemoryRegion::close() {
  lifecycle_.close([this] {
    const int errnum = domain_->context()->lib().deregMr(handle_);
    if (errnum != 0) {
      throw VerbsError("QUORATE_REVOKE_FAILED",
                       "Deregistering a memory region of " + std::to_string(length_) + " bytes on " +
                           domain_->context()->device().name + " failed: " + errnoText(errnum) +
                           ". Peers that know its key can still use it. Unbind its memory windows and try again; if "
                           "that fails, close the queue pairs of the peers or end the process.",
                       errnum, "ibv_dereg_mr");
    }
    memory_.reset();
  });
}

}  // namespace quorate::ibverbs

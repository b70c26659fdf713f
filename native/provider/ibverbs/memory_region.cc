// See memory_region.h.
#include "provider/ibverbs/memory_region.h"

#include <cerrno>
#include <string>

#include "provider/ibverbs/errors.h"

namespace quorate::ibverbs {
namespace {

constexpr uint32_t kKnownAccess =
    kAccessLocalWrite | kAccessRemoteWrite | kAccessRemoteRead | kAccessRemoteAtomic | kAccessMwBind;

void checkArguments(const IbvContext& context, const MappedMemory& memory, size_t offset, size_t length,
                    uint32_t access) {
  if (length == 0 || offset > memory.length() || length > memory.length() - offset) {
    throw VerbsError("QUORATE_OUT_OF_RANGE", "A MemoryRegion of " + std::to_string(length) + " bytes at offset " +
                                                 std::to_string(offset) + " does not lie in the Memory of " +
                                                 std::to_string(memory.length()) + " bytes.");
  }
  if ((access & ~kKnownAccess) != 0) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     "Access flags " + std::to_string(access) + " of a MemoryRegion have bits outside " +
                         std::to_string(kKnownAccess) +
                         "; relaxed ordering and on-demand paging are not offered, since the log relies on order and "
                         "on pages that are there.");
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
  ibv_mr* handle = context.lib().regMr(domain->handle(), start, length, static_cast<int>(access));
  if (handle == nullptr) {
    throwPinningError("ibv_reg_mr", errno,
                      "Registering " + std::to_string(length) + " bytes of memory on " + context.device().name, length,
                      "The device allows " + std::to_string(context.limits().maxMr) + " regions.");
  }
  return std::shared_ptr<IbvMemoryRegion>(new IbvMemoryRegion(std::move(domain), std::move(mapped), handle,
                                                              reinterpret_cast<uint64_t>(start), length, access));
}

IbvMemoryRegion::IbvMemoryRegion(std::shared_ptr<IbvProtectionDomain> domain, std::shared_ptr<MappedMemory> memory,
                                 ibv_mr* handle, uint64_t address, size_t length, uint32_t access)
    : domain_(std::move(domain)),
      memory_(std::move(memory)),
      handle_(handle),
      lkey_(handle->lkey),
      rkey_(handle->rkey),
      address_(address),
      length_(length),
      access_(access) {}

IbvMemoryRegion::~IbvMemoryRegion() {
  closeInDestructor(this, {domain_, memory_});
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

// See memory_window.h.
#include "provider/ibverbs/memory_window.h"

#include <cerrno>
#include <cstdlib>
#include <string>
#include <utility>

#include "provider/ibverbs/errors.h"

namespace quorate::ibverbs {

std::shared_ptr<IbvMemoryWindow> IbvMemoryWindow::allocate(std::shared_ptr<IbvProtectionDomain> domain, int type) {
  if (type != 1 && type != 2) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     "A MemoryWindow is of type 1 or 2, not " + std::to_string(type) + " (ibv_alloc_mw(3)).");
  }
  const IbvContext& context = *domain->context();
  const std::string what =
      "Allocating a memory window of type " + std::to_string(type) + " on " + context.device().name;
  errno = 0;
  ibv_mw* handle = ibv_alloc_mw(domain->handle(), static_cast<ibv_mw_type>(type));
  if (handle == nullptr) {
    const int errnum = errno;
    if (errnum == EOPNOTSUPP || errnum == ENOSYS || errnum == EINVAL || context.limits().maxMw <= 0) {
      throw VerbsError("QUORATE_UNSUPPORTED",
                       what + " failed: the device has no windows of that type (" + errnoText(errnum) +
                           "). Register a memory region for each right instead.",
                       errnum, "ibv_alloc_mw");
    }
    throwPinningError("ibv_alloc_mw", errnum, what, 4096,
                      "The device allows " + std::to_string(context.limits().maxMw) + " of them.");
  }
  return std::shared_ptr<IbvMemoryWindow>(new IbvMemoryWindow(std::move(domain), handle));
}

IbvMemoryWindow::~IbvMemoryWindow() {
  closeInDestructor(this, {domain_, region_, previous_});
}

void IbvMemoryWindow::close() {
  lifecycle_.close([this] {
    const int errnum = std::abs(ibv_dealloc_mw(handle_));
    if (errnum != 0) {
      throw VerbsError("QUORATE_REVOKE_FAILED",
                       "Deallocating a memory window of " + domain_->context()->device().name +
                           " failed: " + errnoText(errnum) +
                           ". Peers that know its key can still use it: deregister the region or close the queue pair.",
                       errnum, "ibv_dealloc_mw");
    }
    region_.reset();  // nobody binds: that would hold off this
    previous_.reset();
  });
}

IbvMemoryWindow::Posting::Posting(IbvMemoryWindow& window, const MwBind& bind, ibv_mw_bind_info* info)
    : window_(&window), use_(window.lifecycle_.use()), binding_(window.bindMutex_) {
  *info = {};
  region_ = std::dynamic_pointer_cast<IbvMemoryRegion>(bind.region);
  if (region_ != nullptr) {
    regionUse_ = region_->lifecycle().use();
    info->mr = region_->handle();
  }
  info->addr = bind.address;
  info->length = bind.length;
  if (region_ == nullptr && window.region_ != nullptr) {
    // Unbound: the library of rxe reads the region's key all the same, and crashes without one.
    region_ = window.region_;
    regionUse_ = region_->lifecycle().use();
    info->mr = region_->handle();
    info->addr = region_->address();
  }
  info->mw_access_flags = bind.access;
}

void IbvMemoryWindow::Posting::accepted(uint32_t rkey, uint32_t queuePairNumber) {
  window_->handle_->rkey = rkey;  // what the device's library expects of who posts a binding
  window_->rkey_.store(rkey, std::memory_order_release);
  window_->queuePairNumber_.store(queuePairNumber);
  std::swap(window_->previous_, window_->region_);
  std::swap(window_->region_, region_);  // the one before the previous goes when this object does
}

}  // namespace quorate::ibverbs

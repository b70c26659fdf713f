// See protection_domain.h.
#include "provider/ibverbs/protection_domain.h"

#include <cerrno>
#include <string>

#include "provider/ibverbs/address_handle.h"
#include "provider/ibverbs/errors.h"
#include "provider/ibverbs/memory.h"
#include "provider/ibverbs/memory_region.h"
#include "provider/ibverbs/memory_window.h"
#include "provider/ibverbs/queue_pair.h"
#include "provider/ibverbs/shared_receive_queue.h"

namespace quorate::ibverbs {

std::shared_ptr<IbvProtectionDomain> IbvProtectionDomain::allocate(std::shared_ptr<IbvContext> context) {
  errno = 0;
  ibv_pd* handle = context->lib().allocPd(context->handle());
  if (handle == nullptr) {
    throwPinningError("ibv_alloc_pd", errno, "Allocating a protection domain on " + context->device().name, 4096,
                      "The device allows " + std::to_string(context->limits().maxPd) + " of them.");
  }
  return std::shared_ptr<IbvProtectionDomain>(new IbvProtectionDomain(std::move(context), handle));
}

IbvProtectionDomain::~IbvProtectionDomain() {
  closeInDestructor(this, {context_});
}

void IbvProtectionDomain::close() {
  lifecycle_.close([this] {
    const int errnum = context_->lib().deallocPd(handle_);
    if (errnum != 0) {
      throwSystemError("ibv_dealloc_pd", errnum, "Closing a protection domain of " + context_->device().name, "");
    }
  });
}

std::shared_ptr<MemoryRegion> IbvProtectionDomain::registerMemory(std::shared_ptr<Memory> memory, size_t offset,
                                                                  size_t length, uint32_t access) {
  const auto lock = lifecycle_.useAsParent();
  auto region = IbvMemoryRegion::registerOver(std::static_pointer_cast<IbvProtectionDomain>(shared_from_this()),
                                              std::move(memory), offset, length, access);
  lifecycle_.addChild(region);
  return region;
}

std::shared_ptr<QueuePair> IbvProtectionDomain::createQueuePair(const QpInit& init) {
  const auto lock = lifecycle_.useAsParent();
  auto queuePair = IbvQueuePair::create(std::static_pointer_cast<IbvProtectionDomain>(shared_from_this()), init);
  lifecycle_.addChild(queuePair);
  return queuePair;
}

std::shared_ptr<SharedReceiveQueue> IbvProtectionDomain::createSharedReceiveQueue(uint32_t maxWr, uint32_t maxSge) {
  const auto lock = lifecycle_.useAsParent();
  auto queue =
      IbvSharedReceiveQueue::create(std::static_pointer_cast<IbvProtectionDomain>(shared_from_this()), maxWr, maxSge);
  lifecycle_.addChild(queue);
  return queue;
}

std::shared_ptr<MemoryWindow> IbvProtectionDomain::allocateMemoryWindow(int type) {
  const auto lock = lifecycle_.useAsParent();
  auto window = IbvMemoryWindow::allocate(std::static_pointer_cast<IbvProtectionDomain>(shared_from_this()), type);
  lifecycle_.addChild(window);
  return window;
}

std::shared_ptr<AddressHandle> IbvProtectionDomain::createAddressHandle(const AddressVector& av) {
  const auto lock = lifecycle_.useAsParent();
  auto handle = IbvAddressHandle::create(std::static_pointer_cast<IbvProtectionDomain>(shared_from_this()), av);
  lifecycle_.addChild(handle);
  return handle;
}

}  // namespace quorate::ibverbs

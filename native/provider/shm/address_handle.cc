// See address_handle.h.
#include "provider/shm/address_handle.h"

namespace quorate::shm {

std::shared_ptr<PeerHca> ShmAddressHandle::peer() {
  const std::lock_guard<SpinLock> guard(lock_);
  if (peer_ != nullptr && peer_->alive()) [[likely]]
    return peer_;
  peer_.reset();
  try {
    peer_ = domain_->context()->peer(hcaId_);
  } catch (const VerbsError&) {
    return nullptr;  // it cannot be mapped: as good as not there
  }
  if (peer_ != nullptr && !peer_->alive()) peer_.reset();
  return peer_;
}

}  // namespace quorate::shm

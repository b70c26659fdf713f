// Address handles of the shm provider: the HCA instance that UD sends go to. It is looked for when it is used, not when
// the handle is made: like a datagram's destination, it need not be there.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "provider/shm/region.h"
#include "provider/shm/spin_lock.h"
#include "verbs/verbs.h"

namespace quorate::shm {

class ShmAddressHandle final : public AddressHandle {
 public:
  ShmAddressHandle(std::shared_ptr<ShmProtectionDomain> domain, const AddressVector& av, uint64_t hcaId)
      : AddressHandle(domain.get()), domain_(std::move(domain)), attributes_(av), hcaId_(hcaId) {}
  ~ShmAddressHandle() override { close(); }

  const AddressVector& attributes() const override { return attributes_; }
  void close() override { shut(); }
  bool closed() const override { return isShut(); }

  uint64_t hcaId() const { return hcaId_; }  // 0: a multicast group
  // The instance, if it is there and alive.
  std::shared_ptr<PeerHca> peer();

 private:
  const std::shared_ptr<ShmProtectionDomain> domain_;
  const AddressVector attributes_;
  const uint64_t hcaId_;
  SpinLock lock_;
  std::shared_ptr<PeerHca> peer_;
};

}  // namespace quorate::shm

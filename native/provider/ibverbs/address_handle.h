// ibv_create_ah(3): where UD sends go. On RoCE the kernel resolves the destination's link address when the handle is
// made, which may block for a second while that is not known.
#pragma once

#include <infiniband/verbs.h>

#include <memory>

#include "provider/ibverbs/lifecycle.h"
#include "provider/ibverbs/protection_domain.h"
#include "verbs/verbs.h"

namespace quorate::ibverbs {

class IbvAddressHandle final : public AddressHandle {
 public:
  static std::shared_ptr<IbvAddressHandle> create(std::shared_ptr<IbvProtectionDomain> domain, const AddressVector& av);
  ~IbvAddressHandle() override;

  const AddressVector& attributes() const override { return attributes_; }
  void close() override;
  bool closed() const override { return lifecycle_.closed(); }

  ibv_ah* handle() const { return handle_; }

 private:
  IbvAddressHandle(std::shared_ptr<IbvProtectionDomain> domain, const AddressVector& av, ibv_ah* handle)
      : AddressHandle(domain.get()), domain_(std::move(domain)), attributes_(av), handle_(handle) {}

  const std::shared_ptr<IbvProtectionDomain> domain_;
  const AddressVector attributes_;
  ibv_ah* const handle_;
  Lifecycle lifecycle_{"AddressHandle"};
};

// Address vectors as the device has them.
ibv_ah_attr toDevice(const AddressVector& av);
AddressVector fromDevice(const ibv_ah_attr& raw);

}  // namespace quorate::ibverbs

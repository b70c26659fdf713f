// See address_handle.h.
#include "provider/ibverbs/address_handle.h"

#include <cerrno>
#include <cstring>
#include <string>

#include "provider/ibverbs/errors.h"

namespace quorate::ibverbs {

ibv_ah_attr toDevice(const AddressVector& av) {
  ibv_ah_attr raw;
  std::memset(&raw, 0, sizeof(raw));
  raw.is_global = av.isGlobal ? 1 : 0;
  std::memcpy(raw.grh.dgid.raw, av.dgid.raw, sizeof(raw.grh.dgid.raw));
  raw.grh.sgid_index = static_cast<uint8_t>(av.sgidIndex);
  raw.grh.hop_limit = static_cast<uint8_t>(av.hopLimit);
  raw.grh.traffic_class = av.trafficClass;
  raw.grh.flow_label = av.flowLabel;
  raw.dlid = av.dlid;
  raw.sl = av.sl;
  raw.port_num = av.portNum;
  return raw;
}

AddressVector fromDevice(const ibv_ah_attr& raw) {
  AddressVector av;
  av.isGlobal = raw.is_global != 0;
  std::memcpy(av.dgid.raw, raw.grh.dgid.raw, sizeof(av.dgid.raw));
  av.sgidIndex = raw.grh.sgid_index;
  av.hopLimit = raw.grh.hop_limit;
  av.trafficClass = raw.grh.traffic_class;
  av.flowLabel = raw.grh.flow_label;
  av.dlid = raw.dlid;
  av.sl = raw.sl;
  av.portNum = raw.port_num;
  return av;
}

std::shared_ptr<IbvAddressHandle> IbvAddressHandle::create(std::shared_ptr<IbvProtectionDomain> domain,
                                                           const AddressVector& av) {
  const IbvContext& context = *domain->context();
  if (av.portNum < 1 || av.portNum > context.limits().physPortCnt) {
    throw VerbsError("QUORATE_OUT_OF_RANGE", "portNum of an AddressHandle is " + std::to_string(av.portNum) +
                                                 ", must be 1 to " + std::to_string(context.limits().physPortCnt) +
                                                 " on " + context.device().name + ".");
  }
  ibv_ah_attr raw = toDevice(av);
  errno = 0;
  ibv_ah* handle = context.lib().createAh(domain->handle(), &raw);
  if (handle == nullptr) {
    throwSystemError("ibv_create_ah", errno,
                     "Creating an address handle to " + av.dgid.toString() + " on " + context.device().name,
                     "Check that av.isGlobal is set on Ethernet, that there is a GID at av.sgidIndex " +
                         std::to_string(av.sgidIndex) + " and that it fits the peer's network (ip neighbour, ping).");
  }
  return std::shared_ptr<IbvAddressHandle>(new IbvAddressHandle(std::move(domain), av, handle));
}

IbvAddressHandle::~IbvAddressHandle() {
  closeInDestructor(this, {domain_});
}

void IbvAddressHandle::close() {
  lifecycle_.close([this] {
    shut();
    const int errnum = std::abs(domain_->context()->lib().destroyAh(handle_));
    if (errnum == 0) return;
    reopen();
    throwSystemError("ibv_destroy_ah", errnum, "Closing an address handle of " + domain_->context()->device().name, "");
  });
}

}  // namespace quorate::ibverbs

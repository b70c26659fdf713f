// See id.h.
#include "provider/rdmacm/id.h"

#include <arpa/inet.h>
#include <net/if.h>

#include <cerrno>
#include <cstring>

#include "provider/ibverbs/address_handle.h"
#include "provider/ibverbs/errors.h"

namespace quorate::rdmacm {
namespace {

std::string text(const CmAddress& address) {
  const bool ipv6 = address.host.find(':') != std::string::npos;
  return (ipv6 ? "[" + address.host + "]" : address.host) + ":" + std::to_string(address.port);
}

sockaddr_storage toSocketAddress(const CmAddress& address) {
  sockaddr_storage storage;
  std::memset(&storage, 0, sizeof(storage));
  const auto invalid = [&address](const std::string& why) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT", "'" + address.host + "' is not a numeric IPv4 or IPv6 address" + why);
  };
  if (address.host.find(':') == std::string::npos) {
    auto* ipv4 = reinterpret_cast<sockaddr_in*>(&storage);
    if (inet_pton(AF_INET, address.host.c_str(), &ipv4->sin_addr) != 1) invalid("");
    ipv4->sin_family = AF_INET;
    ipv4->sin_port = htons(address.port);
    return storage;
  }
  auto* ipv6 = reinterpret_cast<sockaddr_in6*>(&storage);
  const size_t percent = address.host.find('%');
  if (inet_pton(AF_INET6, address.host.substr(0, percent).c_str(), &ipv6->sin6_addr) != 1) invalid("");
  if (percent != std::string::npos) {
    const std::string interface = address.host.substr(percent + 1);
    ipv6->sin6_scope_id = if_nametoindex(interface.c_str());
    if (ipv6->sin6_scope_id == 0) invalid(": there is no interface " + interface);
  }
  ipv6->sin6_family = AF_INET6;
  ipv6->sin6_port = htons(address.port);
  return storage;
}

CmAddress fromSocketAddress(const sockaddr_storage& storage) {
  CmAddress address;
  char host[INET6_ADDRSTRLEN];
  if (storage.ss_family == AF_INET) {
    const auto* ipv4 = reinterpret_cast<const sockaddr_in*>(&storage);
    if (inet_ntop(AF_INET, &ipv4->sin_addr, host, sizeof(host)) != nullptr) address.host = host;
    address.port = ntohs(ipv4->sin_port);
  } else if (storage.ss_family == AF_INET6) {
    const auto* ipv6 = reinterpret_cast<const sockaddr_in6*>(&storage);
    if (inet_ntop(AF_INET6, &ipv6->sin6_addr, host, sizeof(host)) != nullptr) address.host = host;
    char interface[IF_NAMESIZE];
    if (ipv6->sin6_scope_id != 0 && if_indextoname(ipv6->sin6_scope_id, interface) != nullptr) {
      address.host += std::string("%") + interface;
    }
    address.port = ntohs(ipv6->sin6_port);
  }
  return address;
}

abi::ConnectionParameters toLibrary(const CmConnectionParameters& parameters, size_t maxPrivateDataBytes) {
  if (parameters.privateData.size() > maxPrivateDataBytes) {
    throw VerbsError("QUORATE_OUT_OF_RANGE", "privateData has " + std::to_string(parameters.privateData.size()) +
                                                 " bytes, this message of the connection manager has room for " +
                                                 std::to_string(maxPrivateDataBytes) + ".");
  }
  abi::ConnectionParameters raw;
  std::memset(&raw, 0, sizeof(raw));
  raw.privateData = parameters.privateData.empty() ? nullptr : parameters.privateData.data();
  raw.privateDataLength = static_cast<uint8_t>(parameters.privateData.size());
  raw.responderResources = parameters.responderResources;
  raw.initiatorDepth = parameters.initiatorDepth;
  raw.flowControl = parameters.flowControl ? 1 : 0;
  raw.retryCount = parameters.retryCount;
  raw.rnrRetryCount = parameters.rnrRetryCount;
  raw.srq = parameters.srq ? 1 : 0;
  raw.qpNum = parameters.qpNum;
  return raw;
}

}  // namespace

std::shared_ptr<RdmaCmId> RdmaCmId::create(std::shared_ptr<RdmaCmEventChannel> channel, abi::EventChannel* handle) {
  std::shared_ptr<RdmaCmId> id(new RdmaCmId(std::move(channel)));
  errno = 0;
  if (id->lib().createId(handle, &id->handle_, static_cast<VerbsObject*>(id.get()), abi::kPortSpaceTcp) != 0) {
    id->handle_ = nullptr;
    ibverbs::throwSystemError("rdma_create_id", errno, "Making an id of the connection manager", "");
  }
  return id;
}

std::shared_ptr<RdmaCmId> RdmaCmId::adopt(std::shared_ptr<RdmaCmEventChannel> channel, abi::Id* handle) {
  std::shared_ptr<RdmaCmId> id(new RdmaCmId(std::move(channel)));
  id->handle_ = handle;
  handle->context = static_cast<VerbsObject*>(id.get());  // events carry it
  return id;
}

RdmaCmId::~RdmaCmId() {
  ibverbs::closeInDestructor(this, {channel_});
}

void RdmaCmId::close() {
  // rdma_destroy_id(3) waits until the events that it has reported are acknowledged: getEvent() does so at once.
  lifecycle_.close([this] {
    if (handle_ == nullptr) return;  // create() failed
    if (lib().destroyId(handle_) != 0) {
      ibverbs::throwSystemError("rdma_destroy_id", errno, "Closing an id of the connection manager", "");
    }
  });
}

void RdmaCmId::check(int result, const char* call, const std::string& what, const char* advice) const {
  if (result == 0) return;
  ibverbs::throwSystemError(call, errno, what, advice);
}

void RdmaCmId::needDevice(const char* call, const std::string& what) const {
  if (handle_->verbs != nullptr) return;
  ibverbs::throwSystemError(call, EINVAL, what, "The id is bound to no device yet: resolve an address first.");
}

std::string RdmaCmId::deviceName() {
  const auto lock = lifecycle_.use();
  // The name is in a structure of libibverbs whose layout is public.
  return handle_->verbs == nullptr ? std::string() : std::string(handle_->verbs->device->name);
}

int RdmaCmId::portNum() {
  const auto lock = lifecycle_.use();
  return handle_->portNum;
}

CmAddress RdmaCmId::localAddress() {
  const auto lock = lifecycle_.use();
  return fromSocketAddress(handle_->route.address.source);
}

CmAddress RdmaCmId::peerAddress() {
  const auto lock = lifecycle_.use();
  return fromSocketAddress(handle_->route.address.destination);
}

void RdmaCmId::bindAddress(const CmAddress& address) {
  const auto lock = lifecycle_.use();
  sockaddr_storage storage = toSocketAddress(address);
  check(lib().bindAddr(handle_, reinterpret_cast<sockaddr*>(&storage)), "rdma_bind_addr",
        "Binding the connection manager's id to " + text(address),
        "ENODEV: the address is not one of an interface with an RDMA device (rdma link show, ip address). EADDRINUSE: "
        "another id has the port. EADDRNOTAVAIL: this host has no such address.");
}

void RdmaCmId::resolveAddress(const CmAddress& source, const CmAddress& destination, int timeoutMs) {
  const auto lock = lifecycle_.use();
  sockaddr_storage to = toSocketAddress(destination);
  sockaddr_storage from;
  if (!source.host.empty()) from = toSocketAddress(source);
  check(
      lib().resolveAddr(handle_, source.host.empty() ? nullptr : reinterpret_cast<sockaddr*>(&from),
                        reinterpret_cast<sockaddr*>(&to), timeoutMs),
      "rdma_resolve_addr", "Resolving " + text(destination) + " to an RDMA address",
      "ENODEV: the way there does not go through an interface with an RDMA device (ip route get). EINVAL: the id is in "
      "use already, or source and destination are of different families.");
}

void RdmaCmId::resolveRoute(int timeoutMs) {
  const auto lock = lifecycle_.use();
  needDevice("rdma_resolve_route", "Resolving the route to the peer");
  check(lib().resolveRoute(handle_, timeoutMs), "rdma_resolve_route", "Resolving the route to the peer",
        "EINVAL: resolve the address first.");
}

void RdmaCmId::listen(int backlog) {
  const auto lock = lifecycle_.use();
  check(lib().listen(handle_, backlog), "rdma_listen", "Listening for connections",
        "EINVAL: bind the id to an address first. EADDRINUSE: another id listens there.");
}

void RdmaCmId::connect(const CmConnectionParameters& parameters) {
  const auto lock = lifecycle_.use();
  needDevice("rdma_connect", "Connecting");
  abi::ConnectionParameters raw = toLibrary(parameters, kMaxConnectPrivateDataBytes);
  check(lib().connect(handle_, &raw), "rdma_connect", "Connecting",
        "EINVAL: resolve address and route first; responderResources and initiatorDepth must be within what the device "
        "allows (maxQpRdAtom, maxQpInitRdAtom).");
}

void RdmaCmId::establish() {
  const auto lock = lifecycle_.use();
  check(lib().establish(handle_), "rdma_establish", "Completing a connection",
        "EINVAL: there is no response of the peer to complete.");
}

void RdmaCmId::accept(const CmConnectionParameters& parameters) {
  const auto lock = lifecycle_.use();
  needDevice("rdma_accept", "Accepting a connection");
  abi::ConnectionParameters raw = toLibrary(parameters, kMaxAcceptPrivateDataBytes);
  check(lib().accept(handle_, &raw), "rdma_accept", "Accepting a connection",
        "EINVAL: the id is no request, was answered already, or the peer has given up.");
}

void RdmaCmId::reject(const std::vector<uint8_t>& privateData) {
  const auto lock = lifecycle_.use();
  CmConnectionParameters parameters;
  parameters.privateData = privateData;
  const abi::ConnectionParameters raw = toLibrary(parameters, kMaxRejectPrivateDataBytes);
  check(lib().reject(handle_, raw.privateData, raw.privateDataLength), "rdma_reject", "Rejecting a connection",
        "EINVAL: the id is no request, was answered already, or the peer has given up.");
}

void RdmaCmId::disconnect() {
  const auto lock = lifecycle_.use();
  check(lib().disconnect(handle_), "rdma_disconnect", "Disconnecting", "EINVAL: there is no connection.");
}

QpAttributes RdmaCmId::queuePairAttributes(QpState state) {
  const auto lock = lifecycle_.use();
  needDevice("rdma_init_qp_attr", "Asking the connection manager for the attributes of a queue pair");
  ibv_qp_attr raw;
  std::memset(&raw, 0, sizeof(raw));
  raw.qp_state = static_cast<ibv_qp_state>(state);
  int mask = 0;
  check(lib().initQpAttr(handle_, &raw, &mask), "rdma_init_qp_attr",
        "Asking the connection manager for the attributes of a queue pair",
        "EINVAL: the id has no connection that is far enough for this state.");
  // Kernels set bits of RoCE link addresses too, which ibv_modify_qp(3) does not take; what is left are the attributes
  // that the transition needs.
  constexpr uint32_t kKnown = kQpState | kQpAccessFlags | kQpPkeyIndex | kQpPort | kQpAv | kQpPathMtu | kQpTimeout |
                              kQpRetryCnt | kQpRnrRetry | kQpRqPsn | kQpMaxQpRdAtomic | kQpMinRnrTimer | kQpSqPsn |
                              kQpMaxDestRdAtomic | kQpDestQpn;
  QpAttributes attributes;
  attributes.mask = static_cast<uint32_t>(mask) & kKnown;
  attributes.state = state;
  attributes.accessFlags = raw.qp_access_flags;
  attributes.pkeyIndex = raw.pkey_index;
  attributes.portNum = raw.port_num;
  attributes.av = ibverbs::fromDevice(raw.ah_attr);
  attributes.pathMtuBytes =
      raw.path_mtu >= IBV_MTU_256 && raw.path_mtu <= IBV_MTU_4096 ? 128 << static_cast<int>(raw.path_mtu) : 1024;
  attributes.timeout = raw.timeout;
  attributes.retryCnt = raw.retry_cnt;
  attributes.rnrRetry = raw.rnr_retry;
  attributes.rqPsn = raw.rq_psn;
  attributes.sqPsn = raw.sq_psn;
  attributes.maxRdAtomic = raw.max_rd_atomic;
  attributes.maxDestRdAtomic = raw.max_dest_rd_atomic;
  attributes.minRnrTimer = raw.min_rnr_timer;
  attributes.destQpNum = raw.dest_qp_num;
  return attributes;
}

}  // namespace quorate::rdmacm

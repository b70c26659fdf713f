// See context.h.
#include "provider/ibverbs/context.h"

#include <endian.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "provider/ibverbs/completion_channel.h"
#include "provider/ibverbs/completion_queue.h"
#include "provider/ibverbs/device_info.h"
#include "provider/ibverbs/errors.h"
#include "provider/ibverbs/memory.h"
#include "provider/ibverbs/protection_domain.h"

namespace quorate::ibverbs {
namespace {

int mtuBytes(ibv_mtu mtu) {
  return mtu >= IBV_MTU_256 && mtu <= IBV_MTU_4096 ? 128 << static_cast<int>(mtu) : 0;
}

const char* linkLayerName(uint8_t layer) {
  return layer == IBV_LINK_LAYER_ETHERNET     ? "Ethernet"
         : layer == IBV_LINK_LAYER_INFINIBAND ? "InfiniBand"
                                              : "Unspecified";
}

}  // namespace

IbvContext::IbvContext(const Library& lib, ibv_context* handle, DeviceInfo info)
    : lib_(lib), handle_(handle), info_(std::move(info)) {}

std::shared_ptr<IbvContext> IbvContext::open(const Library& lib, ibv_device* device) {
  DeviceInfo info = describeDevice(lib, device);
  errno = 0;
  ibv_context* handle = lib.openDevice(device);
  if (handle == nullptr) {
    const int errnum = errno;
    throwSystemError("ibv_open_device", errnum, "Opening the RDMA device " + info.name,
                     errnum == EACCES || errnum == EPERM
                         ? std::string("Give this user access to /dev/infiniband/") + device->dev_name + "."
                         : std::string("Check that /dev/infiniband/") + device->dev_name +
                               " exists (module ib_uverbs) and that the provider library of driver " + info.driver +
                               " is installed (package ibverbs-providers).");
  }
  std::shared_ptr<IbvContext> context(new IbvContext(lib, handle, std::move(info)));
  context->limits_ = context->readDeviceAttributes();
  uint32_t least = UINT32_MAX;
  for (int port = 1; port <= context->limits_.physPortCnt; port++) {
    least = std::min(least, context->readPortAttributes(port).maxMsgSz);
  }
  context->maxMessageBytes_ = least;
  return context;
}

IbvContext::~IbvContext() {
  closeInDestructor(this, {});
}

void IbvContext::close() {
  lifecycle_.close([this] {
    const int result = lib_.closeDevice(handle_);
    if (result != 0) throwSystemError("ibv_close_device", errno, "Closing the RDMA device " + info_.name, "");
  });
}

DeviceAttributes IbvContext::readDeviceAttributes() {
  ibv_device_attr raw{};
  const int errnum = lib_.queryDevice(handle_, &raw);
  if (errnum != 0) throwSystemError("ibv_query_device", errnum, "Querying the device " + info_.name, "");
  DeviceAttributes attributes;
  attributes.firmwareVersion.assign(raw.fw_ver, std::find(raw.fw_ver, raw.fw_ver + sizeof(raw.fw_ver), '\0'));
  attributes.nodeGuid = be64toh(raw.node_guid);
  attributes.sysImageGuid = be64toh(raw.sys_image_guid);
  attributes.maxMrSize = raw.max_mr_size;
  attributes.pageSizeCap = raw.page_size_cap;
  attributes.vendorId = raw.vendor_id;
  attributes.vendorPartId = raw.vendor_part_id;
  attributes.hwVersion = raw.hw_ver;
  attributes.maxQp = raw.max_qp;
  attributes.maxQpWr = raw.max_qp_wr;
  attributes.maxSge = raw.max_sge;
  attributes.maxCq = raw.max_cq;
  attributes.maxCqe = raw.max_cqe;
  attributes.maxMr = raw.max_mr;
  attributes.maxPd = raw.max_pd;
  attributes.maxQpRdAtom = raw.max_qp_rd_atom;
  attributes.maxQpInitRdAtom = raw.max_qp_init_rd_atom;
  attributes.maxResRdAtom = raw.max_res_rd_atom;
  attributes.atomicCap = raw.atomic_cap;
  attributes.maxSrq = raw.max_srq;
  attributes.maxSrqWr = raw.max_srq_wr;
  attributes.maxMw = raw.max_mw;
  attributes.maxAh = raw.max_ah;
  attributes.maxMcastGrp = raw.max_mcast_grp;
  attributes.maxPkeys = raw.max_pkeys;
  attributes.deviceCapFlags = raw.device_cap_flags;
  attributes.physPortCnt = raw.phys_port_cnt;
  return attributes;
}

PortAttributes IbvContext::readPortAttributes(int portNum) {
  ibv_port_attr raw{};
  const int errnum = lib_.queryPortAttributes(handle_, static_cast<uint8_t>(portNum), &raw);
  if (errnum != 0) {
    throwSystemError("ibv_query_port", errnum, "Querying port " + std::to_string(portNum) + " of " + info_.name, "");
  }
  PortAttributes attributes;
  attributes.state = static_cast<PortState>(raw.state);
  attributes.maxMtuBytes = mtuBytes(raw.max_mtu);
  attributes.activeMtuBytes = mtuBytes(raw.active_mtu);
  attributes.gidTblLen = raw.gid_tbl_len;
  attributes.pkeyTblLen = raw.pkey_tbl_len;
  attributes.portCapFlags = raw.port_cap_flags;
  attributes.maxMsgSz = raw.max_msg_sz;
  attributes.lid = raw.lid;
  attributes.smLid = raw.sm_lid;
  attributes.lmc = raw.lmc;
  attributes.activeWidth = raw.active_width;
  attributes.activeSpeed = raw.active_speed;
  attributes.physState = raw.phys_state;
  attributes.linkLayer = linkLayerName(raw.link_layer);
  return attributes;
}

void IbvContext::checkPort(int portNum) const {
  if (portNum >= 1 && portNum <= limits_.physPortCnt) return;
  throw VerbsError("QUORATE_OUT_OF_RANGE", "The device " + info_.name + " has ports 1 to " +
                                               std::to_string(limits_.physPortCnt) + ", not " +
                                               std::to_string(portNum) + ".");
}

DeviceAttributes IbvContext::queryDevice() {
  const auto lock = lifecycle_.use();
  return readDeviceAttributes();
}

PortAttributes IbvContext::queryPort(int portNum) {
  const auto lock = lifecycle_.use();
  checkPort(portNum);
  return readPortAttributes(portNum);
}

std::vector<GidEntry> IbvContext::queryGids(int portNum) {
  const auto lock = lifecycle_.use();
  checkPort(portNum);
  return queryGidTable(lib_, handle_, portNum);
}

std::shared_ptr<Memory> IbvContext::allocateMemory(const MemoryOptions& options) {
  const auto lock = lifecycle_.useAsParent();
  // No child of the context: memory is the process's and lives as long as its last holder.
  return MappedMemory::map(options);
}

std::shared_ptr<ProtectionDomain> IbvContext::allocateProtectionDomain() {
  const auto lock = lifecycle_.useAsParent();
  auto domain = IbvProtectionDomain::allocate(std::static_pointer_cast<IbvContext>(shared_from_this()));
  lifecycle_.addChild(domain);
  return domain;
}

std::shared_ptr<CompletionChannel> IbvContext::createCompletionChannel() {
  const auto lock = lifecycle_.useAsParent();
  auto channel = IbvCompletionChannel::create(std::static_pointer_cast<IbvContext>(shared_from_this()));
  lifecycle_.addChild(channel);
  return channel;
}

std::shared_ptr<CompletionQueue> IbvContext::createCompletionQueue(int depth,
                                                                   std::shared_ptr<CompletionChannel> channel) {
  const auto lock = lifecycle_.useAsParent();
  if (depth < 1 || depth > limits_.maxCqe) {
    throw VerbsError("QUORATE_OUT_OF_RANGE", "The depth of a CompletionQueue is " + std::to_string(depth) +
                                                 ", must be 1 to " + std::to_string(limits_.maxCqe) +
                                                 ", the most that " + info_.name + " allows.");
  }
  std::shared_ptr<IbvCompletionChannel> ownChannel;
  if (channel != nullptr) {
    ownChannel = std::dynamic_pointer_cast<IbvCompletionChannel>(channel);
    if (ownChannel == nullptr || ownChannel->context().get() != this) {
      throw VerbsError("QUORATE_INVALID_ARGUMENT",
                       "The CompletionChannel belongs to another Context; use one made by this Context.");
    }
  }
  auto queue = IbvCompletionQueue::create(std::static_pointer_cast<IbvContext>(shared_from_this()), depth, ownChannel);
  lifecycle_.addChild(queue);
  return queue;
}

bool IbvContext::accessFlagsRevocationIsSynchronous() const {
  // False for every driver. rxe checks the flags when a packet begins and copies later: writes landed up to 5.9 ms
  // after ibv_modify_qp had returned. siw reports success for writes it drops. For mlx5, Mu's authors relied on the
  // flags, but neither the InfiniBand specification (which leaves open when a modification in RTS takes effect on
  // requests that are being executed) nor the man page promises that a write in progress has ended when the call
  // returns. Deregistration and destruction make that promise everywhere, so they are what is used.
  return false;
}

}  // namespace quorate::ibverbs

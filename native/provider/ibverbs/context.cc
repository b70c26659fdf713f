// See context.h.
#include "provider/ibverbs/context.h"

#include <endian.h>
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "provider/ibverbs/address_handle.h"
#include "provider/ibverbs/completion_channel.h"
#include "provider/ibverbs/completion_queue.h"
#include "provider/ibverbs/device_info.h"
#include "provider/ibverbs/errors.h"
#include "provider/ibverbs/memory.h"
#include "provider/ibverbs/protection_domain.h"
#include "provider/ibverbs/queue_pair.h"
#include "provider/ibverbs/shared_receive_queue.h"

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
  const int flags = fcntl(handle->async_fd, F_GETFL);
  if (flags >= 0) fcntl(handle->async_fd, F_SETFL, flags | O_NONBLOCK);  // getAsyncEvent() must not block
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
  attributes.maxSgeRd = raw.max_sge_rd;
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
  attributes.maxSrqSge = raw.max_srq_sge;
  attributes.maxMw = raw.max_mw;
  attributes.maxAh = raw.max_ah;
  attributes.maxMcastGrp = raw.max_mcast_grp;
  attributes.maxPkeys = raw.max_pkeys;
  attributes.deviceCapFlags = raw.device_cap_flags;
  attributes.physPortCnt = raw.phys_port_cnt;
  // Of the extended query only what the plain one lacks; a device without it has none of that.
  if (verbs_context* extended = verbs_get_ctx_op(handle_, query_device_ex)) {
    ibv_device_attr_ex more{};
    if (extended->query_device_ex(handle_, nullptr, &more, sizeof(more)) == 0) {
      attributes.completionTimestampMask = more.completion_timestamp_mask;
      attributes.hcaCoreClockKhz = more.hca_core_clock;
    }
  }
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
  attributes.portCapFlags2 = raw.port_cap_flags2;
  attributes.badPkeyCntr = raw.bad_pkey_cntr;
  attributes.qkeyViolCntr = raw.qkey_viol_cntr;
  attributes.maxVlNum = raw.max_vl_num;
  attributes.smSl = raw.sm_sl;
  attributes.subnetTimeout = raw.subnet_timeout;
  attributes.initTypeReply = raw.init_type_reply;
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

uint16_t IbvContext::queryPkey(int portNum, int index) {
  const auto lock = lifecycle_.use();
  checkPort(portNum);
  const int most = readPortAttributes(portNum).pkeyTblLen;
  if (index < 0 || index >= most) {
    throw VerbsError("QUORATE_OUT_OF_RANGE", "Port " + std::to_string(portNum) + " of " + info_.name + " has " +
                                                 std::to_string(most) + " partition keys, so there is none at index " +
                                                 std::to_string(index) + ".");
  }
  __be16 raw = 0;
  errno = 0;
  if (lib_.queryPkey == nullptr || lib_.queryPkey(handle_, static_cast<uint8_t>(portNum), index, &raw) != 0) {
    throwSystemError("ibv_query_pkey",
                     lib_.queryPkey == nullptr ? ENOSYS
                     : errno != 0              ? errno
                                               : EIO,
                     "Reading partition key " + std::to_string(index) + " of " + info_.name, "");
  }
  return be16toh(raw);
}

AddressVector IbvContext::addressVectorFromCompletion(int portNum, const WorkCompletion& completion,
                                                      const uint8_t* grh) {
  const auto lock = lifecycle_.use();
  checkPort(portNum);
  ibv_wc wc{};
  wc.wc_flags = completion.wcFlags;
  wc.src_qp = completion.srcQpNum;
  wc.slid = completion.slid;
  wc.sl = completion.sl;
  wc.dlid_path_bits = completion.dlidPathBits;
  wc.pkey_index = completion.pkeyIndex;
  static_assert(sizeof(ibv_grh) == kGrhBytes);
  ibv_grh header;
  std::memcpy(&header, grh, sizeof(header));
  ibv_ah_attr raw{};
  errno = 0;
  const int result = lib_.initAhFromWc(handle_, static_cast<uint8_t>(portNum), &wc, &header, &raw);
  if (result != 0) {
    throwSystemError("ibv_init_ah_from_wc",
                     result > 0   ? result
                     : errno != 0 ? errno
                                  : EINVAL,
                     "Finding the way back to the sender of a message on " + info_.name,
                     "The completion and the routing header must be those of one UD receive; the header is the first " +
                         std::to_string(kGrhBytes) + " bytes of its buffer.");
  }
  return fromDevice(raw);
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
                                                                   std::shared_ptr<CompletionChannel> channel,
                                                                   const CqOptions& options) {
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
  auto queue =
      IbvCompletionQueue::create(std::static_pointer_cast<IbvContext>(shared_from_this()), depth, ownChannel, options);
  lifecycle_.addChild(queue);
  return queue;
}

uint32_t IbvContext::nextSharedQueueNumber() {
  // Never used twice, so that a late completion is never taken for another queue's.
  const uint32_t number = lastSharedQueue_.fetch_add(1, std::memory_order_relaxed) + 1;
  if (number > kMaxSharedQueueNumber) {
    throw VerbsError("QUORATE_LIMIT", "A Context can make " + std::to_string(kMaxSharedQueueNumber) +
                                          " shared receive queues in its life; open the device anew.");
  }
  return number;
}

int IbvContext::asyncFd() {
  const auto lock = lifecycle_.use();
  return handle_->async_fd;
}

bool IbvContext::getAsyncEvent(AsyncEvent* event) {
  const auto lock = lifecycle_.use();
  ibv_async_event raw{};
  errno = 0;
  if (lib_.getAsyncEvent(handle_, &raw) != 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR || errno == 0) return false;
    throwSystemError("ibv_get_async_event", errno, "Reading the asynchronous events of " + info_.name, "");
  }
  *event = AsyncEvent();
  event->type = raw.event_type;
  // The object's destruction waits for the acknowledgement, so what the event points to is still there; it may be in
  // its destructor, though, and then has no owner to be returned.
  const auto owner = [](void* context) -> std::shared_ptr<VerbsObject> {
    return context == nullptr ? nullptr : static_cast<VerbsObject*>(context)->weak_from_this().lock();
  };
  switch (raw.event_type) {
    case IBV_EVENT_CQ_ERR:
      // Channels' events carry the same cookie, as a completion queue.
      event->object = owner(static_cast<VerbsObject*>(static_cast<IbvCompletionQueue*>(raw.element.cq->cq_context)));
      break;
    case IBV_EVENT_SRQ_ERR:
    case IBV_EVENT_SRQ_LIMIT_REACHED:
      event->object =
          owner(static_cast<VerbsObject*>(static_cast<IbvSharedReceiveQueue*>(raw.element.srq->srq_context)));
      break;
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_COMM_EST:
    case IBV_EVENT_SQ_DRAINED:
    case IBV_EVENT_PATH_MIG:
    case IBV_EVENT_PATH_MIG_ERR:
    case IBV_EVENT_QP_LAST_WQE_REACHED:
      event->object = owner(static_cast<VerbsObject*>(static_cast<IbvQueuePair*>(raw.element.qp->qp_context)));
      break;
    case IBV_EVENT_PORT_ACTIVE:
    case IBV_EVENT_PORT_ERR:
    case IBV_EVENT_LID_CHANGE:
    case IBV_EVENT_PKEY_CHANGE:
    case IBV_EVENT_SM_CHANGE:
    case IBV_EVENT_CLIENT_REREGISTER:
    case IBV_EVENT_GID_CHANGE:
      event->portNum = raw.element.port_num;
      break;
    default:
      break;
  }
  lib_.ackAsyncEvent(&raw);
  return true;
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

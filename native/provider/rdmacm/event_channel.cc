// See event_channel.h.
#include "provider/rdmacm/event_channel.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "provider/ibverbs/errors.h"
#include "provider/rdmacm/id.h"

namespace quorate::rdmacm {
namespace {

// Whether the event says something of the peer's (ConnectionParameters), in this port space.
bool carriesParameters(int type) {
  switch (static_cast<CmEventType>(type)) {
    case CmEventType::ConnectRequest:
    case CmEventType::ConnectResponse:
    case CmEventType::Established:
    case CmEventType::Rejected:
      return true;
    default:
      return false;
  }
}

// The peer chose the private data, and the kernel says how much there is: neither is believed beyond the bound.
CmConnectionParameters copyParameters(const abi::ConnectionParameters& raw) {
  CmConnectionParameters parameters;
  const size_t length = std::min<size_t>(raw.privateDataLength, kMaxCmPrivateDataBytes);
  const auto* data = static_cast<const uint8_t*>(raw.privateData);
  if (data != nullptr) parameters.privateData.assign(data, data + length);
  parameters.responderResources = raw.responderResources;
  parameters.initiatorDepth = raw.initiatorDepth;
  parameters.flowControl = raw.flowControl != 0;
  parameters.retryCount = raw.retryCount;
  parameters.rnrRetryCount = raw.rnrRetryCount;
  parameters.srq = raw.srq != 0;
  parameters.qpNum = raw.qpNum;
  return parameters;
}

}  // namespace

std::shared_ptr<RdmaCmEventChannel> RdmaCmEventChannel::open(const Library& lib) {
  errno = 0;
  abi::EventChannel* handle = lib.createEventChannel();
  if (handle == nullptr) {
    const int errnum = errno;
    const std::string what = "Opening the RDMA connection manager";
    if (errnum == ENODEV || errnum == ENOENT || errnum == ENXIO || errnum == 0) {
      throw VerbsError(
          "QUORATE_NO_DEVICE",
          what + " failed: " + (errnum == 0 ? "no reason given" : ibverbs::errnoText(errnum)) +
              ". There must be an RDMA device (rdma link show) and the kernel module rdma_ucm "
              "(modprobe rdma_ucm), which provides /dev/infiniband/rdma_cm. The shm device has a connection "
              "manager of its own, which needs neither.",
          errnum, "rdma_create_event_channel");
    }
    ibverbs::throwSystemError(
        "rdma_create_event_channel", errnum, what,
        errnum == EACCES || errnum == EPERM ? "Give this user access to /dev/infiniband/rdma_cm." : "");
  }
  std::shared_ptr<RdmaCmEventChannel> channel(new RdmaCmEventChannel(lib, handle));
  const int flags = fcntl(handle->fd, F_GETFL);
  if (flags < 0 || fcntl(handle->fd, F_SETFL, flags | O_NONBLOCK) != 0) {
    ibverbs::throwSystemError("fcntl(O_NONBLOCK)", errno, "Preparing an event channel of the connection manager", "");
  }
  return channel;
}

RdmaCmEventChannel::~RdmaCmEventChannel() {
  ibverbs::closeInDestructor(this, {});
}

void RdmaCmEventChannel::close() {
  lifecycle_.close([this] { lib_.destroyEventChannel(handle_); });
}

std::shared_ptr<CmId> RdmaCmEventChannel::createId() {
  const auto lock = lifecycle_.useAsParent();
  auto id = RdmaCmId::create(self(), handle_);
  lifecycle_.addChild(id);
  return id;
}

bool RdmaCmEventChannel::getEvent(CmEvent* event) {
  const auto lock = lifecycle_.useAsParent();
  std::lock_guard<std::mutex> reading(reading_);
  abi::Event* raw = nullptr;
  errno = 0;
  if (lib_.getCmEvent(handle_, &raw) != 0 || raw == nullptr) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR || errno == 0) return false;
    ibverbs::throwSystemError("rdma_get_cm_event", errno, "Reading the events of the connection manager", "");
  }
  // An id's destruction waits for the acknowledgement, so what the event points to is still there; the object that
  // owns it may be in its destructor, though, and then has no owner to be returned.
  const auto owner = [](abi::Id* id) -> std::shared_ptr<CmId> {
    if (id == nullptr || id->context == nullptr) return nullptr;
    return std::static_pointer_cast<CmId>(static_cast<VerbsObject*>(id->context)->weak_from_this().lock());
  };
  const auto acknowledge = [this](abi::Event* taken) { lib_.ackCmEvent(taken); };
  const std::unique_ptr<abi::Event, decltype(acknowledge)> held(raw, acknowledge);
  *event = CmEvent();
  event->type = raw->type;
  event->status = raw->status;
  if (raw->type == static_cast<int>(CmEventType::ConnectRequest)) {
    // The new id has inherited the listener's context. It is ours from here on: dropping it rejects the request.
    event->listener = owner(raw->listenId);
    auto id = RdmaCmId::adopt(self(), raw->id);
    lifecycle_.addChild(id);
    event->id = std::move(id);
  } else {
    event->id = owner(raw->id);
  }
  event->hasParameters = carriesParameters(raw->type);
  if (event->hasParameters) event->parameters = copyParameters(raw->parameters.connection);
  return true;
}

}  // namespace quorate::rdmacm

namespace quorate {

std::shared_ptr<CmEventChannel> makeRdmaCmEventChannel() {
  return rdmacm::RdmaCmEventChannel::open(rdmacm::library());
}

}  // namespace quorate

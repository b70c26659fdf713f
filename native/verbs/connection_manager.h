// The connection manager's object model (rdma_cm(7)): event channels and ids, as abstract classes like those of
// verbs.h. An id stands for a connection, or for a listener. It does not make queue pairs: the caller makes one of its
// own protection domain and moves it through its states with the attributes that the id supplies
// (rdma_init_qp_attr(3)), as rdma_cm(7) foresees for queue pairs that it did not make. So queue pairs, memory and
// queues of one device can be used together whether or not the connection manager connected them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "verbs/verbs.h"

namespace quorate {

enum class CmEventType : int {  // equal to rdma_cm_event_type
  AddressResolved = 0,
  AddressError = 1,
  RouteResolved = 2,
  RouteError = 3,
  ConnectRequest = 4,
  ConnectResponse = 5,
  ConnectError = 6,
  Unreachable = 7,
  Rejected = 8,
  Established = 9,
  Disconnected = 10,
  DeviceRemoval = 11,
  MulticastJoin = 12,
  MulticastError = 13,
  AddressChange = 14,
  TimewaitExit = 15,
};

// Most that a peer can send along with one message of the connection manager; what a sender may send is less.
constexpr size_t kMaxCmPrivateDataBytes = 256;
// rdma_connect(3), rdma_accept(3) and rdma_reject(3), for reliable connections.
constexpr size_t kMaxConnectPrivateDataBytes = 56;
constexpr size_t kMaxAcceptPrivateDataBytes = 196;
constexpr size_t kMaxRejectPrivateDataBytes = 148;

struct CmAddress {
  std::string host;  // numeric; IPv6 link-local ones with "%interface". Empty: none
  uint16_t port = 0;
};

struct CmConnectionParameters {      // rdma_conn_param
  std::vector<uint8_t> privateData;  // received: padded with zeros to the length that the message has room for
  uint8_t responderResources = 0;    // READs and atomics of the peer in flight at once
  uint8_t initiatorDepth = 0;        // own READs and atomics in flight at once
  bool flowControl = false;          // hardware flow control (InfiniBand)
  uint8_t retryCount = 7;            // of unanswered requests, 0 .. 7; not when accepting
  uint8_t rnrRetryCount = 7;         // while the peer has no receive posted, 0 .. 6; 7 = for ever
  bool srq = false;                  // the queue pair has a shared receive queue
  uint32_t qpNum = 0;
};

class CmId;
struct CmEvent {
  int type = 0;    // CmEventType; kept as int because the library may report others
  int status = 0;  // 0, a negative errno, or (REJECTED) the peer's reason
  std::shared_ptr<CmId> id;
  std::shared_ptr<CmId> listener;  // of CONNECT_REQUEST, whose `id` is new
  bool hasParameters = false;      // of the events that carry something of the peer's
  CmConnectionParameters parameters;
};

class CmId : public VerbsObject {
 public:
  const char* kind() const override { return "CmId"; }
  // Name of the device that the address belongs to, and its port; empty and 0 until the id is bound to one.
  virtual std::string deviceName() = 0;
  virtual int portNum() = 0;
  virtual CmAddress localAddress() = 0;
  virtual CmAddress peerAddress() = 0;
  virtual void bindAddress(const CmAddress& address) = 0;
  // The next two end with an event. `source` with an empty host: the kernel chooses.
  virtual void resolveAddress(const CmAddress& source, const CmAddress& destination, int timeoutMs) = 0;
  // May wait for a service of this host that knows routes (ibacm), where that runs.
  virtual void resolveRoute(int timeoutMs) = 0;
  virtual void listen(int backlog) = 0;
  virtual void connect(const CmConnectionParameters& parameters) = 0;
  // Tells the peer that the queue pair of the connecting side is ready, after CONNECT_RESPONSE: rdma_establish(3).
  virtual void establish() = 0;
  virtual void accept(const CmConnectionParameters& parameters) = 0;
  virtual void reject(const std::vector<uint8_t>& privateData) = 0;
  virtual void disconnect() = 0;
  // What the queue pair of this connection needs to go to `state` (INIT, RTR, RTS): rdma_init_qp_attr(3).
  virtual QpAttributes queuePairAttributes(QpState state) = 0;
};

class CmEventChannel : public VerbsObject {
 public:
  const char* kind() const override { return "CmEventChannel"; }
  virtual int fd() const = 0;  // readable when an event is pending; non-blocking
  // Takes, copies and acknowledges one event; false if none is pending. Never blocks.
  virtual bool getEvent(CmEvent* event) = 0;
  virtual std::shared_ptr<CmId> createId() = 0;  // of the port space TCP: reliable connections
};

// native/provider/rdmacm. Throws QUORATE_NO_LIBRARY without librdmacm, QUORATE_NO_DEVICE without a device or the
// kernel's connection manager.
std::shared_ptr<CmEventChannel> makeRdmaCmEventChannel();

}  // namespace quorate

// What this provider uses of librdmacm's binary interface, declared here so that building the addon does not need
// <rdma/rdma_cma.h> (package librdmacm-dev). The library's soname is 1 since 2006, and members were only ever added at
// the end. native/test/rdmacm_abi.cc compares every size, offset and value with the header.
#pragma once

#include <infiniband/verbs.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>

namespace quorate::rdmacm::abi {

struct EventChannel {  // rdma_event_channel
  int fd;
};

struct IbAddress {  // rdma_ib_addr
  ibv_gid sgid;
  ibv_gid dgid;
  uint16_t pkey;
};

struct Address {  // rdma_addr, the union members that are as large as their union
  sockaddr_storage source;
  sockaddr_storage destination;
  IbAddress ib;
};

struct Route {  // rdma_route
  Address address;
  void* pathRecords;
  int pathCount;
};

struct Event;

struct Id {  // rdma_cm_id; it goes on, but the library allocates it
  ibv_context* verbs;
  EventChannel* channel;
  void* context;
  ibv_qp* qp;
  Route route;
  int portSpace;
  uint8_t portNum;
};

struct ConnectionParameters {  // rdma_conn_param
  const void* privateData;
  uint8_t privateDataLength;
  uint8_t responderResources;
  uint8_t initiatorDepth;
  uint8_t flowControl;
  uint8_t retryCount;
  uint8_t rnrRetryCount;
  uint8_t srq;
  uint32_t qpNum;
};

struct DatagramParameters {  // rdma_ud_param
  const void* privateData;
  uint8_t privateDataLength;
  ibv_ah_attr addressHandle;
  uint32_t qpNum;
  uint32_t qkey;
};

struct Event {  // rdma_cm_event
  Id* id;
  Id* listenId;
  int type;
  int status;
  union {
    ConnectionParameters connection;
    DatagramParameters datagram;
  } parameters;
};

constexpr int kPortSpaceTcp = 0x0106;  // RDMA_PS_TCP

}  // namespace quorate::rdmacm::abi

// librdmacm is opened at run time and used through declarations of our own: its absence is explained, and the
// declarations are those of its header.
#include <doctest/doctest.h>
#include <rdma/rdma_cma.h>

#include <cstddef>
#include <string>
#include <type_traits>

#include "provider/rdmacm/abi.h"
#include "provider/rdmacm/library.h"
#include "verbs/connection_manager.h"

using namespace quorate;
using namespace quorate::rdmacm;

namespace {

#define SAME_MEMBER(ours, ourMember, theirs, theirMember)                               \
  static_assert(offsetof(ours, ourMember) == offsetof(theirs, theirMember) &&           \
                    sizeof(ours::ourMember) == sizeof(((theirs*)nullptr)->theirMember), \
                #ours "::" #ourMember)

SAME_MEMBER(abi::EventChannel, fd, rdma_event_channel, fd);

static_assert(sizeof(abi::IbAddress) == sizeof(rdma_ib_addr));
SAME_MEMBER(abi::Address, source, rdma_addr, src_storage);
SAME_MEMBER(abi::Address, destination, rdma_addr, dst_storage);
SAME_MEMBER(abi::Address, ib, rdma_addr, addr);
static_assert(sizeof(abi::Address) == sizeof(rdma_addr));
SAME_MEMBER(abi::Route, address, rdma_route, addr);
SAME_MEMBER(abi::Route, pathCount, rdma_route, num_paths);
static_assert(sizeof(abi::Route) == sizeof(rdma_route));

SAME_MEMBER(abi::Id, verbs, rdma_cm_id, verbs);
SAME_MEMBER(abi::Id, channel, rdma_cm_id, channel);
SAME_MEMBER(abi::Id, context, rdma_cm_id, context);
SAME_MEMBER(abi::Id, qp, rdma_cm_id, qp);
SAME_MEMBER(abi::Id, route, rdma_cm_id, route);
SAME_MEMBER(abi::Id, portSpace, rdma_cm_id, ps);
SAME_MEMBER(abi::Id, portNum, rdma_cm_id, port_num);

SAME_MEMBER(abi::ConnectionParameters, privateData, rdma_conn_param, private_data);
SAME_MEMBER(abi::ConnectionParameters, privateDataLength, rdma_conn_param, private_data_len);
SAME_MEMBER(abi::ConnectionParameters, responderResources, rdma_conn_param, responder_resources);
SAME_MEMBER(abi::ConnectionParameters, initiatorDepth, rdma_conn_param, initiator_depth);
SAME_MEMBER(abi::ConnectionParameters, flowControl, rdma_conn_param, flow_control);
SAME_MEMBER(abi::ConnectionParameters, retryCount, rdma_conn_param, retry_count);
SAME_MEMBER(abi::ConnectionParameters, rnrRetryCount, rdma_conn_param, rnr_retry_count);
SAME_MEMBER(abi::ConnectionParameters, srq, rdma_conn_param, srq);
SAME_MEMBER(abi::ConnectionParameters, qpNum, rdma_conn_param, qp_num);
static_assert(sizeof(abi::ConnectionParameters) == sizeof(rdma_conn_param));
SAME_MEMBER(abi::DatagramParameters, addressHandle, rdma_ud_param, ah_attr);
SAME_MEMBER(abi::DatagramParameters, qkey, rdma_ud_param, qkey);
static_assert(sizeof(abi::DatagramParameters) == sizeof(rdma_ud_param));

SAME_MEMBER(abi::Event, id, rdma_cm_event, id);
SAME_MEMBER(abi::Event, listenId, rdma_cm_event, listen_id);
SAME_MEMBER(abi::Event, type, rdma_cm_event, event);
SAME_MEMBER(abi::Event, status, rdma_cm_event, status);
SAME_MEMBER(abi::Event, parameters, rdma_cm_event, param);
static_assert(sizeof(abi::Event) == sizeof(rdma_cm_event));

static_assert(abi::kPortSpaceTcp == RDMA_PS_TCP);
static_assert(static_cast<int>(CmEventType::AddressResolved) == RDMA_CM_EVENT_ADDR_RESOLVED &&
              static_cast<int>(CmEventType::ConnectRequest) == RDMA_CM_EVENT_CONNECT_REQUEST &&
              static_cast<int>(CmEventType::ConnectResponse) == RDMA_CM_EVENT_CONNECT_RESPONSE &&
              static_cast<int>(CmEventType::Rejected) == RDMA_CM_EVENT_REJECTED &&
              static_cast<int>(CmEventType::Established) == RDMA_CM_EVENT_ESTABLISHED &&
              static_cast<int>(CmEventType::Disconnected) == RDMA_CM_EVENT_DISCONNECTED &&
              static_cast<int>(CmEventType::TimewaitExit) == RDMA_CM_EVENT_TIMEWAIT_EXIT);

// The function pointers take what the header's functions take: as many arguments, each passed the same way.
template <typename Function>
struct Signature;
template <typename Result, typename... Arguments>
struct Signature<Result (*)(Arguments...)> {
  static constexpr size_t arity = sizeof...(Arguments);
  static constexpr size_t bytes = (sizeof(Arguments) + ... + 0);
  static constexpr bool isVoid = std::is_void_v<Result>;
};
template <typename Ours, typename Theirs>
constexpr bool sameCall = Signature<Ours>::arity == Signature<Theirs>::arity&& Signature<Ours>::bytes ==
                          Signature<Theirs>::bytes&& Signature<Ours>::isVoid == Signature<Theirs>::isVoid;
#define SAME_CALL(ours, theirs) static_assert(sameCall<decltype(Library::ours), decltype(&::theirs)>, #theirs)
SAME_CALL(createEventChannel, rdma_create_event_channel);
SAME_CALL(destroyEventChannel, rdma_destroy_event_channel);
SAME_CALL(createId, rdma_create_id);
SAME_CALL(destroyId, rdma_destroy_id);
SAME_CALL(bindAddr, rdma_bind_addr);
SAME_CALL(resolveAddr, rdma_resolve_addr);
SAME_CALL(resolveRoute, rdma_resolve_route);
SAME_CALL(connect, rdma_connect);
SAME_CALL(establish, rdma_establish);
SAME_CALL(listen, rdma_listen);
SAME_CALL(accept, rdma_accept);
SAME_CALL(reject, rdma_reject);
SAME_CALL(disconnect, rdma_disconnect);
SAME_CALL(getCmEvent, rdma_get_cm_event);
SAME_CALL(ackCmEvent, rdma_ack_cm_event);
SAME_CALL(initQpAttr, rdma_init_qp_attr);

VerbsError openingConnectionManagerFails(const std::string& soname) {
  try {
    openLibrary(soname);
  } catch (const VerbsError& error) {
    return error;
  }
  FAIL(soname, " was accepted as librdmacm");
  throw 0;
}

}  // namespace

TEST_CASE("a missing librdmacm is explained with what to install") {
  const VerbsError error = openingConnectionManagerFails("librdmacm-of-nowhere.so.1");
  CHECK(error.code == "QUORATE_NO_LIBRARY");
  CHECK(error.syscall == "dlopen");
  CHECK(std::string(error.what()).find("librdmacm-of-nowhere.so.1") != std::string::npos);
  CHECK(std::string(error.what()).find("apt-get install librdmacm1") != std::string::npos);
}

TEST_CASE("a library that is not librdmacm is refused by the symbol it lacks") {
  const VerbsError error = openingConnectionManagerFails("libc.so.6");
  CHECK(error.code == "QUORATE_NO_LIBRARY");
  CHECK(error.syscall == "dlsym");
  CHECK(std::string(error.what()).find("rdma_create_event_channel") != std::string::npos);
}

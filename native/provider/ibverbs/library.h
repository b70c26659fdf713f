// libibverbs, opened with dlopen when the first provider is made, never linked: the addon loads where rdma-core is
// not installed. Only what the library exports is here; the verbs that <infiniband/verbs.h> implements inline (post,
// poll, arm) dispatch through the context and need no symbol. Nothing in this provider may call an exported ibv_*
// function by its own name, since that would make the addon depend on the library (native/test/ibverbs_library.cc
// checks it).
#pragma once

#include <infiniband/verbs.h>

#include <string>

namespace quorate::ibverbs {

struct Library {
  decltype(&::ibv_get_device_list) getDeviceList = nullptr;
  decltype(&::ibv_free_device_list) freeDeviceList = nullptr;
  decltype(&::ibv_get_device_name) getDeviceName = nullptr;
  decltype(&::ibv_get_device_guid) getDeviceGuid = nullptr;
  decltype(&::ibv_open_device) openDevice = nullptr;
  decltype(&::ibv_close_device) closeDevice = nullptr;
  decltype(&::ibv_query_device) queryDevice = nullptr;
  decltype(&::ibv_query_port) queryPort = nullptr;
  decltype(&::ibv_fork_init) forkInit = nullptr;
  decltype(&::ibv_alloc_pd) allocPd = nullptr;
  decltype(&::ibv_dealloc_pd) deallocPd = nullptr;
  decltype(&::ibv_reg_mr) regMr = nullptr;
  decltype(&::ibv_dereg_mr) deregMr = nullptr;
  decltype(&::ibv_create_comp_channel) createCompChannel = nullptr;
  decltype(&::ibv_destroy_comp_channel) destroyCompChannel = nullptr;
  decltype(&::ibv_create_cq) createCq = nullptr;
  decltype(&::ibv_destroy_cq) destroyCq = nullptr;
  decltype(&::ibv_get_cq_event) getCqEvent = nullptr;
  decltype(&::ibv_ack_cq_events) ackCqEvents = nullptr;
  decltype(&::ibv_create_qp) createQp = nullptr;
  decltype(&::ibv_modify_qp) modifyQp = nullptr;
  decltype(&::ibv_query_qp) queryQp = nullptr;
  decltype(&::ibv_destroy_qp) destroyQp = nullptr;
  decltype(&::ibv_create_ah) createAh = nullptr;
  decltype(&::ibv_destroy_ah) destroyAh = nullptr;
  decltype(&::ibv_init_ah_from_wc) initAhFromWc = nullptr;
  decltype(&::ibv_create_srq) createSrq = nullptr;
  decltype(&::ibv_modify_srq) modifySrq = nullptr;
  decltype(&::ibv_query_srq) querySrq = nullptr;
  decltype(&::ibv_destroy_srq) destroySrq = nullptr;
  decltype(&::ibv_attach_mcast) attachMcast = nullptr;
  decltype(&::ibv_detach_mcast) detachMcast = nullptr;
  decltype(&::ibv_get_async_event) getAsyncEvent = nullptr;
  decltype(&::ibv_ack_async_event) ackAsyncEvent = nullptr;
  // Null where the library lacks them: younger than the rest, or not needed to be a libibverbs.
  decltype(&::ibv_reg_mr_iova2) regMrIova2 = nullptr;
  decltype(&::ibv_rereg_mr) reregMr = nullptr;
  decltype(&::ibv_resize_cq) resizeCq = nullptr;
  decltype(&::ibv_query_pkey) queryPkey = nullptr;
  decltype(&::_ibv_query_gid_table) queryGidTable = nullptr;
  decltype(&::ibv_get_device_index) getDeviceIndex = nullptr;

  // The verb of verbs.h that is inline but may call an exported function.
  int queryPortAttributes(ibv_context* context, uint8_t portNum, ibv_port_attr* attributes) const;
};

// The library, opened once and kept until the process ends (provider libraries keep state in it). Throws
// QUORATE_NO_LIBRARY with what the dynamic loader said and how to install it; the next call tries again.
const Library& library();

// As above for another file name, neither cached nor prepared for fork(); for tests.
Library openLibrary(const std::string& soname);

// How often this process was made by fork() since the first object asked. Device objects that were made in another
// generation belong to the parent process: destroying them here would destroy the parent's.
unsigned forkGeneration();

}  // namespace quorate::ibverbs

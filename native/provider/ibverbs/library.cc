// Opens libibverbs and resolves its symbols; see library.h.
#include "provider/ibverbs/library.h"

#include <pthread.h>

#include <atomic>
#include <cstring>
#include <mutex>

#include "provider/shared_library.h"
#include "verbs/verbs.h"

namespace quorate::ibverbs {
namespace {

std::atomic<unsigned> g_forkGeneration{0};

constexpr char kHowToInstall[] =
    "Install it: apt-get install libibverbs1 ibverbs-providers (Debian, Ubuntu) or dnf install libibverbs (Fedora, "
    "RHEL). Without it only the shm device is available.";

}  // namespace

int Library::queryPortAttributes(ibv_context* context, uint8_t portNum, ibv_port_attr* attributes) const {
  if (verbs_context* extended = verbs_get_ctx_op(context, query_port)) {
    return extended->query_port(context, portNum, attributes, sizeof(*attributes));
  }
  std::memset(attributes, 0, sizeof(*attributes));
  return queryPort(context, portNum, reinterpret_cast<_compat_ibv_port_attr*>(attributes));
}

Library openLibrary(const std::string& soname) {
  SharedLibrary opened(soname, {"The RDMA verbs library", "libibverbs", kHowToInstall});
  Library lib;
  opened.resolve("ibv_get_device_list", &lib.getDeviceList);
  opened.resolve("ibv_free_device_list", &lib.freeDeviceList);
  opened.resolve("ibv_get_device_name", &lib.getDeviceName);
  opened.resolve("ibv_get_device_guid", &lib.getDeviceGuid);
  opened.resolve("ibv_open_device", &lib.openDevice);
  opened.resolve("ibv_close_device", &lib.closeDevice);
  opened.resolve("ibv_query_device", &lib.queryDevice);
  opened.resolve("ibv_query_port", &lib.queryPort);
  opened.resolve("ibv_fork_init", &lib.forkInit);
  opened.resolve("ibv_alloc_pd", &lib.allocPd);
  opened.resolve("ibv_dealloc_pd", &lib.deallocPd);
  opened.resolve("ibv_reg_mr", &lib.regMr);
  opened.resolve("ibv_dereg_mr", &lib.deregMr);
  opened.resolve("ibv_create_comp_channel", &lib.createCompChannel);
  opened.resolve("ibv_destroy_comp_channel", &lib.destroyCompChannel);
  opened.resolve("ibv_create_cq", &lib.createCq);
  opened.resolve("ibv_destroy_cq", &lib.destroyCq);
  opened.resolve("ibv_get_cq_event", &lib.getCqEvent);
  opened.resolve("ibv_ack_cq_events", &lib.ackCqEvents);
  opened.resolve("ibv_create_qp", &lib.createQp);
  opened.resolve("ibv_modify_qp", &lib.modifyQp);
  opened.resolve("ibv_query_qp", &lib.queryQp);
  opened.resolve("ibv_destroy_qp", &lib.destroyQp);
  opened.resolve("ibv_create_ah", &lib.createAh);
  opened.resolve("ibv_destroy_ah", &lib.destroyAh);
  opened.resolve("ibv_init_ah_from_wc", &lib.initAhFromWc);
  opened.resolve("ibv_create_srq", &lib.createSrq);
  opened.resolve("ibv_modify_srq", &lib.modifySrq);
  opened.resolve("ibv_query_srq", &lib.querySrq);
  opened.resolve("ibv_destroy_srq", &lib.destroySrq);
  opened.resolve("ibv_attach_mcast", &lib.attachMcast);
  opened.resolve("ibv_detach_mcast", &lib.detachMcast);
  opened.resolve("ibv_get_async_event", &lib.getAsyncEvent);
  opened.resolve("ibv_ack_async_event", &lib.ackAsyncEvent);
  opened.resolveOptional("ibv_reg_mr_iova2", &lib.regMrIova2);
  opened.resolveOptional("ibv_rereg_mr", &lib.reregMr);
  opened.resolveOptional("ibv_resize_cq", &lib.resizeCq);
  opened.resolveOptional("ibv_query_pkey", &lib.queryPkey);
  opened.resolveOptional("_ibv_query_gid_table", &lib.queryGidTable);
  opened.resolveOptional("ibv_get_device_index", &lib.getDeviceIndex);
  opened.keepOpen();
  return lib;
}

const Library& library() {
  static std::mutex mutex;
  static bool opened = false;
  static Library instance;
  std::lock_guard<std::mutex> lock(mutex);
  if (!opened) {
    instance = openLibrary("libibverbs.so.1");
    // Kernels before 5.12 move a page that the device has pinned away from the parent when the parent writes to it
    // after fork(): queues and registered memory silently stop being what the device sees. forkInit keeps such pages
    // out of children there and does nothing on newer kernels. It can only fail with EINVAL, when something else in
    // this process used libibverbs earlier; our own memory is kept out of children in any case (memory.cc).
    instance.forkInit();
    opened = true;
  }
  return instance;
}

unsigned forkGeneration() {
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { g_forkGeneration.fetch_add(1, std::memory_order_relaxed); });
  static_cast<void>(registered);  // ENOMEM at most, and then the next allocation fails
  return g_forkGeneration.load(std::memory_order_relaxed);
}

}  // namespace quorate::ibverbs

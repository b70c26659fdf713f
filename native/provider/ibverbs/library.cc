// Opens libibverbs and resolves its symbols; see library.h.
#include "provider/ibverbs/library.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cstring>
#include <mutex>

#include "verbs/verbs.h"

namespace quorate::ibverbs {
namespace {

std::atomic<unsigned> g_forkGeneration{0};

constexpr char kHowToInstall[] =
    "Install it: apt-get install libibverbs1 ibverbs-providers (Debian, Ubuntu) or dnf install libibverbs (Fedora, "
    "RHEL). Without it only the shm device is available.";

template <typename Function>
void resolve(void* handle, const std::string& soname, const char* symbol, bool required, Function* function) {
  dlerror();
  *function = reinterpret_cast<Function>(dlsym(handle, symbol));
  if (*function != nullptr || !required) return;
  const char* reason = dlerror();
  throw VerbsError("QUORATE_NO_LIBRARY",
                   soname + " has no symbol " + symbol + " (" + (reason != nullptr ? reason : "it is null") +
                       "), so it is not a usable libibverbs. " + kHowToInstall,
                   0, "dlsym");
}

}  // namespace

int Library::queryPortAttributes(ibv_context* context, uint8_t portNum, ibv_port_attr* attributes) const {
  if (verbs_context* extended = verbs_get_ctx_op(context, query_port)) {
    return extended->query_port(context, portNum, attributes, sizeof(*attributes));
  }
  std::memset(attributes, 0, sizeof(*attributes));
  return queryPort(context, portNum, reinterpret_cast<_compat_ibv_port_attr*>(attributes));
}

Library openLibrary(const std::string& soname) {
  void* handle = dlopen(soname.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    throw VerbsError("QUORATE_NO_LIBRARY",
                     "The RDMA verbs library " + soname + " could not be opened (" +
                         (reason != nullptr ? reason : "no reason given") + "). " + kHowToInstall,
                     0, "dlopen");
  }
  Library lib;
  try {
    resolve(handle, soname, "ibv_get_device_list", true, &lib.getDeviceList);
    resolve(handle, soname, "ibv_free_device_list", true, &lib.freeDeviceList);
    resolve(handle, soname, "ibv_get_device_name", true, &lib.getDeviceName);
    resolve(handle, soname, "ibv_get_device_guid", true, &lib.getDeviceGuid);
    resolve(handle, soname, "ibv_open_device", true, &lib.openDevice);
    resolve(handle, soname, "ibv_close_device", true, &lib.closeDevice);
    resolve(handle, soname, "ibv_query_device", true, &lib.queryDevice);
    resolve(handle, soname, "ibv_query_port", true, &lib.queryPort);
    resolve(handle, soname, "ibv_fork_init", true, &lib.forkInit);
    resolve(handle, soname, "ibv_alloc_pd", true, &lib.allocPd);
    resolve(handle, soname, "ibv_dealloc_pd", true, &lib.deallocPd);
    resolve(handle, soname, "ibv_reg_mr", true, &lib.regMr);
    resolve(handle, soname, "ibv_dereg_mr", true, &lib.deregMr);
    resolve(handle, soname, "ibv_create_comp_channel", true, &lib.createCompChannel);
    resolve(handle, soname, "ibv_destroy_comp_channel", true, &lib.destroyCompChannel);
    resolve(handle, soname, "ibv_create_cq", true, &lib.createCq);
    resolve(handle, soname, "ibv_destroy_cq", true, &lib.destroyCq);
    resolve(handle, soname, "ibv_get_cq_event", true, &lib.getCqEvent);
    resolve(handle, soname, "ibv_ack_cq_events", true, &lib.ackCqEvents);
    resolve(handle, soname, "ibv_create_qp", true, &lib.createQp);
    resolve(handle, soname, "ibv_modify_qp", true, &lib.modifyQp);
    resolve(handle, soname, "ibv_query_qp", true, &lib.queryQp);
    resolve(handle, soname, "ibv_destroy_qp", true, &lib.destroyQp);
    resolve(handle, soname, "ibv_create_ah", true, &lib.createAh);
    resolve(handle, soname, "ibv_destroy_ah", true, &lib.destroyAh);
    resolve(handle, soname, "ibv_init_ah_from_wc", true, &lib.initAhFromWc);
    resolve(handle, soname, "ibv_create_srq", true, &lib.createSrq);
    resolve(handle, soname, "ibv_modify_srq", true, &lib.modifySrq);
    resolve(handle, soname, "ibv_query_srq", true, &lib.querySrq);
    resolve(handle, soname, "ibv_destroy_srq", true, &lib.destroySrq);
    resolve(handle, soname, "ibv_attach_mcast", true, &lib.attachMcast);
    resolve(handle, soname, "ibv_detach_mcast", true, &lib.detachMcast);
    resolve(handle, soname, "ibv_get_async_event", true, &lib.getAsyncEvent);
    resolve(handle, soname, "ibv_ack_async_event", true, &lib.ackAsyncEvent);
    resolve(handle, soname, "ibv_reg_mr_iova2", false, &lib.regMrIova2);
    resolve(handle, soname, "ibv_rereg_mr", false, &lib.reregMr);
    resolve(handle, soname, "ibv_resize_cq", false, &lib.resizeCq);
    resolve(handle, soname, "ibv_query_pkey", false, &lib.queryPkey);
    resolve(handle, soname, "_ibv_query_gid_table", false, &lib.queryGidTable);
    resolve(handle, soname, "ibv_get_device_index", false, &lib.getDeviceIndex);
  } catch (...) {
    dlclose(handle);
    throw;
  }
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

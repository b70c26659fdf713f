// Opens librdmacm and resolves its symbols; see library.h.
#include "provider/rdmacm/library.h"

#include <dlfcn.h>

#include <mutex>

#include "verbs/verbs.h"

namespace quorate::rdmacm {
namespace {

constexpr char kHowToInstall[] =
    "Install it: apt-get install librdmacm1 (Debian, Ubuntu) or dnf install librdmacm (Fedora, RHEL), version 23 or "
    "later. Without it connections over RDMA devices need another way to exchange endpoints; the connection manager of "
    "the shm device works.";

template <typename Function>
void resolve(void* handle, const std::string& soname, const char* symbol, Function* function) {
  dlerror();
  *function = reinterpret_cast<Function>(dlsym(handle, symbol));
  if (*function != nullptr) return;
  const char* reason = dlerror();
  throw VerbsError("QUORATE_NO_LIBRARY",
                   soname + " has no symbol " + symbol + " (" + (reason != nullptr ? reason : "it is null") +
                       "), so it is not a usable librdmacm. " + kHowToInstall,
                   0, "dlsym");
}

}  // namespace

Library openLibrary(const std::string& soname) {
  void* handle = dlopen(soname.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    throw VerbsError("QUORATE_NO_LIBRARY",
                     "The RDMA connection manager's library " + soname + " could not be opened (" +
                         (reason != nullptr ? reason : "no reason given") + "). " + kHowToInstall,
                     0, "dlopen");
  }
  Library lib;
  try {
    resolve(handle, soname, "rdma_create_event_channel", &lib.createEventChannel);
    resolve(handle, soname, "rdma_destroy_event_channel", &lib.destroyEventChannel);
    resolve(handle, soname, "rdma_create_id", &lib.createId);
    resolve(handle, soname, "rdma_destroy_id", &lib.destroyId);
    resolve(handle, soname, "rdma_bind_addr", &lib.bindAddr);
    resolve(handle, soname, "rdma_resolve_addr", &lib.resolveAddr);
    resolve(handle, soname, "rdma_resolve_route", &lib.resolveRoute);
    resolve(handle, soname, "rdma_connect", &lib.connect);
    resolve(handle, soname, "rdma_establish", &lib.establish);
    resolve(handle, soname, "rdma_listen", &lib.listen);
    resolve(handle, soname, "rdma_accept", &lib.accept);
    resolve(handle, soname, "rdma_reject", &lib.reject);
    resolve(handle, soname, "rdma_disconnect", &lib.disconnect);
    resolve(handle, soname, "rdma_get_cm_event", &lib.getCmEvent);
    resolve(handle, soname, "rdma_ack_cm_event", &lib.ackCmEvent);
    resolve(handle, soname, "rdma_init_qp_attr", &lib.initQpAttr);
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
    instance = openLibrary("librdmacm.so.1");
    opened = true;
  }
  return instance;
}

}  // namespace quorate::rdmacm

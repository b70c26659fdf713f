// Opens librdmacm and resolves its symbols; see library.h.
#include "provider/rdmacm/library.h"

#include <mutex>

#include "provider/shared_library.h"

namespace quorate::rdmacm {
namespace {

constexpr char kHowToInstall[] =
    "Install it: apt-get install librdmacm1 (Debian, Ubuntu) or dnf install librdmacm (Fedora, RHEL), version 23 or "
    "later. Without it connections over RDMA devices need another way to exchange endpoints; the connection manager of "
    "the shm device works.";

}  // namespace

Library openLibrary(const std::string& soname) {
  SharedLibrary opened(soname, {"The RDMA connection manager's library", "librdmacm", kHowToInstall});
  Library lib;
  opened.resolve("rdma_create_event_channel", &lib.createEventChannel);
  opened.resolve("rdma_destroy_event_channel", &lib.destroyEventChannel);
  opened.resolve("rdma_create_id", &lib.createId);
  opened.resolve("rdma_destroy_id", &lib.destroyId);
  opened.resolve("rdma_bind_addr", &lib.bindAddr);
  opened.resolve("rdma_resolve_addr", &lib.resolveAddr);
  opened.resolve("rdma_resolve_route", &lib.resolveRoute);
  opened.resolve("rdma_connect", &lib.connect);
  opened.resolve("rdma_establish", &lib.establish);
  opened.resolve("rdma_listen", &lib.listen);
  opened.resolve("rdma_accept", &lib.accept);
  opened.resolve("rdma_reject", &lib.reject);
  opened.resolve("rdma_disconnect", &lib.disconnect);
  opened.resolve("rdma_get_cm_event", &lib.getCmEvent);
  opened.resolve("rdma_ack_cm_event", &lib.ackCmEvent);
  opened.resolve("rdma_init_qp_attr", &lib.initQpAttr);
  opened.keepOpen();
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

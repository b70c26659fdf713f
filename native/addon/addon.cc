// The entry point of the addon. It may be loaded by the main thread and any number of workers.
#include <dlfcn.h>

#include "addon/environment.h"

namespace {

// Node.js unloads an addon with its last environment (a worker that was the only one to load it). Threads of a provider
// and handlers registered with atexit(3) may still refer to this code then, so it stays mapped.
void keepLoaded() {
  Dl_info self{};
  if (dladdr(reinterpret_cast<const void*>(&keepLoaded), &self) != 0 && self.dli_fname != nullptr) {
    dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
  }
}

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  static const bool kept = (keepLoaded(), true);
  (void)kept;
  quorate::addon::Environment::attach(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(quorate, initialize)

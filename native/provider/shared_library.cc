// See shared_library.h.
#include "provider/shared_library.h"

#include <dlfcn.h>

#include <utility>

#include "verbs/verbs.h"

namespace quorate {

SharedLibrary::SharedLibrary(std::string soname, Description description)
    : soname_(std::move(soname)),
      description_(std::move(description)),
      handle_(dlopen(soname_.c_str(), RTLD_NOW | RTLD_LOCAL)) {
  if (handle_ != nullptr) return;
  const char* reason = dlerror();
  throw VerbsError("QUORATE_NO_LIBRARY",
                   description_.title + " " + soname_ + " could not be opened (" +
                       (reason != nullptr ? reason : "no reason given") + "). " + description_.howToInstall,
                   0, "dlopen");
}

SharedLibrary::~SharedLibrary() {
  if (handle_ != nullptr) dlclose(handle_);
}

void* SharedLibrary::find(const char* symbol) const { return dlsym(handle_, symbol); }

void* SharedLibrary::required(const char* symbol) const {
  dlerror();
  void* const address = find(symbol);
  if (address != nullptr) return address;
  const char* reason = dlerror();
  throw VerbsError("QUORATE_NO_LIBRARY",
                   soname_ + " has no symbol " + symbol + " (" + (reason != nullptr ? reason : "it is null") +
                       "), so it is not a usable " + description_.name + ". " + description_.howToInstall,
                   0, "dlsym");
}

}  // namespace quorate

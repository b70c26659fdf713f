// See lifecycle.h.
#include "provider/ibverbs/lifecycle.h"

#include <cstdio>

namespace quorate::ibverbs {

void closeInDestructor(VerbsObject* object, std::vector<std::shared_ptr<VerbsObject>> stillInUse) {
  try {
    object->close();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "quorate: a %s was dropped and could not be closed; what it uses is kept. %s\n",
                 object->kind(), error.what());
    static std::mutex mutex;
    // Never freed: at exit the device is still using it.
    static auto* const keptForEver = new std::vector<std::shared_ptr<VerbsObject>>();
    std::lock_guard<std::mutex> lock(mutex);
    for (std::shared_ptr<VerbsObject>& one : stillInUse) keptForEver->push_back(std::move(one));
  }
}

}  // namespace quorate::ibverbs

// See memory_ranges.h.
#include "addon/memory_ranges.h"

#include <map>
#include <mutex>

namespace quorate::addon {

namespace {

struct Ranges {
  std::mutex mutex;
  std::map<uint64_t, std::weak_ptr<Memory>> byAddress;
};

Ranges& ranges() {
  static auto* instance = new Ranges;  // never destroyed: threads may still run when static destructors do
  return *instance;
}

}  // namespace

void rememberMemoryRange(const std::shared_ptr<Memory>& memory) {
  Ranges& all = ranges();
  std::lock_guard<std::mutex> lock(all.mutex);
  for (auto entry = all.byAddress.begin(); entry != all.byAddress.end();) {
    entry = entry->second.expired() ? all.byAddress.erase(entry) : std::next(entry);
  }
  all.byAddress[reinterpret_cast<uintptr_t>(memory->data())] = memory;
}

std::shared_ptr<Memory> memoryHolding(uint64_t address, uint64_t length) {
  Ranges& all = ranges();
  std::lock_guard<std::mutex> lock(all.mutex);
  auto after = all.byAddress.upper_bound(address);
  if (after == all.byAddress.begin()) return nullptr;
  const auto& [start, weak] = *std::prev(after);
  std::shared_ptr<Memory> memory = weak.lock();
  if (memory == nullptr || length > memory->length() || address - start > memory->length() - length) return nullptr;
  return memory;
}

}  // namespace quorate::addon

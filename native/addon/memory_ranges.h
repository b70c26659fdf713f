// The address ranges of all memory that the addon gave out. An inline request carries no lkey: the provider copies from
// the address as it is, and an address that came from JavaScript could be anything. It is looked up here first.
#pragma once

#include <cstdint>
#include <memory>

#include "verbs/verbs.h"

namespace quorate::addon {

void rememberMemoryRange(const std::shared_ptr<Memory>& memory);
// The memory that holds all of [address, address + length), nullptr if there is none. The caller keeps it while it
// uses the range.
std::shared_ptr<Memory> memoryHolding(uint64_t address, uint64_t length);

}  // namespace quorate::addon

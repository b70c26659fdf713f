// What dead processes left in the directory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "provider/shm/directory.h"
#include "provider/shm/process_identity.h"

namespace quorate::shm {

struct QueuePairSlot;

// The name of a control segment that `opener` is about to make.
std::string unreadyName(uint64_t hcaId, const ProcessIdentity& opener);

// The HCA instances that have files here, alive or not.
std::vector<uint64_t> instancesIn(const ShmDirectory& directory);

// Removes the files of HCA instances whose process is provably dead, never those of a running or stopped one. Before
// that it closes their queue pairs, so that a requester which was in the middle of an operation on them does not
// report success. Returns how many instances were removed.
int removeLeftovers(const ShmDirectory& directory);

}  // namespace quorate::shm

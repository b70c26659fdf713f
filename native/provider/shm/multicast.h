// Multicast groups of the shm provider: each instance lists in its control segment which of its UD queue pairs are
// attached to which group; a sender looks through the lists of all instances of its directory.
#pragma once

#include <cstdint>

#include "provider/shm/layout.h"
#include "verbs/verbs.h"

namespace quorate::shm {

constexpr uint32_t kMulticastQueuePair = 0xffffff;  // what a request to a group names as its destination

// ff..., or ::ffff:224.0.0.0 to ::ffff:239.255.255.255, as RoCE v2 over IPv4 has them.
bool isMulticast(const Gid& gid);
bool isMember(const MulticastEntry& entry, const Gid& group);

}  // namespace quorate::shm

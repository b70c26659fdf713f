// What the address handles of both providers share: closing one waits for the posts that look at it.
#include <sched.h>

#include "verbs/verbs.h"

namespace quorate {

void AddressHandle::shut() {
  users_.fetch_or(kClosedBit, std::memory_order_acq_rel);
  // A post looks at a handle for well under a microsecond.
  while ((users_.load(std::memory_order_acquire) & ~kClosedBit) != 0) sched_yield();
}

}  // namespace quorate

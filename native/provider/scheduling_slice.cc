// See scheduling_slice.h.
#include "provider/scheduling_slice.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace quorate {

namespace {

// struct sched_attr of sched_setattr(2), first version; the C library has neither the call nor the type.
struct SchedulingAttributes {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
};

}  // namespace

bool setSchedulingSlice(uint64_t slice_ns) {
  SchedulingAttributes attributes{};
  attributes.size = sizeof(attributes);
  if (::syscall(SYS_sched_getattr, 0, &attributes, sizeof(attributes), 0) != 0) return false;
  // Real-time policies have no slice of this kind, and nothing to gain from one.
  if (attributes.policy != SCHED_OTHER && attributes.policy != SCHED_BATCH) return false;
  attributes.runtime = slice_ns;
  if (::syscall(SYS_sched_setattr, 0, &attributes, 0) != 0) return false;
  // Kernels that know no slice of a thread accept the call and ignore it.
  attributes.runtime = 0;
  return ::syscall(SYS_sched_getattr, 0, &attributes, sizeof(attributes), 0) == 0 && attributes.runtime == slice_ns;
}

}  // namespace quorate

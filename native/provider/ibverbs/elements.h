// Scatter/gather elements of work requests, as the device takes them.
#pragma once

#include <infiniband/verbs.h>

#include <cstddef>
#include <cstdint>

#include "verbs/verbs.h"

namespace quorate::ibverbs {

static_assert(sizeof(Sge) == sizeof(ibv_sge) && offsetof(Sge, address) == offsetof(ibv_sge, addr) &&
              offsetof(Sge, length) == offsetof(ibv_sge, length) && offsetof(Sge, lkey) == offsetof(ibv_sge, lkey));

// Does the request hold to what verbs.h says of several elements, and are they no more than `most`?
template <typename Request>
bool soundElements(const Request& request, uint32_t most) {
  if (request.sgeCount == 0) [[likely]]
    return true;
  if (request.sgeCount == 1 || request.sgeCount > most) return false;
  uint64_t sum = 0;
  for (uint32_t i = 0; i < request.sgeCount; i++) sum += request.sges[i].length;
  return sum == request.length;
}

// `single` is used, and must live, if the request has one buffer.
template <typename Request>
ibv_sge* elementsOf(const Request& request, ibv_sge* single, int* count) {
  if (request.sgeCount == 0) [[likely]] {
    *single = {request.localAddress, request.length, request.lkey};
    *count = request.length == 0 ? 0 : 1;
    return single;
  }
  *count = static_cast<int>(request.sgeCount);
  return reinterpret_cast<ibv_sge*>(const_cast<Sge*>(request.sges));  // the device's libraries only read it
}

}  // namespace quorate::ibverbs

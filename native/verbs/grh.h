// The global routing header of a UD message (InfiniBand specification, 8.3): 40 bytes in the form of an IPv6 header. On
// RoCE v2 over IPv4 the last 20 of them are the IPv4 header instead.
#pragma once

#include <cstdint>

#include "verbs/verbs.h"

namespace quorate {

constexpr uint8_t kGrhNextHeader = 0x1b;  // an InfiniBand transport header follows

struct Grh {
  uint8_t trafficClass = 0;
  uint32_t flowLabel = 0;      // 20 bits
  uint16_t payloadLength = 0;  // bytes
  uint8_t hopLimit = 0;
  Gid sgid, dgid;
};

void writeGrh(const Grh& grh, uint8_t* to);   // kGrhBytes
bool readGrh(const uint8_t* from, Grh* grh);  // false if it is not one in the form of IPv6

}  // namespace quorate

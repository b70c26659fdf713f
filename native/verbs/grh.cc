// See grh.h.
#include "verbs/grh.h"

#include <cstring>

namespace quorate {

void writeGrh(const Grh& grh, uint8_t* to) {
  const uint32_t first = 6u << 28 | uint32_t{grh.trafficClass} << 20 | (grh.flowLabel & 0xfffff);
  for (int i = 0; i < 4; i++) to[i] = static_cast<uint8_t>(first >> (24 - 8 * i));
  to[4] = static_cast<uint8_t>(grh.payloadLength >> 8);
  to[5] = static_cast<uint8_t>(grh.payloadLength);
  to[6] = kGrhNextHeader;
  to[7] = grh.hopLimit;
  std::memcpy(to + 8, grh.sgid.raw, sizeof(grh.sgid.raw));
  std::memcpy(to + 24, grh.dgid.raw, sizeof(grh.dgid.raw));
}

bool readGrh(const uint8_t* from, Grh* grh) {
  if (from[0] >> 4 != 6) return false;
  grh->trafficClass = static_cast<uint8_t>(from[0] << 4 | from[1] >> 4);
  grh->flowLabel = (uint32_t{from[1]} & 0xf) << 16 | uint32_t{from[2]} << 8 | from[3];
  grh->payloadLength = static_cast<uint16_t>(from[4] << 8 | from[5]);
  grh->hopLimit = from[7];
  std::memcpy(grh->sgid.raw, from + 8, sizeof(grh->sgid.raw));
  std::memcpy(grh->dgid.raw, from + 24, sizeof(grh->dgid.raw));
  return true;
}

}  // namespace quorate

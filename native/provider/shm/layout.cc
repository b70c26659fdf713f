// GIDs of the shm provider.
#include "provider/shm/layout.h"

#include <cstring>

namespace quorate::shm {
namespace {

constexpr uint8_t kPrefix[8] = {0xfd, 'q', 's', 'h', 'm', 0, 0, 1};

}  // namespace

Gid makeGid(uint64_t hcaId) {
  Gid gid;
  std::memcpy(gid.raw, kPrefix, sizeof(kPrefix));
  for (int i = 0; i < 8; i++) gid.raw[8 + i] = static_cast<uint8_t>(hcaId >> (56 - 8 * i));
  return gid;
}

bool parseGid(const Gid& gid, uint64_t* hcaId) {
  if (std::memcmp(gid.raw, kPrefix, sizeof(kPrefix)) != 0) return false;
  *hcaId = 0;
  for (int i = 0; i < 8; i++) *hcaId = *hcaId << 8 | gid.raw[8 + i];
  return true;
}

}  // namespace quorate::shm

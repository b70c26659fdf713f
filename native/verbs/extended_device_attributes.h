// What ibv_query_device_ex(3) says of a device beyond DeviceAttributes: limits of features that few programs use, and
// capabilities. Numbers are the device's own, bits those of <infiniband/verbs.h>; 0 where a provider has no such thing.
#pragma once

#include <cstdint>

namespace quorate {

struct ExtendedDeviceAttributes {
  int maxSgeRd = 0, maxEeRdAtom = 0, maxEeInitRdAtom = 0, maxEe = 0, maxRdd = 0;
  int maxRawIpv6Qp = 0, maxRawEthyQp = 0, maxMcastQpAttach = 0, maxTotalMcastQpAttach = 0;
  int maxFmr = 0, maxMapPerFmr = 0, maxSrqSge = 0, localCaAckDelay = 0;

  uint64_t odpGeneralCaps = 0;
  uint32_t rcOdpCaps = 0, ucOdpCaps = 0, udOdpCaps = 0, xrcOdpCaps = 0;
  uint64_t completionTimestampMask = 0, hcaCoreClockKhz = 0, deviceCapFlagsEx = 0;
  uint32_t tsoMaxBytes = 0, tsoSupportedQpts = 0;
  uint32_t rssSupportedQpts = 0, rssMaxIndirectionTables = 0, rssMaxIndirectionTableSize = 0, rssHashFunction = 0;
  uint64_t rssHashFieldsMask = 0;
  uint32_t maxWqTypeRq = 0, rawPacketCaps = 0;
  uint32_t pacingMinKbps = 0, pacingMaxKbps = 0, pacingSupportedQpts = 0;
  uint32_t tmMaxRendezvousHeaderBytes = 0, tmMaxTags = 0, tmFlags = 0, tmMaxOps = 0, tmMaxSge = 0;
  uint32_t cqModerationMaxCount = 0, cqModerationMaxPeriodUs = 0;
  uint64_t maxDeviceMemoryBytes = 0;
  int numCompVectors = 0;
};

}  // namespace quorate

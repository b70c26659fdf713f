// See extended_device_attributes.h.
#include "addon/extended_device_attributes.h"

#include <utility>

namespace quorate::addon {

Napi::Object extendedDeviceAttributesObject(Napi::Env env, const ExtendedDeviceAttributes& a) {
  Napi::Object object = Napi::Object::New(env);
  const std::pair<const char*, double> numbers[] = {
      {"maxSgeRd", a.maxSgeRd},
      {"numCompVectors", a.numCompVectors},
      {"maxEeRdAtom", a.maxEeRdAtom},
      {"maxEeInitRdAtom", a.maxEeInitRdAtom},
      {"maxEe", a.maxEe},
      {"maxRdd", a.maxRdd},
      {"maxRawIpv6Qp", a.maxRawIpv6Qp},
      {"maxRawEthyQp", a.maxRawEthyQp},
      {"maxMcastQpAttach", a.maxMcastQpAttach},
      {"maxTotalMcastQpAttach", a.maxTotalMcastQpAttach},
      {"maxFmr", a.maxFmr},
      {"maxMapPerFmr", a.maxMapPerFmr},
      {"maxSrqSge", a.maxSrqSge},
      {"localCaAckDelay", a.localCaAckDelay},
      {"rcOdpCaps", a.rcOdpCaps},
      {"ucOdpCaps", a.ucOdpCaps},
      {"udOdpCaps", a.udOdpCaps},
      {"xrcOdpCaps", a.xrcOdpCaps},
      {"tsoMaxBytes", a.tsoMaxBytes},
      {"tsoSupportedQpts", a.tsoSupportedQpts},
      {"rssSupportedQpts", a.rssSupportedQpts},
      {"rssMaxIndirectionTables", a.rssMaxIndirectionTables},
      {"rssMaxIndirectionTableSize", a.rssMaxIndirectionTableSize},
      {"rssHashFunction", a.rssHashFunction},
      {"maxWqTypeRq", a.maxWqTypeRq},
      {"rawPacketCaps", a.rawPacketCaps},
      {"pacingMinKbps", a.pacingMinKbps},
      {"pacingMaxKbps", a.pacingMaxKbps},
      {"pacingSupportedQpts", a.pacingSupportedQpts},
      {"tmMaxRendezvousHeaderBytes", a.tmMaxRendezvousHeaderBytes},
      {"tmMaxTags", a.tmMaxTags},
      {"tmFlags", a.tmFlags},
      {"tmMaxOps", a.tmMaxOps},
      {"tmMaxSge", a.tmMaxSge},
      {"cqModerationMaxCount", a.cqModerationMaxCount},
      {"cqModerationMaxPeriodUs", a.cqModerationMaxPeriodUs},
  };
  for (const auto& [name, value] : numbers) object.Set(name, Napi::Number::New(env, value));
  const std::pair<const char*, uint64_t> large[] = {
      {"odpGeneralCaps", a.odpGeneralCaps},       {"completionTimestampMask", a.completionTimestampMask},
      {"hcaCoreClockKhz", a.hcaCoreClockKhz},     {"deviceCapFlagsEx", a.deviceCapFlagsEx},
      {"rssHashFieldsMask", a.rssHashFieldsMask}, {"maxDeviceMemoryBytes", a.maxDeviceMemoryBytes},
  };
  for (const auto& [name, value] : large) object.Set(name, Napi::BigInt::New(env, value));
  return object;
}

}  // namespace quorate::addon

// ibv_query_device_ex(3), see verbs/extended_device_attributes.h.
#include <cerrno>
#include <cstring>

#include "provider/ibverbs/context.h"
#include "provider/ibverbs/errors.h"

namespace quorate::ibverbs {

ExtendedDeviceAttributes IbvContext::queryDeviceExtended() {
  const auto lock = lifecycle_.use();
  ibv_device_attr_ex raw;
  std::memset(&raw, 0, sizeof(raw));
  // As the inline verb does; without the operation what it would have said stays 0.
  verbs_context* extended = verbs_get_ctx_op(handle_, query_device_ex);
  int errnum = extended == nullptr ? EOPNOTSUPP : extended->query_device_ex(handle_, nullptr, &raw, sizeof(raw));
  if (errnum == EOPNOTSUPP || errnum == ENOSYS) {
    std::memset(&raw, 0, sizeof(raw));
    errnum = lib_.queryDevice(handle_, &raw.orig_attr);
  }
  if (errnum != 0) throwSystemError("ibv_query_device_ex", errnum, "Querying the device " + info_.name, "");
  const ibv_device_attr& first = raw.orig_attr;
  ExtendedDeviceAttributes a;
  a.maxSgeRd = first.max_sge_rd;
  a.maxEeRdAtom = first.max_ee_rd_atom;
  a.maxEeInitRdAtom = first.max_ee_init_rd_atom;
  a.maxEe = first.max_ee;
  a.maxRdd = first.max_rdd;
  a.maxRawIpv6Qp = first.max_raw_ipv6_qp;
  a.maxRawEthyQp = first.max_raw_ethy_qp;
  a.maxMcastQpAttach = first.max_mcast_qp_attach;
  a.maxTotalMcastQpAttach = first.max_total_mcast_qp_attach;
  a.maxFmr = first.max_fmr;
  a.maxMapPerFmr = first.max_map_per_fmr;
  a.maxSrqSge = first.max_srq_sge;
  a.localCaAckDelay = first.local_ca_ack_delay;
  a.odpGeneralCaps = raw.odp_caps.general_caps;
  a.rcOdpCaps = raw.odp_caps.per_transport_caps.rc_odp_caps;
  a.ucOdpCaps = raw.odp_caps.per_transport_caps.uc_odp_caps;
  a.udOdpCaps = raw.odp_caps.per_transport_caps.ud_odp_caps;
  a.xrcOdpCaps = raw.xrc_odp_caps;
  a.completionTimestampMask = raw.completion_timestamp_mask;
  a.hcaCoreClockKhz = raw.hca_core_clock;
  a.deviceCapFlagsEx = raw.device_cap_flags_ex;
  a.tsoMaxBytes = raw.tso_caps.max_tso;
  a.tsoSupportedQpts = raw.tso_caps.supported_qpts;
  a.rssSupportedQpts = raw.rss_caps.supported_qpts;
  a.rssMaxIndirectionTables = raw.rss_caps.max_rwq_indirection_tables;
  a.rssMaxIndirectionTableSize = raw.rss_caps.max_rwq_indirection_table_size;
  a.rssHashFunction = raw.rss_caps.rx_hash_function;
  a.rssHashFieldsMask = raw.rss_caps.rx_hash_fields_mask;
  a.maxWqTypeRq = raw.max_wq_type_rq;
  a.rawPacketCaps = raw.raw_packet_caps;
  a.pacingMinKbps = raw.packet_pacing_caps.qp_rate_limit_min;
  a.pacingMaxKbps = raw.packet_pacing_caps.qp_rate_limit_max;
  a.pacingSupportedQpts = raw.packet_pacing_caps.supported_qpts;
  a.tmMaxRendezvousHeaderBytes = raw.tm_caps.max_rndv_hdr_size;
  a.tmMaxTags = raw.tm_caps.max_num_tags;
  a.tmFlags = raw.tm_caps.flags;
  a.tmMaxOps = raw.tm_caps.max_ops;
  a.tmMaxSge = raw.tm_caps.max_sge;
  a.cqModerationMaxCount = raw.cq_mod_caps.max_cq_count;
  a.cqModerationMaxPeriodUs = raw.cq_mod_caps.max_cq_period;
  a.maxDeviceMemoryBytes = raw.max_dm_size;
  a.numCompVectors = handle_->num_comp_vectors;
  return a;
}

}  // namespace quorate::ibverbs

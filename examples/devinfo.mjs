// Devices and their ports, as ibv_devinfo of ibverbs-utils prints them (and the shm device, which that does not know).
//
//   node examples/devinfo.mjs [-v] [-d DEVICE] [-i PORT]      -v: all attributes
//   node examples/devinfo.mjs -l                              names only
import { readFileSync } from 'node:fs';
import { GidType, gidToIpv4, listDevices, openDevice } from 'quorate/verbs';
import { readArguments, refuse, wholeNumber } from './support/options.mjs';

const { values } = readArguments(import.meta.url, {
  options: {
    'ib-dev': { type: 'string', short: 'd' },
    'ib-port': { type: 'string', short: 'i' },
    list: { type: 'boolean', short: 'l', default: false },
    verbose: { type: 'boolean', short: 'v', default: false },
  },
});

/** @type {(names: Record<number, string>, value: number, unknown: string) => string} */
const named = (names, value, unknown) => `${names[value] ?? unknown} (${value})`;
/** @type {(value: number | bigint, digits?: number) => string} */
const hex = (value, digits = 0) => `0x${value.toString(16).padStart(digits, '0')}`;
/** @type {(value: number | bigint) => string} */
const upperHex = (value) => `0x${value.toString(16).toUpperCase()}`;
const print = (/** @type {string} */ line) => process.stdout.write(`${line}\n`);
/** A name and a value, aligned as ibv_devinfo does it with tabs. @type {(indent: number, name: string, value: string | number, width?: number) => void} */
const field = (indent, name, value, width = 32) => {
  const label = `${name}:`;
  print(`${'\t'.repeat(indent)}${label}${'\t'.repeat(Math.max(1, Math.ceil((width - label.length) / 8)))}${value}`);
};

/** Bits of device_cap_flags that have names. */
const CAP_FLAGS = {
  RESIZE_MAX_WR: 0,
  BAD_PKEY_CNTR: 1,
  BAD_QKEY_CNTR: 2,
  RAW_MULTI: 3,
  AUTO_PATH_MIG: 4,
  CHANGE_PHY_PORT: 5,
  UD_AV_PORT_ENFORCE: 6,
  CURR_QP_STATE_MOD: 7,
  SHUTDOWN_PORT: 8,
  INIT_TYPE: 9,
  PORT_ACTIVE_EVENT: 10,
  SYS_IMAGE_GUID: 11,
  RC_RNR_NAK_GEN: 12,
  SRQ_RESIZE: 13,
  N_NOTIFY_CQ: 14,
  MEM_WINDOW: 17,
  UD_IP_CSUM: 18,
  XRC: 20,
  MEM_MGT_EXTENSIONS: 21,
  MEM_WINDOW_TYPE_2A: 23,
  MEM_WINDOW_TYPE_2B: 24,
  RC_IP_CSUM: 25,
  RAW_IP_CSUM: 26,
  MANAGED_FLOW_STEERING: 29,
};
const CAP_FLAGS_EX = { RAW_SCATTER_FCS: 34, PCI_WRITE_END_PADDING: 36 };
const ODP_CAPS = { ODP_SUPPORT: 0, ODP_SUPPORT_IMPLICIT: 1 };
const ODP_TRANSPORT_CAPS = {
  SUPPORT_SEND: 0,
  SUPPORT_RECV: 1,
  SUPPORT_WRITE: 2,
  SUPPORT_READ: 3,
  SUPPORT_ATOMIC: 4,
  SUPPORT_SRQ: 5,
};
const OFFLOAD_QPTS = { SUPPORT_RAW_PACKET: 8, SUPPORT_UD: 4 };
const RAW_PACKET_CAPS = {
  'C-VLAN stripping offload': 0,
  'Scatter FCS offload': 1,
  'IP csum offload': 2,
  'Delay drop': 3,
};

/** The names of the bits that are set, one per line. @type {(names: Record<string, number>, bits: number | bigint) => void} */
function printBits(names, bits) {
  let rest = BigInt(bits);
  for (const [name, position] of Object.entries(names)) {
    const bit = 1n << BigInt(position);
    if ((rest & bit) === 0n) continue;
    print(`\t\t\t\t\t${name}`);
    rest &= ~bit;
  }
  if (rest !== 0n) print(`\t\t\t\t\tUnknown flags: ${upperHex(rest)}`);
}

const TRANSPORTS = { InfiniBand: 0, iWARP: 1, usNIC: 2, 'usNIC UDP': 3 };
const ATOMIC_CAPS = { 0: 'ATOMIC_NONE', 1: 'ATOMIC_HCA', 2: 'ATOMIC_GLOB' };
const PORT_STATES = { 1: 'PORT_DOWN', 2: 'PORT_INIT', 3: 'PORT_ARMED', 4: 'PORT_ACTIVE' };
const VIRTUAL_LANES = { 1: '1', 2: '2', 3: '4', 4: '8', 5: '15' };
const WIDTHS = { 1: '1X', 2: '4X', 4: '8X', 8: '12X', 16: '2X' };
const SPEEDS = {
  1: '2.5 Gbps',
  2: '5.0 Gbps',
  4: '10.0 Gbps',
  8: '10.0 Gbps',
  16: '14.0 Gbps',
  32: '25.0 Gbps',
  64: '50.0 Gbps',
  128: '100.0 Gbps',
};
const PHYSICAL_STATES = {
  1: 'SLEEP',
  2: 'POLLING',
  3: 'DISABLED',
  4: 'PORT_CONFIGURATION TRAINNING', // sic, in ibv_devinfo
  5: 'LINK_UP',
  6: 'LINK_ERROR_RECOVERY',
  7: 'PHY TEST',
};

/** @type {(bytes: number) => string} */
const mtu = (bytes) => (bytes >= 256 ? `${bytes} (${Math.log2(bytes) - 7})` : `invalid MTU (${bytes})`);

/** RoCE v2 GIDs are shown as the IPv6 addresses they are. @type {(entry: import('quorate/verbs').GidEntry) => string} */
function gidText({ gid, type }) {
  if (type === GidType.ROCE_V1) return `${gid}, RoCE v1`;
  if (type !== GidType.ROCE_V2) return gid;
  const ipv4 = gidToIpv4(gid);
  const ipv6 = ipv4 === undefined ? new URL(`http://[${gid}]`).hostname.slice(1, -1) : `::ffff:${ipv4}`;
  return `${ipv6}, RoCE v2`;
}

function boardId(/** @type {string} */ device) {
  try {
    return readFileSync(`/sys/class/infiniband/${device}/board_id`, 'utf8').trim();
  } catch {
    return undefined; // most software devices have none
  }
}

/** @type {(context: import('quorate/verbs').Context) => void} */
function printAttributes(context) {
  const device = context.queryDevice();
  const more = context.queryDeviceExtended();
  field(1, 'max_mr_size', hex(device.maxMrSize));
  field(1, 'page_size_cap', hex(device.pageSizeCap));
  field(1, 'max_qp', device.maxQp);
  field(1, 'max_qp_wr', device.maxQpWr);
  field(1, 'device_cap_flags', hex(device.deviceCapFlags, 8));
  printBits(CAP_FLAGS, device.deviceCapFlags);
  field(1, 'max_sge', device.maxSge);
  field(1, 'max_sge_rd', more.maxSgeRd);
  field(1, 'max_cq', device.maxCq);
  field(1, 'max_cqe', device.maxCqe);
  field(1, 'max_mr', device.maxMr);
  field(1, 'max_pd', device.maxPd);
  field(1, 'max_qp_rd_atom', device.maxQpRdAtom);
  field(1, 'max_ee_rd_atom', more.maxEeRdAtom);
  field(1, 'max_res_rd_atom', device.maxResRdAtom);
  field(1, 'max_qp_init_rd_atom', device.maxQpInitRdAtom);
  field(1, 'max_ee_init_rd_atom', more.maxEeInitRdAtom);
  field(1, 'atomic_cap', named(ATOMIC_CAPS, device.atomicCap, 'invalid atomic capability'));
  field(1, 'max_ee', more.maxEe);
  field(1, 'max_rdd', more.maxRdd);
  field(1, 'max_mw', device.maxMw);
  field(1, 'max_raw_ipv6_qp', more.maxRawIpv6Qp);
  field(1, 'max_raw_ethy_qp', more.maxRawEthyQp);
  field(1, 'max_mcast_grp', device.maxMcastGrp);
  field(1, 'max_mcast_qp_attach', more.maxMcastQpAttach);
  field(1, 'max_total_mcast_qp_attach', more.maxTotalMcastQpAttach);
  field(1, 'max_ah', device.maxAh);
  field(1, 'max_fmr', more.maxFmr);
  if (more.maxFmr !== 0) field(1, 'max_map_per_fmr', more.maxMapPerFmr);
  field(1, 'max_srq', device.maxSrq);
  if (device.maxSrq !== 0) {
    field(1, 'max_srq_wr', device.maxSrqWr);
    field(1, 'max_srq_sge', more.maxSrqSge);
  }
  field(1, 'max_pkeys', device.maxPkeys);
  field(1, 'local_ca_ack_delay', more.localCaAckDelay);
  print('\tgeneral_odp_caps:');
  printBits(ODP_CAPS, more.odpGeneralCaps);
  for (const transport of /** @type {const} */ (['rc', 'uc', 'ud', 'xrc'])) {
    print(`\t${transport}_odp_caps:`);
    const bits = more[`${transport}OdpCaps`];
    if (bits === 0) print('\t\t\t\t\tNO SUPPORT');
    else printBits(ODP_TRANSPORT_CAPS, bits);
  }
  if (more.completionTimestampMask === 0n) print('\tcompletion_timestamp_mask not supported');
  else field(1, 'completion timestamp_mask', hex(more.completionTimestampMask, 16));
  if (more.hcaCoreClockKhz === 0n) print('\tcore clock not supported');
  else field(1, 'hca_core_clock', `${more.hcaCoreClockKhz}kHZ`);
  if (more.rawPacketCaps !== 0) {
    print('\traw packet caps:');
    printBits(RAW_PACKET_CAPS, more.rawPacketCaps);
  }
  field(1, 'device_cap_flags_ex', upperHex(more.deviceCapFlagsEx));
  printBits(CAP_FLAGS_EX, more.deviceCapFlagsEx & 0xffffffff00000000n);
  print('\ttso_caps:');
  field(2, 'max_tso', more.tsoMaxBytes);
  if (more.tsoMaxBytes !== 0) {
    print('\t\tsupported_qp:');
    printBits(OFFLOAD_QPTS, more.tsoSupportedQpts);
  }
  print('\trss_caps:');
  field(2, 'max_rwq_indirection_tables', more.rssMaxIndirectionTables, 48);
  field(2, 'max_rwq_indirection_table_size', more.rssMaxIndirectionTableSize, 48);
  field(2, 'rx_hash_function', hex(more.rssHashFunction), 48);
  field(2, 'rx_hash_fields_mask', upperHex(more.rssHashFieldsMask), 48);
  if (more.rssSupportedQpts !== 0) {
    print('\t\tsupported_qp:');
    printBits(OFFLOAD_QPTS, more.rssSupportedQpts);
  }
  field(1, 'max_wq_type_rq', more.maxWqTypeRq);
  print('\tpacket_pacing_caps:');
  field(2, 'qp_rate_limit_min', `${more.pacingMinKbps}kbps`, 24);
  field(2, 'qp_rate_limit_max', `${more.pacingMaxKbps}kbps`, 24);
  if (more.pacingMaxKbps !== 0) {
    print('\t\tsupported_qp:');
    printBits(OFFLOAD_QPTS, more.pacingSupportedQpts);
  }
  if (more.tmMaxTags === 0) {
    print('\ttag matching not supported');
  } else {
    field(1, 'max_rndv_hdr_size', more.tmMaxRendezvousHeaderBytes);
    field(1, 'max_num_tags', more.tmMaxTags);
    field(1, 'max_ops', more.tmMaxOps);
    field(1, 'max_sge', more.tmMaxSge);
    print('\tflags:');
    printBits({ IBV_TM_CAP_RC: 0 }, more.tmFlags);
  }
  if (more.cqModerationMaxCount !== 0 && more.cqModerationMaxPeriodUs !== 0) {
    print('\n\tcq moderation caps:');
    field(2, 'max_cq_count', more.cqModerationMaxCount, 16);
    field(2, 'max_cq_period', `${more.cqModerationMaxPeriodUs} us\n`, 16);
  }
  if (more.maxDeviceMemoryBytes !== 0n) {
    field(1, 'maximum available device memory', `${more.maxDeviceMemoryBytes}Bytes\n`, 40);
  }
  field(1, 'num_comp_vectors', more.numCompVectors);
}

/** @type {(context: import('quorate/verbs').Context, portNum: number) => void} */
function printPort(context, portNum) {
  const port = context.queryPort(portNum);
  print(`\t\tport:\t${portNum}`);
  field(3, 'state', named(PORT_STATES, port.state, 'invalid state'), 24);
  field(3, 'max_mtu', mtu(port.maxMtuBytes), 24);
  field(3, 'active_mtu', mtu(port.activeMtuBytes), 24);
  field(3, 'sm_lid', port.smLid, 24);
  field(3, 'port_lid', port.lid, 24);
  field(3, 'port_lmc', hex(port.lmc, 2), 24);
  field(3, 'link_layer', port.linkLayer === 'Unspecified' ? 'InfiniBand' : port.linkLayer, 24);
  if (!values.verbose) return;
  field(3, 'max_msg_sz', hex(port.maxMsgSz), 24);
  field(3, 'port_cap_flags', hex(port.portCapFlags, 8), 24);
  field(3, 'port_cap_flags2', hex(port.portCapFlags2, 4), 24);
  field(3, 'max_vl_num', named(VIRTUAL_LANES, port.maxVlNum, 'invalid value'), 24);
  field(3, 'bad_pkey_cntr', hex(port.badPkeyCntr), 24);
  field(3, 'qkey_viol_cntr', hex(port.qkeyViolCntr), 24);
  field(3, 'sm_sl', port.smSl, 24);
  field(3, 'pkey_tbl_len', port.pkeyTblLen, 24);
  field(3, 'gid_tbl_len', port.gidTblLen, 24);
  field(3, 'subnet_timeout', port.subnetTimeout, 24);
  field(3, 'init_type_reply', port.initTypeReply, 24);
  field(3, 'active_width', named(WIDTHS, port.activeWidth, 'invalid widthX'), 24);
  field(3, 'active_speed', named(SPEEDS, port.activeSpeed, 'invalid speed'), 24);
  if (context.device.transport === 'InfiniBand') {
    field(3, 'phys_state', named(PHYSICAL_STATES, port.physState, 'invalid physical state'), 24);
  }
  for (const entry of context.queryGids(portNum)) field(3, `GID[${`${entry.index}`.padStart(3)}]`, gidText(entry), 24);
}

const devices = listDevices();
const wanted = values['ib-dev'];
const only = values['ib-port'] === undefined ? undefined : wholeNumber('ib-port', values['ib-port'], 1, 255);
const chosen = wanted === undefined ? devices : devices.filter(({ name }) => name === wanted);
if (chosen.length === 0) refuse(`there is no device ${wanted}; -l lists them`);
if (values.list) {
  print(`${devices.length} device${devices.length === 1 ? '' : 's'} found:`);
  for (const { name } of devices) print(`\t${name}`);
} else {
  for (const { name, transport } of chosen) {
    const context = openDevice(name);
    const device = context.queryDevice();
    print(`hca_id:\t${name}`);
    field(1, 'transport', `${transport} (${TRANSPORTS[/** @type {keyof typeof TRANSPORTS} */ (transport)] ?? -1})`);
    if (device.firmwareVersion !== '') field(1, 'fw_ver', device.firmwareVersion);
    field(1, 'node_guid', device.nodeGuid);
    field(1, 'sys_image_guid', device.sysImageGuid);
    field(1, 'vendor_id', hex(device.vendorId, 4));
    field(1, 'vendor_part_id', device.vendorPartId);
    field(1, 'hw_ver', upperHex(device.hwVersion));
    const board = boardId(name);
    if (board !== undefined) field(1, 'board_id', board);
    field(1, 'phys_port_cnt', device.physPortCnt);
    if (values.verbose) printAttributes(context);
    for (let port = 1; port <= device.physPortCnt; port++) {
      if (only === undefined || only === port) printPort(context, port);
    }
    print('');
    context.close();
  }
}

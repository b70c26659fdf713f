// The GIDs of the devices of this host, one line each, as the script show_gids of Mellanox OFED prints them; the one that
// Context.chooseGid() would use has a star.
//
//   node examples/show-gids.mjs [DEVICE]
import { GidType, gidToIpv4, listDevices, openDevice } from 'quorate/verbs';
import { readArguments, refuse } from './support/options.mjs';

const [wanted] = readArguments(import.meta.url, { allowPositionals: true }).positionals;
const TYPES = new Map([
  [GidType.IB, 'IB'],
  [GidType.ROCE_V1, 'v1'],
  [GidType.ROCE_V2, 'v2'],
  [GidType.SHM, 'shm'],
]);
/** @type {string[][]} */
const rows = [['DEV', 'PORT', 'INDEX', 'GID', 'IPv4', 'VER', 'DEV', '']];
const devices = listDevices().filter(({ name }) => wanted === undefined || name === wanted);
if (devices.length === 0) refuse(`there is no device ${wanted}; "node examples/devinfo.mjs --list" names them`);
let found = 0;
for (const { name } of devices) {
  const context = openDevice(name);
  for (let port = 1; port <= context.queryDevice().physPortCnt; port++) {
    /** @type {number | undefined} */
    let chosen;
    try {
      chosen = context.chooseGid(port).index;
    } catch {
      // A port without a GID that can be used.
    }
    for (const { index, gid, type, netdev } of context.queryGids(port)) {
      const version = TYPES.get(type) ?? `type ${type}`;
      rows.push([name, `${port}`, `${index}`, gid, gidToIpv4(gid) ?? '', version, netdev, index === chosen ? '*' : '']);
      found++;
    }
  }
  context.close();
}
const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
for (const row of rows) {
  process.stdout.write(
    `${row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join('  ')
      .trimEnd()}\n`,
  );
}
process.stdout.write(`n_gids_found=${found}\n`);

// Host and port of a control channel: how they are printed, and which addresses never leave this host.
import { BlockList, isIP, isIPv6 } from 'node:net';

export function formatAddress(host: string | undefined, port: number | undefined): string {
  const name = host === undefined || host === '' ? 'unknown' : host;
  return `${isIPv6(name) ? `[${name}]` : name}:${port ?? 'unknown'}`;
}

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');

const everywhere = new BlockList();
everywhere.addAddress('0.0.0.0', 'ipv4');
everywhere.addAddress('::', 'ipv6');

function isIn(list: BlockList, address: string): boolean {
  const plain = address.toLowerCase().startsWith('::ffff:') ? address.slice('::ffff:'.length) : address;
  const family = isIP(plain);
  return family !== 0 && list.check(plain, family === 6 ? 'ipv6' : 'ipv4');
}

/** True for numeric addresses that only this host reaches; a name is never taken for one. */
export function isLoopback(address: string | undefined): boolean {
  return address !== undefined && isIn(loopback, address);
}

/** True for the addresses that stand for all of this host's, on which one can listen and which nobody can dial from elsewhere. */
export function isUnspecified(address: string): boolean {
  return isIn(everywhere, address);
}

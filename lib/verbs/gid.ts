// GIDs as text. The canonical form, which the API gives out, is eight groups of four hexadecimal digits as
// `ibv_devinfo -v` prints them; IPv6 short forms and IPv4 addresses are taken too.
import { isIPv4, isIPv6 } from 'node:net';
import { invalidArgument } from '../errors.js';
import type { GidEntry } from './native.js';
import { checkObject } from './options.js';

export type { GidEntry } from './native.js';
export { GidType } from './native.js';

const CANONICAL = /^[0-9a-f]{4}(:[0-9a-f]{4}){7}$/;

/** True for eight groups of four lower-case hexadecimal digits. */
export function isCanonicalGid(gid: string): boolean {
  return CANONICAL.test(gid);
}

function hex(value: number): string {
  return value.toString(16).padStart(4, '0');
}

/**
 * The canonical form of a GID given in any notation of an IPv6 address, or of the RoCE GID that stands for an IPv4
 * address ("10.0.0.1" is "0000:0000:0000:0000:0000:ffff:0a00:0001").
 *
 * @throws TypeError QUORATE_INVALID_ARGUMENT if the text is neither
 */
export function normalizeGid(text: string): string {
  if (typeof text !== 'string') throw invalidArgument('a GID must be a string');
  const lower = text.toLowerCase();
  if (CANONICAL.test(lower)) return lower;
  if (isIPv4(lower)) return normalizeGid(`::ffff:${lower}`);
  if (!isIPv6(lower) || lower.includes('%')) {
    throw invalidArgument(`not a GID (IPv6 or IPv4 notation): ${JSON.stringify(text.slice(0, 60))}`);
  }
  // An IPv4 tail becomes the last two groups.
  const tail = /(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(lower);
  let groups = lower;
  if (tail !== null) {
    const [a, b, c, d] = tail.slice(1).map(Number) as [number, number, number, number];
    groups = `${lower.slice(0, tail.index)}${hex(a * 256 + b)}:${hex(c * 256 + d)}`;
  }
  const [before = '', after] = groups.split('::');
  const head = before === '' ? [] : before.split(':');
  const rest = after === undefined || after === '' ? [] : after.split(':');
  const zeros = after === undefined ? [] : new Array<string>(8 - head.length - rest.length).fill('0');
  return [...head, ...zeros, ...rest].map((group) => group.padStart(4, '0')).join(':');
}

/** The IPv4 address that a RoCE GID stands for, undefined if it stands for none. */
export function gidToIpv4(gid: string): string | undefined {
  const groups = normalizeGid(gid).split(':');
  if (groups.slice(0, 5).some((group) => group !== '0000') || groups[5] !== 'ffff') return undefined;
  return groups
    .slice(6)
    .flatMap((group) => [Number.parseInt(group.slice(0, 2), 16), Number.parseInt(group.slice(2), 16)])
    .join('.');
}

/** One line per entry, for messages and command-line tools. */
export function formatGidTable(entries: readonly GidEntry[]): string {
  if (!Array.isArray(entries)) throw invalidArgument('entries must be an array, that of Context.queryGids()');
  const types: Record<number, string> = { 0: 'IB', 1: 'RoCE v1', 2: 'RoCE v2', 100: 'shm' };
  return entries
    .map((entry) => {
      checkObject('an entry', entry);
      const ipv4 = gidToIpv4(entry.gid);
      const extras = [types[entry.type] ?? `type ${entry.type}`, entry.netdev, ipv4 ?? ''].filter(
        (text) => text !== '',
      );
      return `${entry.index}  ${entry.gid}  ${extras.join('  ')}`;
    })
    .join('\n');
}

// A record of the stores: a line with its checksum and JSON. What a disk gives back otherwise than it was given is no record.
import { checksum } from '../../verbs/checksum.js';

/** Hexadecimal digits of a checksum, which has 53 bits. */
const SUM_DIGITS = 14;

function sumOf(text: Uint8Array): string {
  return checksum(text, 0).toString(16).padStart(SUM_DIGITS, '0');
}

export function sealRecord(record: unknown): Buffer {
  const text = Buffer.from(JSON.stringify(record));
  return Buffer.concat([Buffer.from(`${sumOf(text)} `), text, Buffer.from('\n')]);
}

/** Undefined if the bytes are none that sealRecord() made. */
export function unsealRecord(sealed: Uint8Array): Record<string, unknown> | undefined {
  const bytes = Buffer.from(sealed.buffer, sealed.byteOffset, sealed.length);
  const text = bytes.subarray(SUM_DIGITS + 1, -1);
  if (bytes.toString('latin1', 0, SUM_DIGITS + 1) !== `${sumOf(text)} `) return undefined;
  return JSON.parse(text.toString()) as Record<string, unknown>;
}

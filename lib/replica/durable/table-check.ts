// Whether a table of the store, one of the files in which LevelDB keeps what it has sorted, is as it was written. Each of
// its blocks has a checksum behind it, which LevelDB ignores unless it is asked to look, and its binding cannot ask: it misses
// records that are damaged, gives older ones for them, or ends the process over what it cannot decode.
import { type FileHandle, open } from 'node:fs/promises';

/** Two places of blocks, at most 20 bytes each, and the magic number. */
const FOOTER_BYTES = 48;
const MAGIC_LOW = 0x8b80fb57;
const MAGIC_HIGH = 0xdb477524;
/** Behind each block: whether it is compressed, and the checksum of both. */
const TRAILER_BYTES = 5;
const UNCOMPRESSED = 0;
const CRC32C_POLYNOMIAL = 0x82f63b78;
const CRC_MASK_DELTA = 0xa282ead8;

const CRC_BYTES = 8;
const BYTE_VALUES = 256;
/** What a byte adds to the checksum, by how many others follow it within the eight that are taken at a time. */
const CRC32C = new Int32Array(CRC_BYTES * BYTE_VALUES);
for (let byte = 0; byte < BYTE_VALUES; byte++) {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = (crc & 1) === 1 ? (crc >>> 1) ^ CRC32C_POLYNOMIAL : crc >>> 1;
  CRC32C[byte] = crc;
}
for (let at = BYTE_VALUES; at < CRC32C.length; at++) {
  const before = CRC32C[at - BYTE_VALUES] as number;
  CRC32C[at] = (CRC32C[before & 0xff] as number) ^ (before >>> 8);
}

/** As LevelDB stores it, of the first bytes of memory that is a multiple of eight bytes long. Words are little-endian on all machines that this runs on. */
function maskedCrc32c(memory: ArrayBuffer, length: number): number {
  const table = CRC32C;
  const words = new Int32Array(memory);
  const bytes = new Uint8Array(memory);
  const whole = length - (length % CRC_BYTES);
  let crc = -1;
  for (let word = 0; word < whole / 4; word += 2) {
    const low = (words[word] as number) ^ crc;
    const high = words[word + 1] as number;
    crc =
      (table[0x700 + (low & 0xff)] as number) ^
      (table[0x600 + ((low >>> 8) & 0xff)] as number) ^
      (table[0x500 + ((low >>> 16) & 0xff)] as number) ^
      (table[0x400 + (low >>> 24)] as number) ^
      (table[0x300 + (high & 0xff)] as number) ^
      (table[0x200 + ((high >>> 8) & 0xff)] as number) ^
      (table[0x100 + ((high >>> 16) & 0xff)] as number) ^
      (table[high >>> 24] as number);
  }
  for (let at = whole; at < length; at++) crc = (table[(crc ^ (bytes[at] as number)) & 0xff] as number) ^ (crc >>> 8);
  const sum = ~crc;
  return (((sum >>> 15) | (sum << 17)) + CRC_MASK_DELTA) >>> 0;
}

interface Place {
  readonly offset: number;
  readonly bytes: number;
}

class Cursor {
  constructor(
    private readonly bytes: Uint8Array,
    public at = 0,
  ) {}

  /** Seven bits in each byte, the lowest first; past the end there are zeros. */
  number(): number {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = this.bytes[this.at++] ?? 0;
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
    }
  }

  place(): Place {
    return { offset: this.number(), bytes: this.number() };
  }
}

/** The values of a block whose values are places. */
function placesIn(block: Buffer): Place[] {
  const restarts = block.readUInt32LE(block.length - 4);
  const end = block.length - 4 * (restarts + 1);
  const places: Place[] = [];
  for (const cursor = new Cursor(block); cursor.at < end; ) {
    cursor.number(); // bytes of the key that the one before has, too
    const keyBytes = cursor.number();
    const valueBytes = cursor.number();
    const value = cursor.at + keyBytes;
    places.push(new Cursor(block, value).place());
    cursor.at = value + valueBytes;
  }
  return places;
}

/** The block and, in one byte, whether it is compressed; null if it is not what was written there. */
async function readBlock(file: FileHandle, fileBytes: number, { offset, bytes }: Place): Promise<Buffer | null> {
  if (offset + bytes + TRAILER_BYTES > fileBytes - FOOTER_BYTES) return null;
  const length = bytes + TRAILER_BYTES;
  const memory = new ArrayBuffer(Math.ceil(length / CRC_BYTES) * CRC_BYTES);
  const block = Buffer.from(memory, 0, length);
  const { bytesRead } = await file.read(block, 0, length, offset);
  if (bytesRead !== length) return null;
  const summed = block.subarray(0, bytes + 1);
  return block.readUInt32LE(bytes + 1) === maskedCrc32c(memory, summed.length) ? summed : null;
}

const NO_TABLE = 'at its end: it is not an sstable';

function damageAt(offset: number): string {
  return `at byte ${offset}: a checksum differs`;
}

/**
 * Where the table is damaged, and how; null if it is not. What does not end as a table does is none. Of one that is too short
 * the store, which knows how long it was, says no more than that it cannot be read.
 */
export async function findDamage(path: string): Promise<string | null> {
  const file = await open(path, 'r');
  try {
    const { size } = await file.stat();
    if (size < FOOTER_BYTES) return NO_TABLE;
    const footer = Buffer.alloc(FOOTER_BYTES);
    await file.read(footer, 0, FOOTER_BYTES, size - FOOTER_BYTES);
    const isTable =
      footer.readUInt32LE(FOOTER_BYTES - 8) === MAGIC_LOW && footer.readUInt32LE(FOOTER_BYTES - 4) === MAGIC_HIGH;
    if (!isTable) return NO_TABLE;
    const cursor = new Cursor(footer);
    for (const list of [cursor.place(), cursor.place()]) {
      const places = await readBlock(file, size, list);
      if (places === null) return damageAt(size - FOOTER_BYTES);
      if (places.at(-1) !== UNCOMPRESSED) continue; // another program's: this store compresses nothing
      for (const place of placesIn(places.subarray(0, -1))) {
        if ((await readBlock(file, size, place)) === null) return damageAt(place.offset);
      }
    }
    return null;
  } finally {
    await file.close();
  }
}

// A snapshot that comes as a whole, over the control channel: whatever the bytes are, it is taken or refused with a code.
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { genesisConfiguration } from '#lib/consensus/configuration.js';
import { decodeSnapshot, encodeSnapshot } from '#lib/replica/snapshot-transfer.js';

const SNAPSHOT = {
  position: { lsn: 640, hashLow: 1, hashHigh: 2 ** 32 - 1, epoch: 2 ** 40 },
  configuration: genesisConfiguration(77, [{ id: 0, bootId: 100 }]),
  sessions: Uint8Array.of(1, 2, 3),
  state: Uint8Array.of(4, 5),
};

function refusal(bytes: Uint8Array): unknown {
  try {
    decodeSnapshot(bytes);
  } catch (error) {
    return (error as { code?: unknown }).code;
  }
  return 'taken';
}

it('comes through as it was', () => {
  const { position, configuration, sessions, state } = decodeSnapshot(encodeSnapshot(SNAPSHOT));
  expect({ position, configuration, sessions: [...sessions], state: [...state] }).toEqual({
    ...SNAPSHOT,
    sessions: [1, 2, 3],
    state: [4, 5],
  });
});

it('is refused with a code where it is cut, changed or no snapshot at all', () => {
  const whole = encodeSnapshot(SNAPSHOT);
  for (let length = 0; length < whole.length; length++) {
    expect(refusal(whole.slice(0, length)), `${length} bytes`).toBe('QUORATE_SNAPSHOT_INVALID');
  }
  fc.assert(
    fc.property(fc.nat(whole.length - 1), fc.nat(255), (at, byte) => {
      const bytes = Uint8Array.from(whole);
      bytes[at] = byte;
      expect(refusal(bytes)).toBeOneOf(['taken', 'QUORATE_SNAPSHOT_INVALID']);
    }),
    { numRuns: 2000 },
  );
  fc.assert(
    fc.property(fc.uint8Array(), (bytes) => {
      expect(refusal(bytes)).toBe('QUORATE_SNAPSHOT_INVALID');
    }),
  );
});

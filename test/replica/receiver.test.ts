// The receiver of a state transfer, and donors that give it what they have, without replicas around them: what it owes to
// those who order a state from it, whatever its own state machine does. Real memory and READs, on shm.
import { EventEmitter } from 'node:events';
import { afterEach, expect, it, vi } from 'vitest';
import { genesisConfiguration } from '#lib/consensus/configuration.js';
import { chainBeginning } from '#lib/consensus/entry.js';
import { TransferSink } from '#lib/fabric/transfer-link.js';
import { QuorateError, type RestoreInPlace, type StateMachine } from '#lib/index.js';
import type { ControlConnection } from '#lib/replica/control-channel.js';
import { Donor } from '#lib/replica/transfer/donor.js';
import { CHUNK_BYTES } from '#lib/replica/transfer/limits.js';
import { checkClosed, checkReady, checkTaken } from '#lib/replica/transfer/messages.js';
import { Receiver } from '#lib/replica/transfer/receiver.js';
import { SnapshotSource } from '#lib/replica/transfer/snapshot-stream.js';
import { turn } from '#lib/replica/turn.js';
import { Context } from '#lib/verbs/index.js';
import { closeAfterEach, closeLater, openEndpoint } from './endpoints.js';
import { CommandLog, waitFor } from './fixture.js';

const RECEIVER = 0;
const DONOR = 1;
const CLUSTER_ID = 7;

closeAfterEach();

afterEach(() => {
  vi.restoreAllMocks();
});

/** Of a replica that has applied the log up to `lsn`. */
interface Given {
  lsn: number;
  machine: object;
}

/** A receiver with this state machine, and donors, from id 1 on, of what they are given. */
function transfer(stateMachine: object, ...given: Given[]) {
  const states: string[] = [];
  const installed: number[] = [];
  const onWarning = (error: Error): void => {
    throw error;
  };
  const connections: ControlConnection[] = [];
  const donors: Donor[] = [];
  const receiver = new Receiver({
    id: RECEIVER,
    endpoint: openEndpoint(),
    stateMachine: stateMachine as StateMachine<never>,
    connectionTo: (id) => connections[id],
    appliedLsn: () => 0,
    install: ({ lsn }, _configuration, _sessions, put) => {
      put();
      installed.push(lsn);
      return true;
    },
    tell: (connection, type, body) => {
      const donor = donors[connection.peer.id] as Donor;
      if (type === 'transferTaken') donor.took(connection, checkTaken(body));
      else donor.closed(connection, checkClosed(body));
    },
    onProgress: ({ state }) => void states.push(state),
    onWarning,
  });
  for (const [index, state] of given.entries()) {
    const id = index + 1;
    const donor = new Donor({
      id,
      endpoint: openEndpoint(),
      appliedLsn: () => state.lsn,
      freeze: () => ({
        position: { ...chainBeginning(CLUSTER_ID), lsn: state.lsn },
        configuration: genesisConfiguration(CLUSTER_ID, [{ id: DONOR, bootId: 5 }]),
        sessionsBytes: 0,
        source: new SnapshotSource(state.machine as never, new Uint8Array(0)),
      }),
      logAfter: () => {
        throw new Error('nobody asks for the log');
      },
      tell: (_connection, type, body) => {
        if (type === 'transferReady') receiver.ready(checkReady(body));
        else receiver.failed(checkClosed(body));
      },
      onProgress: () => {},
      onWarning,
    });
    closeLater(donor);
    donors[id] = donor;
    const connection = Object.assign(new EventEmitter(), {
      isClosed: false,
      peer: { id },
      request: (_type: string, body: unknown) => donor.open(connection, body),
    }) as unknown as ControlConnection;
    connections[id] = connection;
  }
  return { receiver, states, installed };
}

const never = new Promise<() => void>(() => {});

/** State machines that have all bytes of a state, of which the first is never ready to be put in place; what abort() is told. */
const silent: [string, boolean, (aborted: unknown[]) => object][] = [
  [
    'finish() of what restoreInPlace() returned',
    true,
    (aborted) => {
      let count = 0;
      const restoreInPlace = () => {
        const isFirst = count++ === 0;
        return {
          next: () => new Uint8Array(2),
          finish: () => (isFirst ? never : () => {}),
          abort: (error: Error) => void aborted.push(error),
        };
      };
      return Object.assign(new CommandLog(), { restoreInPlace });
    },
  ],
  [
    'restoreChunks()',
    false,
    () => {
      let count = 0;
      const restoreChunks = async (chunks: AsyncIterable<Uint8Array>) => {
        const isFirst = count++ === 0;
        for await (const _ of chunks);
        return isFirst ? await never : () => {};
      };
      return Object.assign(new CommandLog(), { restoreChunks });
    },
  ],
];

it.each(silent)(
  'gets a newer state when the one that came is too old, though %s has not settled',
  async (_, isTold, make) => {
    const aborted: unknown[] = [];
    const given = { lsn: 64, machine: new CommandLog() };
    const { receiver, states, installed } = transfer(make(aborted), given);
    const fate = receiver.order({ donors: [DONOR], minLsn: 64 }).catch((error: Error) => error);
    await waitFor(() => states.at(-1) === 'installing', 'the state machine to have all bytes');
    given.lsn = 128;
    expect(await receiver.order({ donors: [DONOR], minLsn: 128 })).toBe(128);
    expect(await fate).toMatchObject({ code: 'QUORATE_CANCELLED' });
    expect(aborted).toEqual(isTold ? [await fate] : []);
    expect(installed).toEqual([128]);
  },
);

it.each(silent)('ends when its replica closes, though %s has not settled', async (_, isTold, make) => {
  const aborted: unknown[] = [];
  const { receiver, states, installed } = transfer(make(aborted), { lsn: 64, machine: new CommandLog() });
  const fate = receiver.order({ donors: [DONOR], minLsn: 64 }).catch((error: Error) => error);
  await waitFor(() => states.at(-1) === 'installing', 'the state machine to have all bytes');
  const closed = new QuorateError('QUORATE_CLOSED', 'the replica was closed');
  receiver.close(closed);
  expect(await fate).toBe(closed);
  expect(aborted).toEqual(isTold ? [closed] : []);
  expect(states.at(-1)).toBe('failed');
  expect(installed).toEqual([]);
});

it('does not go on in places that it gave back when there was no room for what the next donor has', async () => {
  const chunk = (fill: number) => new Uint8Array(CHUNK_BYTES).fill(fill);
  const whole = { snapshotChunks: () => [chunk(1), chunk(2)] };
  /** Gives a chunk, and fails when that was taken. */
  const failing = {
    snapshotChunks: () => {
      let taken = (): void => {};
      const isTaken = new Promise<void>((resolve) => {
        taken = resolve;
      });
      const pieces = (async function* () {
        yield chunk(1);
        await isTaken;
        throw new Error('it gives no more');
      })();
      return Object.assign(pieces, { taken });
    },
  };
  const states: Uint8Array[] = [];
  const begun: number[] = [];
  const machine = {
    restoreInPlace: (): RestoreInPlace => {
      begun.push(begun.length);
      if (begun.length === 2) throw new Error('no room now');
      const places: Uint8Array[] = [];
      return {
        next: () => {
          const place = new Uint8Array(CHUNK_BYTES);
          places.push(place);
          return place;
        },
        finish: () => () => void states.push(...places),
        abort: () => {
          for (const place of places) place.fill(0xa5);
          aborted.push(...places);
        },
      };
    },
  };
  const aborted: Uint8Array[] = [];
  const { receiver, installed } = transfer(
    machine,
    { lsn: 64, machine: failing },
    { lsn: 128, machine: whole },
    { lsn: 64, machine: whole },
  );
  expect(await receiver.order({ donors: [1, 2, 3], minLsn: 64 })).toBe(64);
  expect(installed).toEqual([64]);
  expect(begun.length).toBe(3);
  expect(states.map(([byte]) => byte)).toEqual([1, 2]);
  expect(aborted.length).toBeGreaterThan(0);
  expect(aborted.every((place) => place.every((byte) => byte === 0xa5))).toBe(true);
});

it.each([
  ['brings the checksum', true],
  ['brings no checksum', false],
])(
  'takes chunks that come while it puts those before them away, from a device that %s',
  async (_, checksummedReads) => {
    vi.spyOn(Context.prototype, 'checksummedReads', 'get').mockReturnValue(checksummedReads);
    // As on a device that does nothing in the call that asks for it: the event loop hears of each READ's end.
    vi.spyOn(TransferSink.prototype, 'poll').mockImplementation(() => {});
    const fills = Array.from({ length: 12 }, (_, index) => index);
    const snapshotChunks = () => fills.map((fill) => new Uint8Array(CHUNK_BYTES).fill(fill));
    const came: number[] = [];
    const restoreChunks = async (chunks: AsyncIterable<Uint8Array>) => {
      for await (const chunk of chunks) {
        came.push(chunk[0] as number);
        await turn();
        await turn();
      }
      return () => {};
    };
    const machine = Object.assign(new CommandLog(), { restoreChunks });
    const { receiver, installed } = transfer(machine, { lsn: 64, machine: { snapshotChunks } });
    expect(await receiver.order({ donors: [DONOR], minLsn: 64 })).toBe(64);
    expect(installed).toEqual([64]);
    expect(came).toEqual(fills);
  },
);

it('takes no state from the next donor that is older than the one that began to come, behind which the leader keeps no log', async () => {
  const chunk = new Uint8Array(CHUNK_BYTES);
  const whole = { snapshotChunks: () => [chunk] };
  const failing = {
    snapshotChunks: () =>
      (async function* () {
        yield chunk;
        throw new Error('it gives no more');
      })(),
  };
  const { receiver, installed } = transfer(
    new CommandLog(),
    { lsn: 128, machine: failing },
    { lsn: 64, machine: whole },
    { lsn: 192, machine: { snapshotChunks: () => [Buffer.from('[]')] } },
  );
  expect(await receiver.order({ donors: [1, 2, 3], minLsn: 64 })).toBe(192);
  expect(installed).toEqual([192]);
});

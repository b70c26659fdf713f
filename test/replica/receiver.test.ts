// The receiver of a state transfer, and donors that give it what they have, without replicas around them: what it owes to
// those who order a state from it, whatever its own state machine does. Real memory and READs, on shm.
import { EventEmitter } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { genesisConfiguration } from '#lib/consensus/configuration.js';
import { chainBeginning } from '#lib/consensus/entry.js';
import { LOG_BYTES_MIN } from '#lib/consensus/limits.js';
import { VerbsEndpoint } from '#lib/fabric/verbs-endpoint.js';
import { QuorateError, type StateMachine } from '#lib/index.js';
import type { ControlConnection } from '#lib/replica/control-channel.js';
import { Donor } from '#lib/replica/transfer/donor.js';
import { checkClosed, checkReady, checkTaken } from '#lib/replica/transfer/messages.js';
import { Receiver } from '#lib/replica/transfer/receiver.js';
import { SnapshotSource } from '#lib/replica/transfer/snapshot-stream.js';
import { CommandLog, waitFor } from './fixture.js';

const RECEIVER = 0;
const DONOR = 1;
const CLUSTER_ID = 7;

let directory: string;
const open: { close(): void }[] = [];

beforeEach(() => {
  directory = mkdtempSync('/dev/shm/quorate-test-');
});

afterEach(() => {
  for (const one of open.splice(0).reverse()) one.close();
  rmSync(directory, { recursive: true });
});

function openEndpoint(): VerbsEndpoint {
  const endpoint = VerbsEndpoint.open({ device: 'shm', shmDirectory: directory, logBytes: LOG_BYTES_MIN });
  open.push(endpoint);
  return endpoint;
}

/** A receiver with this state machine, and a donor whose state is of LSN `lsn`. */
function pair(stateMachine: object) {
  const states: string[] = [];
  const installed: number[] = [];
  const donorState = { lsn: 64 };
  const connection = Object.assign(new EventEmitter(), {
    isClosed: false,
    peer: { id: DONOR },
    request: (_type: string, body: unknown) => donor.open(connection, body),
  }) as unknown as ControlConnection;
  const receiver = new Receiver({
    id: RECEIVER,
    endpoint: openEndpoint(),
    stateMachine: stateMachine as StateMachine<never>,
    connectionTo: () => connection,
    appliedLsn: () => 0,
    install: ({ lsn }, _configuration, _sessions, put) => {
      put();
      installed.push(lsn);
      return true;
    },
    tell: (_connection, type, body) => {
      if (type === 'transferTaken') donor.took(connection, checkTaken(body));
      else donor.closed(connection, checkClosed(body));
    },
    onProgress: ({ state }) => void states.push(state),
    onWarning: (error) => {
      throw error;
    },
  });
  const donor: Donor = new Donor({
    id: DONOR,
    endpoint: openEndpoint(),
    appliedLsn: () => donorState.lsn,
    freeze: () => ({
      position: { ...chainBeginning(CLUSTER_ID), lsn: donorState.lsn },
      configuration: genesisConfiguration(CLUSTER_ID, [{ id: DONOR, bootId: 5 }]),
      sessionsBytes: 0,
      source: new SnapshotSource(new CommandLog() as never, new Uint8Array(0)),
    }),
    logAfter: () => {
      throw new Error('nobody asks for the log');
    },
    tell: (_connection, type, body) => {
      if (type === 'transferReady') receiver.ready(checkReady(body));
      else receiver.failed(checkClosed(body));
    },
    onProgress: () => {},
    onWarning: (error) => {
      throw error;
    },
  });
  open.push(donor);
  return { receiver, donorState, states, installed };
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
    const { receiver, donorState, states, installed } = pair(make(aborted));
    const fate = receiver.order({ donors: [DONOR], minLsn: 64 }).catch((error: Error) => error);
    await waitFor(() => states.at(-1) === 'installing', 'the state machine to have all bytes');
    donorState.lsn = 128;
    expect(await receiver.order({ donors: [DONOR], minLsn: 128 })).toBe(128);
    expect(await fate).toMatchObject({ code: 'QUORATE_CANCELLED' });
    expect(aborted).toEqual(isTold ? [await fate] : []);
    expect(installed).toEqual([128]);
  },
);

it.each(silent)('ends when its replica closes, though %s has not settled', async (_, isTold, make) => {
  const aborted: unknown[] = [];
  const { receiver, states, installed } = pair(make(aborted));
  const fate = receiver.order({ donors: [DONOR], minLsn: 64 }).catch((error: Error) => error);
  await waitFor(() => states.at(-1) === 'installing', 'the state machine to have all bytes');
  const closed = new QuorateError('QUORATE_CLOSED', 'the replica was closed');
  receiver.close(closed);
  expect(await fate).toBe(closed);
  expect(aborted).toEqual(isTold ? [closed] : []);
  expect(states.at(-1)).toBe('failed');
  expect(installed).toEqual([]);
});

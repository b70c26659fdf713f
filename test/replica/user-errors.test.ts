// What a replica does when the code of its user fails: it stops rather than diverge, and everybody who waits is told.
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, it } from 'vitest';
import { Replica } from '#lib/index.js';
import { CommandLog, members, optionsFor } from './fixture.js';

const open: Replica<number>[] = [];
const folders: string[] = [];
afterEach(async () => {
  await Promise.all(open.splice(0).map((replica) => replica.close()));
  for (const path of folders.splice(0)) rmSync(path, { recursive: true, force: true });
});

function folder(): string {
  const path = mkdtempSync(join(tmpdir(), 'quorate-user-errors-'));
  folders.push(path);
  return path;
}

const bytes = (text: string) => new Uint8Array(Buffer.from(text));

it.each([undefined, { origin: 5, sequence: 1 }])(
  'settles the proposal of the command that apply() throws on, with session %j',
  async (session) => {
    const machine = new CommandLog();
    machine.apply = () => {
      throw new Error('a command too much');
    };
    const replica = await Replica.open(optionsFor(0, await members(1), { stateMachine: machine }));
    open.push(replica);
    const fatal = once(replica, 'fatal');
    const proposal = replica.propose(bytes('x'), session === undefined ? undefined : { session });
    await expect(proposal).rejects.toMatchObject({
      code: 'QUORATE_OUTCOME_UNKNOWN',
      message: expect.stringContaining('a command too much'),
    });
    expect((await fatal)[0]).toMatchObject({ message: 'a command too much' });
  },
);

it('proposes nothing again once it closes', async () => {
  const replica = await Replica.open(optionsFor(0, await members(1)));
  open.push(replica);
  const settled = replica.propose(bytes('x'), { session: { origin: 5, sequence: 1 } }).catch((error: Error) => error);
  const { tailLsn } = replica.status();
  await replica.close();
  expect(await settled).toMatchObject({
    code: 'QUORATE_OUTCOME_UNKNOWN',
    message: expect.stringContaining('replica 0 was closed'),
  });
  expect(replica.status()).toMatchObject({ tailLsn, pendingProposals: 0 });
});

/** Its snapshots begin and never end. */
class EndlessSnapshot extends CommandLog {
  private begun = (): void => {};
  /** A snapshot waits for a piece that does not come. */
  readonly waits = new Promise<void>((resolve) => {
    this.begun = resolve;
  });
  async *snapshotChunks(): AsyncGenerator<Uint8Array> {
    yield bytes('a piece');
    this.begun();
    await new Promise(() => {});
  }
  async restoreChunks(): Promise<() => void> {
    return () => {};
  }
}

it.each([
  ['durable', (directory: string) => ({ durable: { directory, snapshotAfterBytes: 64 * 1024 } })],
  ['surviving', (directory: string) => ({ surviveCrash: { directory } })],
])('closes a %s replica whose state machine does not end its snapshot', async (_kind, options) => {
  const machine = new EndlessSnapshot();
  const more = { ...options(folder()), stateMachine: machine, logBytes: 64 * 1024 };
  const replica = await Replica.open(optionsFor(0, await members(1), more));
  open.push(replica);
  for (let count = 0; count < 100; count++) await replica.propose(new Uint8Array(1000));
  await machine.waits;
  await replica.close();
});

it('rejects open(), and throws at nobody, when the background thread fails before', async () => {
  const directory = folder();
  const durable = { directory, snapshotAfterBytes: 64 * 1024 };
  const list = await members(1);
  const first = await Replica.open(optionsFor(0, list, { durable }));
  open.push(first);
  while (first.status().durable?.snapshotLsn === 0) await first.propose(new Uint8Array(10_000));
  await first.close();

  const uncaught: unknown[] = [];
  const catchIt = (error: unknown) => uncaught.push(error);
  // Vitest listens, too, and would fail the test without saying why.
  const listeners = process.rawListeners('uncaughtException') as NodeJS.UncaughtExceptionListener[];
  process.removeAllListeners('uncaughtException');
  process.on('uncaughtException', catchIt);
  try {
    const machine = new CommandLog();
    // When the state is brought back the store of the promises is closed, and the thread that uses it does not run yet.
    machine.restore = () => {
      rmSync(join(directory, 'promise'), { recursive: true, force: true });
      rmSync(join(directory, 'promise-lock'), { force: true });
      writeFileSync(join(directory, 'promise'), 'no store');
    };
    const failed = Replica.open(optionsFor(0, list, { durable, stateMachine: machine }));
    await expect(failed).rejects.toMatchObject({
      code: 'QUORATE_DISK_FAILED',
      message: expect.stringContaining(directory),
    });
  } finally {
    process.off('uncaughtException', catchIt);
    for (const listener of listeners) process.on('uncaughtException', listener);
  }
  expect(uncaught).toEqual([]);
});

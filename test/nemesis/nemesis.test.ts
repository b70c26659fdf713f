// The nemesis as a program, on shared memory: a short run with every fault there is, whether its check can convict, and
// that no process is left behind. The longer runs are for `npm run nemesis`.
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, onTestFinished, test } from 'vitest';
import { descendantsOf, expectGone, runDemo, startDemo } from '../demo/support/demo-process.ts';

const folder = mkdtempSync(join(tmpdir(), 'quorate-nemesis-test-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const SEED = 20;
const TIMEOUT_MS = 120_000;

interface RecordedOperation {
  client: number;
  operation: 'write' | 'read' | 'compareAndSet' | 'add';
  key: number;
  value: number;
  expected: number;
  invoked_ns: number;
  returned_ns: number;
  outcome: 'ok' | 'failed' | 'unknown';
  result: number;
  by: 'log' | 'lease' | 'barrier' | 'follower' | 'forwarded';
}

interface HistoryFile {
  operations: RecordedOperation[];
}

/** What --check says of a history. */
async function check(history: HistoryFile): Promise<{ code: number | null; output: string }> {
  const path = join(folder, 'planted.json');
  writeFileSync(path, JSON.stringify(history));
  const { code, output, errors } = await startDemo(['--check', path], { program: 'nemesis.js', timeoutMs: TIMEOUT_MS })
    .ended;
  return { code, output: output + errors };
}

describe('a run with every fault that shared memory has', () => {
  let recorded = '';

  test(
    'changes leaders and leaves a linearizable history and equal replicas',
    async () => {
      const args = ['--minutes', '0.25', '--seed', `${SEED}`, '--history', '--out', folder];
      const { code, summary, errors } = await runDemo(args, { program: 'nemesis.js', timeoutMs: TIMEOUT_MS });
      const number = expect.any(Number);
      expect(summary, errors).toEqual({
        operations: number,
        unknown: number,
        leaderChanges: number,
        violations: 0,
        failoverUs: { p50: number, p99: number, max: number },
        powerLosses: null,
      });
      expect(code, errors).toBe(0);
      expect(summary?.['leaderChanges'], errors).toBeGreaterThanOrEqual(2);
      expect(summary?.['operations'], errors).toBeGreaterThan(200);
      expect(errors).toContain(`seed ${SEED}`);
      expect(errors).toMatch(/states +agree/);
      expect(errors).toMatch(/proposed at a follower +[1-9]/);
      for (const by of ['lease', 'follower']) expect(errors).toMatch(new RegExp(`reads of a state .*${by} [1-9]`));
      expect(readdirSync(folder)).toEqual([`nemesis-${SEED}-sample.json`]);
      recorded = readFileSync(join(folder, `nemesis-${SEED}-sample.json`), 'utf8');
    },
    TIMEOUT_MS,
  );

  /** The recorded history, and the first `Found` that `find` makes among the operations of one key. */
  function plant<Found>(find: (ofKey: RecordedOperation[]) => Found | undefined): {
    history: HistoryFile;
    found: Found;
  } {
    const history = JSON.parse(recorded) as HistoryFile;
    const keys = new Map<number, RecordedOperation[]>();
    for (const operation of history.operations) {
      keys.set(operation.key, [...(keys.get(operation.key) ?? []), operation]);
    }
    for (const ofKey of keys.values()) {
      const found = find(ofKey);
      if (found !== undefined) return { history, found };
    }
    throw new Error('the recorded history has no place for it');
  }

  const isOk = ({ outcome }: RecordedOperation) => outcome === 'ok';
  const readsOf = (ofKey: RecordedOperation[], value: number) =>
    ofKey.filter(({ operation, result, outcome }) => operation === 'read' && outcome === 'ok' && result === value);
  /** A write that was acknowledged before a read, invoked later, returned what it wrote. */
  function writeAndRead(ofKey: RecordedOperation[]): { write: RecordedOperation; read: RecordedOperation } | undefined {
    for (const write of ofKey.filter(({ operation }) => operation === 'write').filter(isOk)) {
      const read = readsOf(ofKey, write.value).find(({ invoked_ns }) => invoked_ns > write.returned_ns);
      if (read !== undefined) return { write, read };
    }
    return undefined;
  }

  test('the check accepts the history as it is', async () => {
    expect(await check(JSON.parse(recorded) as HistoryFile)).toMatchObject({ code: 0 });
  });

  test('the check convicts a stale read', async () => {
    const { history, found } = plant((ofKey) => {
      const pair = writeAndRead(ofKey);
      // What some read returned before the write began: no other operation brings a value back.
      const before = ofKey.find(
        ({ operation, outcome, result, returned_ns }) =>
          operation === 'read' && outcome === 'ok' && pair && returned_ns < pair.write.invoked_ns && result !== 0,
      );
      return pair && before && { ...pair, before };
    });
    found.read.result = found.before.result;
    const { code, output } = await check(history);
    expect(output).toContain(`the history of key ${found.read.key} has no linearization`);
    expect(code).toBe(1);
  });

  test('the check convicts a lost write', async () => {
    const { history, found } = plant((ofKey) => {
      const write = ofKey.find(({ operation, outcome }) => operation === 'write' && outcome === 'ok');
      const last = Math.max(...ofKey.map(({ returned_ns }) => returned_ns));
      return write && { write, last };
    });
    // A read at the very end finds the register as if nothing had ever been written.
    const { write, last } = found;
    history.operations.push({
      ...write,
      by: 'log',
      operation: 'read',
      value: 0,
      invoked_ns: last + 1,
      returned_ns: last + 2,
      result: 0,
    });
    const { code, output } = await check(history);
    expect(output).toContain(`the history of key ${write.key} has no linearization`);
    expect(code).toBe(1);
  });

  test('the check convicts a write that was executed although it was said to have failed', async () => {
    const { history, found } = plant(writeAndRead);
    found.write.outcome = 'failed';
    expect(await check(history)).toMatchObject({ code: 1 });
  });

  test('the check convicts a stale read of a state that a lease vouched for', async () => {
    const { history, found } = plant((ofKey) => {
      const pair = writeAndRead(ofKey);
      return pair?.read.by === 'lease' ? pair : undefined;
    });
    found.read.result = 0; // as before the first write
    expect(await check(history)).toMatchObject({ code: 1 });
  });

  test('the check allows a write of unknown outcome that was executed', async () => {
    const { history, found } = plant(writeAndRead);
    found.write.outcome = 'unknown';
    expect(await check(history)).toMatchObject({ code: 0 });
  });

  test('the check convicts a command that was executed twice', async () => {
    const { history, found } = plant((ofKey) => {
      for (const add of ofKey.filter(({ operation }) => operation === 'add').filter(isOk)) {
        const read = readsOf(ofKey, add.result).find(({ invoked_ns }) => invoked_ns > add.returned_ns);
        if (read !== undefined) return { add, read };
      }
      return undefined;
    });
    found.read.result = (found.add.result + found.add.value) % 2 ** 32;
    expect(await check(history)).toMatchObject({ code: 1 });
  });
});

test(
  'nothing is left behind when it is killed while a replica is stopped',
  async () => {
    const args = ['--minutes', '1', '--seed', '5', '--faults', 'pause,exhaust', '--out', folder, '--verbose'];
    // Other runs put theirs into the folder that all share.
    const own = mkdtempSync(join(tmpdir(), 'quorate-nemesis-test-'));
    onTestFinished(() => rmSync(own, { recursive: true, force: true }));
    const nemesis = startDemo(args, { program: 'nemesis.js', timeoutMs: TIMEOUT_MS, env: { TMPDIR: own } });
    await nemesis.printed(/stopped for/, TIMEOUT_MS);
    const processes = descendantsOf(nemesis.pid);
    expect(processes.length).toBeGreaterThanOrEqual(5);
    expect(readdirSync(own)).not.toEqual([]);
    nemesis.child.kill('SIGKILL');
    await expectGone(processes, 20_000);
    await expect.poll(() => readdirSync(own), { timeout: 10_000 }).toEqual([]);
  },
  TIMEOUT_MS,
);

test.each([
  [5, 0, { operations: 2, verdict: 'linearizable', key: null }],
  [0, 1, { operations: 2, verdict: 'violation', key: 1 }],
])('--check --json says of a read of %i after a write of 5, by one object', async (result, exitCode, verdict) => {
  const operation = { client: 1, key: 1, value: 0, expected: 0, outcome: 'ok', by: 'log' };
  const operations = [
    { ...operation, operation: 'write', value: 5, invoked_ns: 0, returned_ns: 10, result: 0 },
    { ...operation, operation: 'read', invoked_ns: 20, returned_ns: 30, result },
  ];
  const path = join(folder, 'short.json');
  writeFileSync(path, JSON.stringify({ format: 'quorate nemesis history 2', operations }));
  const { code, output, errors } = await startDemo(['--check', path, '--json'], {
    program: 'nemesis.js',
    timeoutMs: TIMEOUT_MS,
  }).ended;
  expect(output, errors).toBe(`${JSON.stringify(verdict)}\n`);
  expect(errors).toMatch(exitCode === 0 ? /2 operations: linearizable/ : /has no linearization/);
  expect(code).toBe(exitCode);
});

test('--check refuses a history in which an operation returned before it was invoked', async () => {
  const operation = {
    client: 1,
    operation: 'write',
    key: 1,
    value: 5,
    expected: 0,
    outcome: 'ok',
    result: 0,
    by: 'log',
  };
  const path = join(folder, 'backwards.json');
  const operations = [{ ...operation, invoked_ns: 10, returned_ns: 5 }];
  writeFileSync(path, JSON.stringify({ format: 'quorate nemesis history 2', operations }));
  const { code, output, errors } = await startDemo(['--check', path], {
    program: 'nemesis.js',
    timeoutMs: TIMEOUT_MS,
  }).ended;
  expect(errors).toMatch(/^error: .*backwards\.json: operation 0 of the history: .*\n$/);
  expect(output).toBe('');
  expect(code).toBe(2);
});

test.each([
  [['--faults', 'meteor'], /It must be one or several/],
  [['--device', 'b0,b1'], /names 2 devices for 3 replicas/],
  [['--check', '/nonexistent'], /ENOENT/],
])('options that make no sense are refused: %s', async (args, message) => {
  const { code, errors } = await startDemo(args, { program: 'nemesis.js', timeoutMs: TIMEOUT_MS }).ended;
  expect(code).not.toBe(0);
  expect(errors).toMatch(message);
});

test(
  'a run whose cluster cannot be formed says why, and --json prints its object all the same',
  async () => {
    const options = { program: 'nemesis.js', timeoutMs: TIMEOUT_MS } as const;
    const { code, summary, errors } = await runDemo(['--device', 'nowhere0', '--faults', 'kill'], options);
    expect(errors).toMatch(/^error: the cluster did not start: QUORATE_NO_DEVICE: .*'nowhere0'/m);
    expect(summary).toEqual({
      operations: 0,
      unknown: 0,
      leaderChanges: 0,
      violations: 0,
      failoverUs: { p50: null, p99: null, max: null },
      powerLosses: null,
    });
    expect(code).toBe(1);
  },
  TIMEOUT_MS,
);

test(
  'a run whose files cannot be written says so, and what it found all the same',
  async () => {
    const file = join(folder, 'no-folder');
    writeFileSync(file, '');
    const args = [
      '--minutes',
      '0.05',
      '--seed',
      `${SEED}`,
      '--faults',
      'kill',
      '--history',
      '--out',
      join(file, 'out'),
    ];
    const { code, summary, errors } = await runDemo(args, { program: 'nemesis.js', timeoutMs: TIMEOUT_MS });
    expect(errors).toMatch(/^FAILED: the files of the run cannot be written: ENOTDIR/m);
    expect(summary, errors).toMatchObject({ operations: expect.any(Number), violations: 0 });
    expect(code).toBe(1);
  },
  TIMEOUT_MS,
);

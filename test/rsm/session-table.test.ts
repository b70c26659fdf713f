// Exactly-once sessions, checked against a model that never forgets and counts what was applied.
import fc from 'fast-check';
import { pack, unpack } from 'msgpackr';
import { expect, test } from 'vitest';
import { SESSION_RESULT_LENGTH_MAX, SESSIONS_MAX, SessionTable } from '#lib/rsm/session-table.js';

/** Runs a command through the table as a replica does; returns the decision. */
function execute(table: SessionTable, origin: number, sequence: number, lsn: number, result?: unknown) {
  const decision = table.begin(origin, sequence);
  if (decision === 'apply') table.finish(origin, sequence, lsn, result);
  return decision;
}

function code(action: () => void): unknown {
  try {
    action();
  } catch (error) {
    return (error as { code?: unknown }).code;
  }
  return 'nothing was thrown';
}

test('a session applies 1, 2, 3 in order and each once', () => {
  const table = new SessionTable();
  expect(execute(table, 7, 1, 10, 'one')).toBe('apply');
  expect(execute(table, 7, 1, 11)).toBe('duplicate');
  expect(execute(table, 7, 3, 12)).toBe('gap');
  expect(execute(table, 7, 2, 13, 'two')).toBe('apply');
  expect(execute(table, 7, 3, 14, 'three')).toBe('apply');
  expect(execute(table, 7, 2, 15)).toBe('duplicate');
  expect(table.lastSequence(7)).toBe(3);
  expect(table.lastSequence(8)).toBe(0);
});

test('a repetition is answered as before or not at all, also by a table that was restored', () => {
  const table = new SessionTable();
  const results = ['\ud83d\ude00'.slice(0, 1), 'cut \udc00 text', '\ud83d\ude00', -0, Number.NaN, 2 ** 60];
  results.forEach((result, at) => {
    execute(table, at + 1, 1, at, result);
  });
  const restored = new SessionTable();
  restored.restore(table.snapshot());
  expect(restored.snapshot()).toEqual(Uint8Array.from(table.snapshot()));
  const answers = (of: SessionTable) => results.map((_, at) => of.lastResult(at + 1));
  expect(answers(restored)).toEqual([undefined, undefined, '\ud83d\ude00', 0, Number.NaN, 2 ** 60]);
  expect(answers(table)).toEqual([...results.slice(0, 3), 0, ...results.slice(4)]);
});

test('commands without a session are always applied and leave no trace', () => {
  const table = new SessionTable();
  for (let lsn = 0; lsn < 5; lsn++) expect(execute(table, 0, 1, lsn)).toBe('apply');
  expect(table.size).toBe(0);
});

test('numbers that no client may use are refused as gaps, whatever the log holds', () => {
  const table = new SessionTable();
  for (const bad of [0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53]) {
    expect(table.begin(7, bad)).toBe('gap');
    if (bad !== 0) expect(table.begin(bad, 1)).toBe('gap');
  }
});

test('the last result is kept where it is small, and only the last', () => {
  const table = new SessionTable();
  const bytes = Uint8Array.of(1, 2, 3);
  const kept = [undefined, null, true, false, 0, -1, 0.5, 2 ** 40, '', 'text', bytes];
  let sequence = 0;
  for (const result of kept) {
    sequence++;
    execute(table, 7, sequence, sequence, result);
    expect(table.lastResult(7)).toEqual(result);
    expect(table.lastResult(7, sequence)).toEqual(result);
    expect(table.lastResult(7, sequence - 1)).toBeUndefined();
  }
  bytes[0] = 99;
  (table.lastResult(7) as Uint8Array)[1] = 99;
  expect(table.lastResult(7)).toEqual(Uint8Array.of(1, 2, 3));
  for (const result of [
    {},
    [1],
    10n,
    () => {},
    'x'.repeat(SESSION_RESULT_LENGTH_MAX + 1),
    new Uint8Array(SESSION_RESULT_LENGTH_MAX + 1),
  ]) {
    sequence++;
    execute(table, 7, sequence, sequence, result);
    expect(table.lastResult(7)).toBeUndefined();
  }
  expect(table.lastResult(8)).toBeUndefined();
});

test('the session that applied longest ago is forgotten, and what it sends next is a gap', () => {
  const table = new SessionTable(3);
  let lsn = 0;
  for (const origin of [1, 2, 3]) execute(table, origin, 1, lsn++);
  execute(table, 1, 2, lsn++);
  execute(table, 4, 1, lsn++); // 2 is now the oldest
  expect(table.size).toBe(3);
  expect(table.lastSequence(2)).toBe(0);
  expect(table.begin(2, 2)).toBe('gap');
  for (const origin of [1, 3, 4]) expect(table.lastSequence(origin)).toBeGreaterThan(0);
  // A duplicate or a gap applies nothing and so keeps nobody alive.
  expect(execute(table, 3, 1, lsn++)).toBe('duplicate');
  expect(execute(table, 3, 9, lsn++)).toBe('gap');
  execute(table, 5, 1, lsn++);
  expect(table.lastSequence(3)).toBe(0);
});

test(`at most ${SESSIONS_MAX} sessions are remembered`, () => {
  const table = new SessionTable();
  for (let origin = 1; origin <= SESSIONS_MAX + 10; origin++) execute(table, origin, 1, origin);
  expect(table.size).toBe(SESSIONS_MAX);
  expect(table.lastSequence(10)).toBe(0);
  expect(table.lastSequence(11)).toBe(1);
  const restored = new SessionTable();
  restored.restore(table.snapshot());
  expect(restored.size).toBe(SESSIONS_MAX);
});

test('recording what begin() did not allow is a defect and throws', () => {
  const table = new SessionTable();
  execute(table, 7, 1, 10);
  expect(() => table.finish(7, 1, 11, undefined)).toThrow(/session 7/);
  expect(() => table.finish(7, 3, 11, undefined)).toThrow(/session 7/);
  expect(() => table.finish(8, 2, 11, undefined)).toThrow(/session 8/);
  expect(() => table.finish(7, 2, 10, undefined)).toThrow(/LSN 10/);
});

const commands = fc.array(
  fc.record({
    origin: fc.integer({ min: 0, max: 5 }),
    // Mostly what comes next in the session, else a repetition or something out of order.
    step: fc.oneof({ weight: 4, arbitrary: fc.constant(1) }, fc.integer({ min: -3, max: 4 })),
    result: fc.oneof(fc.string({ maxLength: 10 }), fc.integer(), fc.boolean(), fc.uint8Array({ maxLength: 10 })),
  }),
  { maxLength: 200 },
);

test('whatever the log holds, each command of a session is applied once and in order', () => {
  fc.assert(
    fc.property(commands, (log) => {
      const table = new SessionTable();
      const applied = new Map<number, number[]>();
      log.forEach(({ origin, step }, lsn) => {
        const list = applied.get(origin) ?? [];
        const sequence = Math.max(1, (list.at(-1) ?? 0) + step);
        if (execute(table, origin, sequence, lsn) === 'apply') applied.set(origin, [...list, sequence]);
      });
      for (const [origin, list] of applied) {
        if (origin !== 0) expect(list).toEqual(list.map((_, index) => index + 1));
      }
    }),
  );
});

test('a replica that was restored from a snapshot decides and answers like one that applied the log', () => {
  fc.assert(
    fc.property(commands, fc.nat(), fc.integer({ min: 1, max: 4 }), (log, cut, sessionsMax) => {
      const direct = new SessionTable(sessionsMax);
      let other = new SessionTable(sessionsMax);
      const sequences = new Map<number, number>();
      log.forEach(({ origin, step, result }, lsn) => {
        if (lsn === cut % log.length) {
          const restored = new SessionTable(sessionsMax);
          restored.restore(other.snapshot());
          other = restored;
        }
        const sequence = Math.max(1, (sequences.get(origin) ?? 0) + step);
        const decision = execute(direct, origin, sequence, lsn, result);
        expect(execute(other, origin, sequence, lsn, result)).toBe(decision);
        expect(other.lastResult(origin, sequence)).toEqual(direct.lastResult(origin, sequence));
        if (decision === 'apply') sequences.set(origin, sequence);
      });
      expect(other.snapshot()).toEqual(direct.snapshot());
      expect(direct.size).toBeLessThanOrEqual(sessionsMax);
    }),
  );
});

test('a snapshot that is none is refused and changes nothing', () => {
  const table = new SessionTable();
  execute(table, 7, 1, 10, 'one');
  execute(table, 8, 1, 11, 'two');
  const good = table.snapshot();
  const larger = new SessionTable(SESSIONS_MAX);
  for (let origin = 1; origin <= 4; origin++) execute(larger, origin, 1, origin);
  const small = new SessionTable(3);
  expect(code(() => small.restore(larger.snapshot()))).toBe('QUORATE_SNAPSHOT_INVALID');
  expect(small.size).toBe(0);

  // Random bytes may be a table: two of them are enough for an empty one. Then they hold what was taken from them.
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
      const other = new SessionTable();
      const outcome = code(() => other.restore(bytes));
      if (outcome !== 'nothing was thrown') {
        expect([outcome, other.size]).toEqual(['QUORATE_SNAPSHOT_INVALID', 0]);
        return;
      }
      const [version, ...fields] = unpack(bytes) as unknown[];
      expect([version, fields.length]).toEqual([1, other.size * 4]);
      for (let at = 0; at < fields.length; at += 4) {
        expect(other.lastSequence(fields[at] as number)).toBe(fields[at + 1]);
      }
    }),
    { examples: [[Uint8Array.of(0x91, 1)], [Uint8Array.of(0x95, 1, 1, 1, 0, 0)]] },
  );
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
      expect(code(() => table.restore(Uint8Array.of(0x80, ...bytes)))).toBe('QUORATE_SNAPSHOT_INVALID'); // no list
    }),
  );
  // Version, then origin, sequence, LSN and result of each session, from the one that applied longest ago.
  const refused: [string, unknown][] = [
    ['no list', { version: 1 }],
    ['another version', [2]],
    ['half a session', [1, 7, 1]],
    ['a session twice', [1, 7, 1, 10, 'x', 7, 2, 11, 'y']],
    ['LSNs out of order', [1, 7, 1, 11, 'x', 8, 1, 10, 'y']],
    ['one LSN twice', [1, 7, 1, 10, 'x', 8, 1, 10, 'y']],
    ['no origin', [1, 0, 1, 10, 'x']],
    ['no sequence', [1, 7, 0, 10, 'x']],
    ['a negative LSN', [1, 7, 1, -1, 'x']],
    ['text for a number', [1, '7', 1, 10, 'x']],
    ['a fraction', [1, 7, 1.5, 10, 'x']],
  ];
  for (const [what, fields] of refused) {
    expect(
      code(() => table.restore(pack(fields))),
      what,
    ).toBe('QUORATE_SNAPSHOT_INVALID');
  }
  const fine = new SessionTable();
  fine.restore(pack([1, 7, 1, 10, 'x', 8, 1, 11, 'y']));
  expect(fine.size).toBe(2);
  for (let length = 0; length < good.length; length++) {
    expect(code(() => table.restore(good.subarray(0, length)))).toBe('QUORATE_SNAPSHOT_INVALID');
  }
  // Changed bytes may still be a table; they must not be anything else.
  fc.assert(
    fc.property(fc.nat({ max: good.length - 1 }), fc.integer({ min: 1, max: 255 }), (at, change) => {
      const changed = Uint8Array.from(good);
      changed[at] = (changed[at] as number) ^ change;
      const other = new SessionTable();
      const outcome = code(() => other.restore(changed));
      expect(['QUORATE_SNAPSHOT_INVALID', 'nothing was thrown']).toContain(outcome);
      for (const origin of [7, 8]) expect(Number.isSafeInteger(other.lastSequence(origin))).toBe(true);
    }),
  );
  expect(table.snapshot()).toEqual(good);
});

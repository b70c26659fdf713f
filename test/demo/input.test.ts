// What the demo accepts as input, and what it says about the rest.
import { expect, test } from 'vitest';
import { AUDIT_HEADER_BYTES } from '#lib/cli/demo/audited-store.js';
import { formatUs, percentile } from '#lib/cli/demo/figures.js';
import { CommandSource, flattenJson, INPUT_KEY_BYTES_MAX, parseCommands } from '#lib/cli/demo/input.js';
import { decodeCommand } from '#lib/rsm/key-value-store.js';

const text = (bytes: Uint8Array | undefined) => (bytes === undefined ? undefined : Buffer.from(bytes).toString());

test('one command a line, the value being the rest of it', () => {
  expect(parseCommands('set a 1\n\nset b two words \r\ndel a\nset c \n', 'f')).toEqual([
    { operation: 'set', key: 'a', value: '1' },
    { operation: 'set', key: 'b', value: 'two words ' },
    { operation: 'del', key: 'a', value: '' },
    { operation: 'set', key: 'c', value: '' },
  ]);
});

test.each([
  ['set a 1\nput b 2', 'f, line 2: "put b 2" is neither'],
  ['set onlykey', 'f, line 1: "set onlykey" is neither'],
  ['del a b', 'neither'],
  ['SET a 1', 'neither'],
  ['', 'f holds no command'],
  ['\n \n', 'f holds no command'],
  [`set ${'k'.repeat(INPUT_KEY_BYTES_MAX + 1)} 1`, `the limit is ${INPUT_KEY_BYTES_MAX} bytes`],
  [`set k ${'v'.repeat(1_000_001)}`, 'the limit is 1000000 bytes'],
  [`nonsense ${'x'.repeat(500)}`, '..."'],
])('bad input is refused with its place: %.30s', (input, message) => {
  expect(() => parseCommands(input, 'f')).toThrow(message);
});

test('JSON is flattened to its leaves', () => {
  const json = { name: 'x', list: [1, { deep: null }], empty: {}, '': true };
  expect(flattenJson(JSON.stringify(json), 'f')).toEqual([
    { operation: 'set', key: 'name', value: 'x' },
    { operation: 'set', key: 'list:0', value: '1' },
    { operation: 'set', key: 'list:1:deep', value: 'null' },
    { operation: 'set', key: 'empty', value: '{}' },
    { operation: 'set', key: '.', value: 'true' },
  ]);
});

test('a short input is repeated, with another suffix each time', () => {
  const source = new CommandSource(parseCommands('set a 1\ndel b', 'f'), 0);
  const keys = [1, 2, 3, 4, 5].map((sequence) => text(decodeCommand(source.command(sequence))?.key));
  expect(keys).toEqual(['a', 'b', 'a#1', 'b#1', 'a#2']);
});

test('commands are padded to the payload that was asked for, longer ones stay whole', () => {
  const source = new CommandSource(parseCommands(`set a 1\nset b ${'v'.repeat(100)}\ndel c`, 'f'), 64);
  const lengths = [1, 2, 3].map((sequence) => AUDIT_HEADER_BYTES + source.command(sequence).length);
  expect(lengths).toEqual([64, 8 + 3 + 1 + 100, 8 + 3 + 1]);
  expect(text(decodeCommand(source.command(1))?.value)).toMatch(/^1\.+$/);
});

test('percentiles are by nearest rank', () => {
  const values = [5, 1, 4, 2, 3];
  expect([0, 50, 99, 100].map((percent) => percentile(values, percent))).toEqual([1, 3, 5, 5]);
  expect(percentile([], 50)).toBeUndefined();
  expect(percentile([7], 50)).toBe(7);
});

test('durations are written with the unit that suits them', () => {
  expect([1.234, 56.78, 999, 1500, 45_600, 456_000, 7_890_000].map(formatUs)).toEqual([
    '1.23 us',
    '56.8 us',
    '999 us',
    '1.50 ms',
    '45.6 ms',
    '456 ms',
    '7.89 s',
  ]);
});

// The simulator as those get it who install the package: by its name, with an own choice of faults.
import { expect, it } from 'vitest';

it('is exported to users as quorate/testing', async () => {
  // Not a static import: types of the package's own name come from what was built.
  const name = 'quorate/testing';
  const { checkLinearizability, Operation, runSimulation } = (await import(
    name
  )) as typeof import('#lib/testing/index.js');
  const { violation, operations, crashes } = runSimulation({
    seed: 7,
    replicas: 3,
    virtualSeconds: 4,
    without: ['crash'],
  });
  expect(violation).toBeNull();
  expect(operations).toBeGreaterThan(0);
  expect(crashes).toBe(0);
  const read = { operation: Operation.read, key: 1, value: 0, expected: 0 };
  const write = { ...read, operation: Operation.write, value: 5 };
  const history = [
    { process: 1, command: write, invoked_ns: 0, returned_ns: 10, result: 0 },
    { process: 2, command: read, invoked_ns: 20, returned_ns: 30, result: 0 },
  ];
  expect(checkLinearizability(history).kind).toBe('violation');
});

// The ports of the tests themselves: two replicas of one test never get the same.
import { expect, it } from 'vitest';
import { freePorts } from './fixture.js';

it('no port is given twice, whether anybody listens on it or not', async () => {
  const ports = (await Promise.all(Array.from({ length: 200 }, () => freePorts(3)))).flat();
  expect(ports).toHaveLength(600);
  expect(new Set(ports).size).toBe(600);
});

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  type Configuration,
  checkConfiguration,
  decodeConfiguration,
  encodeConfiguration,
  genesisConfiguration,
  majority,
  voterWithId,
  withoutVoter,
  withVoter,
} from '#lib/consensus/configuration.js';
import { CONFIGURATION_BYTES_MAX, INCARNATION_MAX, MAX_REPLICAS } from '#lib/consensus/limits.js';

const genesis = genesisConfiguration(
  77,
  [2, 0, 1].map((id) => ({ id, bootId: 100 + id })),
);

describe('configuration', () => {
  test('of the founders lists them by id, each with an incarnation of its own', () => {
    expect(genesis.version).toBe(1);
    expect(genesis.voters).toEqual([
      { id: 0, bootId: 100, incarnation: 1 },
      { id: 1, bootId: 101, incarnation: 2 },
      { id: 2, bootId: 102, incarnation: 3 },
    ]);
    expect(genesis.nextIncarnation).toBe(4);
  });

  test('comes back from its bytes as it was', () => {
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.nat({ max: MAX_REPLICAS - 1 }), { minLength: 1, maxLength: MAX_REPLICAS }),
        fc.nat({ max: 2 ** 31 }),
        (ids, clusterId) => {
          const configuration = genesisConfiguration(
            clusterId,
            ids.map((id) => ({ id, bootId: id * 1_000_003 })),
          );
          expect(decodeConfiguration(encodeConfiguration(configuration))).toEqual(configuration);
        },
      ),
    );
  });

  test('gives a replica that comes back an incarnation that nobody ever had', () => {
    let configuration = genesis;
    const used = new Set([1, 2, 3]);
    for (let life = 1; life <= 50; life++) {
      const id = life % 3;
      configuration = withVoter(withoutVoter(configuration, id), id, 1000 + life);
      const { incarnation } = voterWithId(configuration, id) as { incarnation: number };
      expect(used.has(incarnation)).toBe(false);
      used.add(incarnation);
    }
    expect(configuration.version).toBe(101);
  });

  test('changes by one voter at a time, so that majorities of neighbours meet', () => {
    fc.assert(
      fc.property(fc.integer({ min: 2, max: MAX_REPLICAS }), (size) => {
        const configuration = genesisConfiguration(
          1,
          Array.from({ length: size }, (_, id) => ({ id, bootId: id })),
        );
        const smaller = withoutVoter(configuration, 0);
        expect(majority(configuration) + majority(smaller)).toBeGreaterThan(size);
      }),
    );
  });

  test('refuses to add a voter that is there and to remove the last one', () => {
    expect(() => withVoter(genesis, 1, 5)).toThrow('voter already');
    const alone = withoutVoter(withoutVoter(genesis, 0), 1);
    expect(() => withoutVoter(alone, 2)).toThrow('voters');
  });

  test('refuses whatever breaks a rule, and says which', () => {
    const voters = genesis.voters;
    const bad: [unknown, string][] = [
      [null, 'not an object'],
      ['text', 'not an object'],
      [{ ...genesis, clusterId: -1 }, 'clusterId'],
      [{ ...genesis, clusterId: 2 ** 49 }, 'clusterId'],
      [{ ...genesis, version: 0 }, 'version'],
      [{ ...genesis, version: 1.5 }, 'version'],
      [{ ...genesis, nextIncarnation: INCARNATION_MAX }, 'nextIncarnation'],
      [{ ...genesis, voters: [] }, 'voters'],
      [{ ...genesis, voters: 'all' }, 'voters'],
      [{ ...genesis, voters: [null] }, 'voter'],
      [{ ...genesis, voters: [voters[1], voters[0]] }, 'ascend'],
      [{ ...genesis, voters: [voters[0], voters[0]] }, 'ascend'],
      [{ ...genesis, voters: [{ ...voters[0], id: MAX_REPLICAS }] }, 'voter'],
      [{ ...genesis, voters: [{ ...voters[0], incarnation: 0 }] }, 'incarnation of voter 0'],
      [{ ...genesis, voters: [{ ...voters[0], incarnation: 4 }] }, 'incarnation of voter 0'],
      [{ ...genesis, voters: [voters[0], { ...voters[1], incarnation: 1 }] }, 'used twice'],
      [{ ...genesis, voters: [{ ...voters[0], bootId: -1 }] }, 'bootId of voter 0'],
      [{ ...genesis, voters: [{ id: 0, incarnation: 1 }] }, 'bootId of voter 0'],
    ];
    for (const [value, message] of bad) {
      expect(() => checkConfiguration(value), JSON.stringify(value)).toThrow(message);
    }
  });

  test('never lets arbitrary JSON through unless it is a configuration', () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        let checked: Configuration;
        try {
          checked = checkConfiguration(value);
        } catch (error) {
          expect((error as Error).message).toMatch(/^invalid configuration: /);
          return;
        }
        expect(checkConfiguration(checked)).toEqual(checked);
      }),
    );
  });

  test('refuses bytes that are too many or no JSON', () => {
    expect(() => decodeConfiguration(new Uint8Array(CONFIGURATION_BYTES_MAX + 1))).toThrow(RangeError);
    expect(() => decodeConfiguration(new Uint8Array([0xff, 0x7b]))).toThrow();
  });
});

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  type Configuration,
  checkConfiguration,
  checkSuccessor,
  decodeConfiguration,
  encodeConfiguration,
  genesisConfiguration,
  majority,
  memberWithId,
  voterWithId,
  withMember,
  withoutMember,
} from '#lib/consensus/configuration.js';
import {
  CONFIGURATION_BYTES_MAX,
  HOST_BYTES_MAX,
  INCARNATION_MAX,
  MAX_REPLICAS,
  PRIORITY_MAX,
} from '#lib/consensus/limits.js';

const genesis = genesisConfiguration(
  77,
  [2, 0, 1].map((id) => ({ id, bootId: 100 + id })),
);

describe('configuration', () => {
  test('of the founders lists them by id, each with an incarnation of its own', () => {
    expect(genesis.version).toBe(1);
    const rest = { role: 'voter', priority: 0, host: '', port: 0, returning: false };
    expect(genesis.members).toEqual([
      { id: 0, bootId: 100, incarnation: 1, ...rest },
      { id: 1, bootId: 101, incarnation: 2, ...rest },
      { id: 2, bootId: 102, incarnation: 3, ...rest },
    ]);
    expect(genesis.voters).toEqual(genesis.members);
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
            ids.map((id) => ({ id, bootId: 1 + id * 1_000_003, priority: id, host: `host${id}`, port: 1 + id })),
          );
          expect(decodeConfiguration(encodeConfiguration(configuration))).toEqual(configuration);
        },
      ),
    );
  });

  test.each(['ü', '字', '\u0001', '"'])(
    'that is valid can be encoded, whatever its hosts are called: %j',
    (character) => {
      const founders = Array.from({ length: MAX_REPLICAS }, (_, id) => ({ id, bootId: 1 + id, port: 1 + id }));
      const withHosts = (length: number) =>
        genesisConfiguration(
          1,
          founders.map((founder) => ({ ...founder, host: character.repeat(length) })),
        );
      for (let length = 1; length <= HOST_BYTES_MAX; length++) {
        let configuration: Configuration;
        try {
          configuration = withHosts(length);
        } catch (error) {
          expect(String(error)).toContain('host of member 0');
          expect(length).toBeGreaterThan(1);
          return;
        }
        expect(encodeConfiguration(configuration).length).toBeLessThanOrEqual(CONFIGURATION_BYTES_MAX);
      }
    },
  );

  test('of the most members with the longest names fits an entry', () => {
    const founders = Array.from({ length: MAX_REPLICAS }, (_, id) => ({
      id,
      bootId: 2 ** 48 - 1 - id,
      priority: PRIORITY_MAX,
      host: 'x'.repeat(HOST_BYTES_MAX),
      port: 65_535,
    }));
    const configuration = genesisConfiguration(2 ** 48, founders);
    expect(decodeConfiguration(encodeConfiguration(configuration))).toEqual(configuration);
  });

  test('changes by one voter at a time, so that majorities of neighbours meet', () => {
    fc.assert(
      fc.property(fc.integer({ min: 2, max: MAX_REPLICAS }), (size) => {
        const configuration = genesisConfiguration(
          1,
          Array.from({ length: size }, (_, id) => ({ id, bootId: id + 1 })),
        );
        const smaller = withoutMember(configuration, 0);
        expect(majority(configuration) + majority(smaller)).toBeGreaterThan(size);
        expect(() => checkSuccessor(configuration, smaller)).not.toThrow();
      }),
    );
  });

  test('may follow another only if at most one voter differs and no incarnation is given twice', () => {
    const learner = { id: 3, incarnation: 4, bootId: 9, role: 'learner', priority: 0, host: '', port: 0 } as const;
    const grown = withMember(genesis, { ...learner, returning: false });
    const one = memberWithId(genesis, 1) as (typeof genesis.members)[0];
    const bad: [Configuration, Configuration, string][] = [
      [genesis, { ...grown, version: 3 }, 'consecutive'],
      [genesis, { ...grown, clusterId: 78 }, 'another cluster'],
      [grown, { ...grown, version: 3, nextIncarnation: 4 }, 'would decrease'],
      [genesis, { ...withoutMember(withoutMember(genesis, 0), 1), version: 2 }, '2 voters differ'],
      [genesis, withMember(genesis, { ...one, bootId: 555, incarnation: 4 }), '2 voters differ'],
      [genesis, withMember(genesis, { ...learner, incarnation: 2, id: 1, returning: false }), 'another life'],
      [
        withoutMember(genesis, 2),
        { ...withMember(withoutMember(genesis, 2), { ...learner, incarnation: 3, returning: false }) },
        'given before',
      ],
    ];
    expect(() => checkSuccessor(genesis, grown)).not.toThrow();
    for (const [before, after, message] of bad) expect(() => checkSuccessor(before, after)).toThrow(message);
    expect(voterWithId(grown, 3)).toBeUndefined();
    expect(() => withoutMember(withoutMember(withoutMember(genesis, 0), 1), 2)).toThrow('members');
  });

  test('refuses whatever breaks a rule, and says which', () => {
    const { members } = genesis;
    const first = (changed: object) => ({ ...genesis, members: [{ ...members[0], ...changed }] });
    const bad: [unknown, string][] = [
      [null, 'not an object'],
      ['text', 'not an object'],
      [{ ...genesis, clusterId: -1 }, 'clusterId'],
      [{ ...genesis, clusterId: 2 ** 49 }, 'clusterId'],
      [{ ...genesis, version: 0 }, 'version'],
      [{ ...genesis, version: 1.5 }, 'version'],
      [{ ...genesis, nextIncarnation: INCARNATION_MAX }, 'nextIncarnation'],
      [{ ...genesis, members: [] }, 'members'],
      [{ ...genesis, members: 'all' }, 'members'],
      [{ ...genesis, members: [null] }, 'member'],
      [{ ...genesis, members: [members[1], members[0]] }, 'ascend'],
      [{ ...genesis, members: [members[0], members[0]] }, 'ascend'],
      [first({ id: MAX_REPLICAS }), 'id of a member'],
      [first({ incarnation: 0 }), 'incarnation of member 0'],
      [first({ incarnation: 4 }), 'incarnation of member 0'],
      [{ ...genesis, members: [members[0], { ...members[1], incarnation: 1 }] }, 'used twice'],
      [first({ bootId: -1 }), 'bootId of member 0'],
      [first({ bootId: 0 }), 'bootId of member 0'],
      [first({ bootId: undefined }), 'bootId of member 0'],
      [first({ role: 'king' }), 'role of member 0'],
      [first({ role: 'learner' }), 'no voters'],
      [first({ priority: PRIORITY_MAX + 1 }), 'priority of member 0'],
      [first({ host: 'x'.repeat(HOST_BYTES_MAX + 1), port: 1 }), 'host of member 0'],
      [first({ host: 'x' }), 'port of member 0'],
      [first({ port: 1 }), 'port of member 0'],
      [first({ returning: true }), 'returning of member 0'],
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
    for (const text of ['7', '{}', '[]', '[1,1,1,[]]', '[1,1,2,[[]]]', '[1,1,2,[null]]']) {
      expect(() => decodeConfiguration(new TextEncoder().encode(text)), text).toThrow('invalid configuration');
    }
  });
});

test('bytes and values that are no configuration are refused as what a peer sent amiss', () => {
  const codeOf = (action: () => unknown): unknown => {
    try {
      action();
    } catch (error) {
      return (error as { code?: unknown }).code;
    }
    return 'taken';
  };
  const decode = (bytes: Uint8Array) => codeOf(() => decodeConfiguration(bytes));
  const text = (value: string) => new TextEncoder().encode(value);
  const refused = (code: unknown): void => {
    expect(code).toBe('QUORATE_PROTOCOL');
  };
  refused(decode(new Uint8Array(CONFIGURATION_BYTES_MAX + 1)));
  refused(decode(text('[77,1,2,[[0,1,100,{"toString":1},0,"",0,0]]]')));
  fc.assert(fc.property(fc.uint8Array(), (bytes) => refused(decode(bytes))));
  fc.assert(fc.property(fc.json(), (json) => refused(decode(text(json)))));
  fc.assert(fc.property(fc.anything(), (value) => refused(codeOf(() => checkConfiguration(value)))));
  refused(codeOf(() => checkSuccessor(genesis, genesis)));
  const whole = encodeConfiguration(genesis);
  fc.assert(
    fc.property(fc.nat(whole.length - 1), fc.nat(255), (at, byte) => {
      const bytes = Uint8Array.from(whole);
      bytes[at] = byte;
      expect(decode(bytes)).toBeOneOf(['taken', 'QUORATE_PROTOCOL']);
    }),
  );
});

// The simulated fabric: that it does to memory what the contract in lib/fabric/fabric.ts allows, and nothing else.
import { describe, expect, test } from 'vitest';
import {
  MAILBOX_MESSAGE_BYTES,
  MAILBOX_MESSAGE_WORDS,
  MAILBOX_SLOT_WORDS,
  STATUS_BYTES,
} from '#lib/consensus/limits.js';
import { FabricStatus } from '#lib/fabric/fabric.js';
import { PERMISSION_STRATEGIES } from '#lib/fabric/permissions.js';
import { Random } from '#lib/fabric/sim/random.js';
import { SimBackgroundFabric } from '#lib/fabric/sim/sim-background-fabric.js';
import { SimLink } from '#lib/fabric/sim/sim-link.js';
import { SimNetwork, type SimNetworkOptions } from '#lib/fabric/sim/sim-network.js';
import { SimNode, SimProcessDied } from '#lib/fabric/sim/sim-node.js';
import { SimReplicationFabric } from '#lib/fabric/sim/sim-replication-fabric.js';
import { SimWorld } from '#lib/fabric/sim/sim-world.js';

const LOG_BYTES = 4096;
const MS = 1e6;

const QUIET: SimNetworkOptions = {
  strategy: 'qp-flags',
  latencyMin_ns: 10_000,
  latencyMax_ns: 20_000,
  latencySpike_ns: 0,
  latencySpikeProbability: 0,
  lossProbability: 0,
  retransmit_ns: 4 * MS,
  giveUpMin_ns: 24 * MS,
  giveUpMax_ns: 85 * MS,
  tearProbability: 0,
  tearOutOfOrder: false,
  tearGapMax_ns: MS,
  lateCompletionMax_ns: 0,
  lateCompletionProbability: 0,
  lateVisibilityProbability: 0,
  lateVisibilityMax_ns: 0,
  gatherAtPost: false,
  strayProbability: 0,
  hostSeesProcesses: false,
  permissionFailureProbability: 0,
};

function pair(options: Partial<SimNetworkOptions> = {}, seed = 1) {
  const world = new SimWorld(seed);
  const network = new SimNetwork({ ...QUIET, ...options }, world.random);
  const placed: [number, number][] = [];
  const observer = {
    onPlaced: (_node: SimNode, _from: SimNode, offset: number, length: number) => placed.push([offset, length]),
    onAppended: () => {},
    onFenceRaised: () => {},
    onRevoked: () => {},
    onEnabled: () => {},
  };
  const nodes = [0, 1].map((id) => new SimNode(world, network, id, observer, LOG_BYTES, LOG_BYTES)) as [
    SimNode,
    SimNode,
  ];
  const [writer, target] = nodes;
  const main = new SimReplicationFabric(writer);
  const background = new SimBackgroundFabric(target, () => {});
  const connect = (generation: number): SimLink => {
    const link = new SimLink('log', generation, writer, target);
    target.setIncomingLog(0, link);
    main.setPeer(1, link);
    return link;
  };
  const link = connect(1);
  const completions: { token: number; status: number }[] = [];
  const poll = (): void => {
    for (let count = main.submit(0, 0); count > 0; count = main.submit(0, 0)) {
      for (let index = 0; index < count; index++) {
        completions.push({ token: main.completionToken[index]!, status: main.completionStatus[index]! });
      }
    }
  };
  const run = (duration_ns: number): void => {
    poll(); // posts what was queued
    world.run(world.now_ns + duration_ns);
    poll();
  };
  return { world, network, writer, target, main, background, link, connect, completions, run, poll, placed };
}

describe('world', () => {
  test('runs events in the order of their time, and of their making where times are equal', () => {
    const world = new SimWorld(1);
    const seen: number[] = [];
    for (const [at, name] of [
      [5, 1],
      [3, 2],
      [5, 3],
      [0, 4],
    ] as const) {
      world.at(at, () => seen.push(name));
    }
    world.run(4);
    expect(seen).toEqual([4, 2]);
    expect(world.now_ns).toBe(4);
    world.run(10);
    expect(seen).toEqual([4, 2, 1, 3]);
  });

  test('lets time pass in the middle of an event', () => {
    const world = new SimWorld(1);
    const seen: string[] = [];
    world.at(1, () => {
      seen.push('begin');
      world.interleave(5);
      seen.push(`end at ${world.now_ns}`);
    });
    world.at(3, () => seen.push('between'));
    world.run(10);
    expect(seen).toEqual(['begin', 'between', 'end at 6']);
  });

  test('stops at the first violation', () => {
    const world = new SimWorld(1);
    world.at(1, () => world.fail('this', 'first'));
    world.at(2, () => world.fail('that', 'second'));
    world.run(10);
    expect(world.violation).toEqual({ invariant: 'this', message: 'first', time_ns: 1 });
    expect(world.now_ns).toBe(1);
  });
});

describe('random numbers', () => {
  test('are the same for the same seed and others for another', () => {
    const draw = (seed: number) =>
      Array.from(
        { length: 20 },
        (
          (random) => () =>
            random.uint32()
        )(new Random(seed)),
      );
    expect(draw(7)).toEqual(draw(7));
    expect(draw(7)).not.toEqual(draw(8));
    expect(draw(2 ** 35)).not.toEqual(draw(0));
  });

  test('are uniform within a few per cent', () => {
    const random = new Random(3);
    const counts = new Array(10).fill(0);
    for (let index = 0; index < 100_000; index++) counts[random.integer(10)]++;
    for (const count of counts) expect(Math.abs(count - 10_000)).toBeLessThan(500);
  });
});

describe('log link', () => {
  test('places WRITEs in order and completes them in order', () => {
    const { target, writer, main, completions, run } = pair();
    target.enable(0);
    writer.log.fill(7, 0, 640);
    for (let index = 0; index < 10; index++) main.queueWrite(1, index * 64, 64, index);
    run(MS);
    expect(completions).toEqual(Array.from({ length: 10 }, (_, token) => ({ token, status: FabricStatus.success })));
    expect([...target.log.subarray(0, 640)]).toEqual(new Array(640).fill(7));
    expect(target.log[640]).toBe(0);
  });

  test('refuses a WRITE without the permission, fails with all that follows, and takes nothing any more', () => {
    const { target, writer, main, completions, run } = pair();
    writer.log.fill(7);
    for (const token of [1, 2]) main.queueWrite(1, 0, 64, token);
    run(MS);
    expect(completions.map(({ status }) => status)).toEqual([FabricStatus.failed, FabricStatus.failed]);
    expect(main.logConnected(1)).toBe(false);
    main.queueWrite(1, 0, 64, 3);
    run(MS);
    expect(completions[2]).toEqual({ token: 3, status: FabricStatus.failed });
    expect(target.log.every((byte) => byte === 0)).toBe(true);
  });

  test('reads without any permission', () => {
    const { target, main, completions, run } = pair();
    target.log.fill(9, 128, 192);
    main.queueRead(1, 128, 64, 32, 5);
    run(MS);
    expect(completions).toEqual([{ token: 5, status: FabricStatus.success }]);
    expect([...main.workspaceBytes.subarray(32, 96)]).toEqual(new Array(64).fill(9));
  });

  test.each(PERMISSION_STRATEGIES)('places nothing after a revocation (%s)', (strategy) => {
    let landedInPart = 0;
    for (let seed = 1; seed <= 60; seed++) {
      const { world, target, writer, main, background, placed, run } = pair(
        { strategy, tearProbability: 0.8, tearOutOfOrder: true, strayProbability: 0.5 },
        seed,
      );
      main.setLogWriteKey(1, target.enable(0));
      writer.log.fill(7);
      for (let index = 0; index < 8; index++) main.queueWrite(1, index * 256, 256, index);
      main.submit(0, 0);
      world.run(world.random.integer(2 * MS));
      background.revokeLogWriter(0);
      const bytes = target.log.slice();
      const count = bytes.reduce((sum, byte) => sum + (byte === 7 ? 1 : 0), 0);
      if (count > 0 && count < 2048) landedInPart++;
      const pieces = placed.length;
      run(300 * MS);
      expect(placed.length, `seed ${seed}`).toBe(pieces);
      expect(Buffer.compare(target.log, bytes)).toBe(0);
    }
    // The interesting case, a revocation in the middle of WRITEs, did happen.
    expect(landedInPart).toBeGreaterThan(10);
  });

  test('tears messages when told to, also out of order, and always completes them whole', () => {
    let torn = 0;
    let outOfOrder = 0;
    for (let seed = 1; seed <= 40; seed++) {
      const { target, writer, main, completions, placed, run } = pair(
        { tearProbability: 1, tearOutOfOrder: true },
        seed,
      );
      target.enable(0);
      writer.log.fill(7, 0, 512);
      main.queueWrite(1, 0, 512, 1);
      run(50 * MS);
      expect(completions).toEqual([{ token: 1, status: FabricStatus.success }]);
      expect(target.log.subarray(0, 512).every((byte) => byte === 7)).toBe(true);
      if (placed.length > 1) torn++;
      if (placed.some(([offset], index) => index > 0 && offset < (placed[index - 1] as [number, number])[0]))
        outOfOrder++;
    }
    expect(torn).toBeGreaterThan(30);
    expect(outOfOrder).toBeGreaterThan(10);
  });

  test('reports a peer that does not answer only after the transport gave up', () => {
    const { network, target, main, world, completions, run, poll } = pair();
    target.enable(0);
    network.setCut(0, 1, true);
    main.queueWrite(1, 0, 64, 1);
    run(23 * MS);
    expect(completions).toEqual([]);
    world.run(world.now_ns + 70 * MS);
    poll();
    expect(completions).toEqual([{ token: 1, status: FabricStatus.unreachable }]);
  });

  test('takes effect although the answer is lost, and says so after the cut has healed', () => {
    const { network, target, writer, main, completions, run } = pair();
    target.enable(0);
    writer.log.fill(7, 0, 64);
    network.setCut(1, 0, true);
    main.queueWrite(1, 0, 64, 1);
    run(10 * MS);
    expect(target.log[0]).toBe(7);
    expect(completions).toEqual([]);
    network.setCut(1, 0, false);
    run(10 * MS);
    expect(completions).toEqual([{ token: 1, status: FabricStatus.success }]);
  });

  test('may take effect and still be reported as unreachable', () => {
    const { network, target, writer, main, completions, run } = pair();
    target.enable(0);
    writer.log.fill(7, 0, 64);
    network.setCut(1, 0, true);
    main.queueWrite(1, 0, 64, 1);
    run(200 * MS);
    expect(target.log[0]).toBe(7);
    expect(completions).toEqual([{ token: 1, status: FabricStatus.unreachable }]);
  });

  test('shows a WRITE that it has completed later, or when a READ comes behind it', () => {
    for (const readsBehind of [false, true]) {
      const { world, network, target, writer } = pair({ lateVisibilityProbability: 1, lateVisibilityMax_ns: 1e9 });
      const probing = new SimBackgroundFabric(writer, () => {});
      probing.setProbe(1, new SimLink('probe', 1, writer, target));
      const seen = () => target.mailboxes[MAILBOX_MESSAGE_BYTES];
      probing.outboxWords[MAILBOX_SLOT_WORDS + MAILBOX_MESSAGE_WORDS] = 7;
      probing.queueRecallWrite(1, 1);
      if (readsBehind) probing.queueStatusRead(1, STATUS_BYTES, 2);
      expect(probing.submit(0, 0)).toBe(0);
      world.run(10 * network.options.latencyMax_ns);
      expect(probing.submit(0, 0)).toBe(readsBehind ? 2 : 1);
      expect(probing.completionStatus[0]).toBe(FabricStatus.success);
      expect(seen()).toBe(readsBehind ? 7 : 0);
      world.run(2e9);
      expect(seen()).toBe(7);
    }
  });

  test('fails what is outstanding when it is replaced, before anything on its successor', () => {
    const { target, main, network, connect, completions, run } = pair();
    target.enable(0);
    network.setCut(0, 1, true);
    for (const token of [1, 2]) main.queueWrite(1, 0, 64, token);
    run(MS);
    network.setCut(0, 1, false);
    connect(2);
    main.queueRead(1, 0, 64, 0, 3);
    run(10 * MS);
    expect(completions).toEqual([
      { token: 1, status: FabricStatus.failed },
      { token: 2, status: FabricStatus.failed },
      { token: 3, status: FabricStatus.success },
    ]);
    expect(target.incomingLogGeneration(0)).toBe(2);
  });

  test('does not carry the permission over to its successor', () => {
    const { target, main, connect, completions, run } = pair();
    target.enable(0);
    connect(2);
    main.queueWrite(1, 0, 64, 1);
    run(10 * MS);
    expect(completions).toEqual([{ token: 1, status: FabricStatus.failed }]);
  });

  test('places packets that were on their way when the writer died, and none once revoked', () => {
    let late = 0;
    for (let seed = 1; seed <= 40; seed++) {
      const { world, target, writer, main, background, placed } = pair({ strayProbability: 1 }, seed);
      target.enable(0);
      writer.log.fill(7);
      main.queueWrite(1, 0, 256, 1);
      main.submit(0, 0);
      writer.crash();
      world.run(world.random.integer(30 * MS));
      if (placed.length > 0) late++;
      background.revokeLogWriter(0);
      const pieces = placed.length;
      world.run(world.now_ns + 200 * MS);
      expect(placed.length).toBe(pieces);
    }
    expect(late).toBeGreaterThan(5);
  });

  test('reads and writes the memory of a process that is stopped, and not of one that died', () => {
    const { target, main, completions, run } = pair();
    target.enable(0);
    main.queueWrite(1, 0, 64, 1);
    run(MS);
    target.crash();
    main.queueRead(1, 0, 64, 0, 2);
    run(200 * MS);
    expect(completions.map(({ status }) => status)).toEqual([FabricStatus.success, FabricStatus.unreachable]);
  });
});

describe('fence', () => {
  test('refuses an append of another epoch and everything behind it in the same submit', () => {
    const { writer, main, target, poll, completions } = pair();
    target.enable(0);
    const own = new SimBackgroundFabric(writer, () => {});
    own.raiseFence(5);
    main.workspaceBytes.fill(3, 0, 64);
    main.queueAppend(5, 0, 0, 64, 1);
    poll();
    main.queueAppend(4, 0, 64, 64, 2);
    main.queueWrite(1, 64, 64, 3);
    poll();
    expect(completions).toEqual([
      { token: 1, status: FabricStatus.success },
      { token: 2, status: FabricStatus.fenced },
      { token: 3, status: FabricStatus.fenced },
    ]);
    expect([writer.log[0], writer.log[64]]).toEqual([3, 0]);
    own.raiseFence(4);
    expect(writer.fence).toBe(5);
  });
});

describe('permissions', () => {
  test('let one peer in at a time and revoke only whom they let in', () => {
    const { target, world } = pair();
    target.enable(0);
    expect(() => target.enable(0)).toThrow('enabled while replica 0 may write');
    expect(world.violation?.invariant).toBe('single writer');
    target.revoke(0);
    expect(() => target.revoke(0)).toThrow('does not hold the permission');
  });

  test('are refused to a peer whose link is dead, which then has none until a fresh one', () => {
    const { target, link, connect } = pair();
    const dead: [number, number][] = [];
    target.onLinkDead = (peer, generation) => dead.push([peer, generation]);
    link.break();
    expect(() => target.enable(0)).toThrow('failed before it was granted');
    expect(dead).toEqual([[0, 1]]);
    expect(target.incomingLogGeneration(0)).toBe(0);
    connect(2);
    expect(target.enable(0)).toBe(0);
  });

  test.each(PERMISSION_STRATEGIES)(
    'that a failing device may have given are known until they are proven gone (%s)',
    (strategy) => {
      let open = 0;
      let closed = 0;
      for (let seed = 1; seed <= 40; seed++) {
        const { target, background, connect, run } = pair({ strategy, permissionFailureProbability: 0.5 }, seed);
        for (let generation = 2; generation < 12; generation++) {
          if (background.incomingLogGeneration(0) === 0) connect(generation);
          try {
            background.enableLogWriter(0);
            expect([...target.writers()], `seed ${seed}`).toEqual([0]);
          } catch {
            if (target.writers().size > 0) expect(background.logWriter(), `seed ${seed}`).toBe(0);
          }
          for (let tries = 0; background.logWriter() >= 0 && tries < 100; tries++) {
            try {
              background.revokeLogWriter(0);
            } catch {
              if (target.writers().size > 0) open++;
              else closed++;
              run(100 * MS); // it is asked for again at a later tick
            }
          }
          expect(background.logWriter(), `seed ${seed}`).toBe(-1);
          expect(target.writers().size, `seed ${seed}`).toBe(0);
        }
      }
      // Revocations failed before and after they took effect.
      expect(open).toBeGreaterThan(10);
      expect(closed).toBeGreaterThan(10);
    },
  );

  test('by key are void for a key of an earlier grant', () => {
    const { target, main, run, completions } = pair({ strategy: 'mr-dereg' });
    const first = target.enable(0);
    target.revoke(0);
    const second = target.enable(0);
    expect(second).not.toBe(first);
    main.setLogWriteKey(1, first);
    main.queueWrite(1, 0, 64, 1);
    run(MS);
    expect(completions).toEqual([{ token: 1, status: FabricStatus.failed }]);
  });
});

test('a fabric call of a process that died unwinds it', () => {
  const { writer, main } = pair();
  writer.preempt = () => {
    if (!writer.alive) throw new SimProcessDied();
  };
  writer.crash();
  expect(() => main.submit(0, 0)).toThrow(SimProcessDied);
});

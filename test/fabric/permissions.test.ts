// The right to write a replica's log, on shared memory: what one grant opened stays closed after its revocation, also
// when the same peer is granted again later. A leader that stood still meanwhile goes on with requests of the old grant.
import { mkdtempSync, rmSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { LOG_BYTES_MIN } from '#lib/consensus/limits.js';
import { LogPermissions, PERMISSION_STRATEGIES, type PermissionStrategy } from '#lib/fabric/permissions.js';
import { VerbsEndpoint } from '#lib/fabric/verbs-endpoint.js';
import { type CompletionQueue, QpState, type QueuePair, WcStatus, WrOpcode } from '#lib/verbs/index.js';

const LEADER = 0;
const WRITE_ID = 7;

/** Nothing is refused by surprise. */
const fails = (what: string, error: unknown): void => {
  throw new Error(what, { cause: error });
};

interface Link {
  readonly queuePair: QueuePair;
  readonly logAddress: number;
  readonly writeKey: number;
}

describe.each(PERMISSION_STRATEGIES)('permission to write a log, %s', (strategy: PermissionStrategy) => {
  let directory = '';
  let leader: VerbsEndpoint;
  let voter: VerbsEndpoint;
  let permissions: LogPermissions;
  let dead: number[] = [];
  let generation = 0;

  beforeEach(() => {
    directory = mkdtempSync('/dev/shm/quorate-test-');
    const options = { device: 'shm', shmDirectory: directory, logBytes: LOG_BYTES_MIN };
    leader = VerbsEndpoint.open({ ...options, permissionStrategy: strategy });
    voter = VerbsEndpoint.open({ ...options, permissionStrategy: strategy });
    dead = [];
    generation = 0;
    permissions = new LogPermissions(
      strategy,
      voter.logDomain,
      voter.logMemory,
      voter.incomingQueue,
      (_peer, which) => dead.push(which),
      fails,
    );
  });
  afterEach(() => {
    leader.close();
    voter.close();
    rmSync(directory, { recursive: true });
  });

  async function link(): Promise<Link> {
    const pending = leader.initiate('log', ++generation);
    const { queuePair, reply } = await voter.accept(LEADER, pending.request);
    await leader.complete(pending, reply);
    permissions.setLink(LEADER, { generation, queuePair });
    return { queuePair: pending.queuePair, logAddress: reply.readable.address, writeKey: reply.writable.rkey };
  }

  /** WRITEs the leader's first bytes to the voter's log, waits for the completion and returns its status. */
  function write({ queuePair, logAddress, writeKey }: Link, key: number): number {
    const { accepted } = queuePair.postSend([
      {
        opcode: WrOpcode.RDMA_WRITE,
        sendFlags: 2, // IBV_SEND_SIGNALED
        wrId: WRITE_ID,
        localAddress: leader.logMemory.address,
        length: 8,
        lkey: leader.logRegion.lkey,
        remoteAddress: logAddress,
        rkey: key === 0 ? writeKey : key,
      },
    ]);
    if (accepted !== 1) return WcStatus.WR_FLUSH_ERR;
    for (;;) {
      const [completion] = leader.mainQueue.poll(1);
      if (completion?.wrId === WRITE_ID) return completion.status; // others are of READs that links begin with
    }
  }

  const bytes = (endpoint: VerbsEndpoint) => new Uint8Array(endpoint.logMemory.buffer, 0, 8);

  it('opens with a grant, closes with its revocation, and never opens again for what the grant before allowed', async () => {
    const old = await link();
    bytes(leader).fill(1);
    expect(write(old, permissions.enable(LEADER))).toBe(WcStatus.SUCCESS);
    expect([...bytes(voter)]).toEqual([...bytes(leader)]);

    permissions.revoke(LEADER);
    permissions.prepare();
    const hasLink = permissions.generation(LEADER) !== 0;
    expect(hasLink).toBe(strategy === 'mr-dereg');
    expect(dead).toEqual(hasLink ? [] : [1]);
    if (!hasLink) expect(() => permissions.enable(LEADER)).toThrow(/no log link/);
    const fresh = hasLink ? old : await link();
    const key = permissions.enable(LEADER);

    bytes(leader).fill(2);
    expect(write(fresh, key)).toBe(WcStatus.SUCCESS);
    expect(bytes(voter)[0]).toBe(2);
  });

  it('refuses a WRITE of the grant before while the same peer holds the permission anew', async () => {
    const old = await link();
    const oldKey = permissions.enable(LEADER);
    permissions.revoke(LEADER);
    permissions.prepare();
    if (permissions.generation(LEADER) === 0) await link();
    permissions.enable(LEADER);

    bytes(leader).fill(3);
    expect(write(old, oldKey)).not.toBe(WcStatus.SUCCESS);
    expect([...bytes(voter)]).toEqual(new Array(8).fill(0));
  });

  it('closes a link that was replaced while it carried the permission when that is revoked, and misses nothing', async () => {
    await link();
    permissions.enable(LEADER);
    await link();
    permissions.revoke(LEADER);
    permissions.prepare();
    expect(permissions.generation(LEADER)).toBe(2);
    expect(dead).toEqual([]);
    permissions.enable(LEADER);
  });

  it(`is the voter's to give: nothing can be written before the first grant`, async () => {
    const early = await link();
    bytes(leader).fill(4);
    expect(write(early, 0)).not.toBe(WcStatus.SUCCESS);
    expect([...bytes(voter)]).toEqual(new Array(8).fill(0));
  });
});

describe('a flush marker', () => {
  const PEER = 3;
  /** What the device reports, poll by poll. */
  let reports: number[][] = [];
  const queue = { poll: () => (reports.shift() ?? []).map((qpNum) => ({ qpNum })) } as unknown as CompletionQueue;
  const none = {} as never;

  function link(number: number, generation: number) {
    let state: QpState = QpState.RTS;
    const queuePair = {
      number,
      setAccessFlags: () => {},
      modify: (attributes: { state: QpState }) => {
        state = attributes.state;
      },
      query: () => ({ state }),
      close: () => {},
    };
    return { generation, queuePair: queuePair as unknown as QueuePair };
  }

  // Devices give the numbers of queue pairs that are gone to new ones.
  it.each([
    ['was polled with that of another queue pair', [[9], [8]], []],
    ['is still in the queue', [[8]], [[9], []]],
  ])('of a former queue pair with the same number proves nothing, if it %s', (_, first, meanwhile) => {
    const permissions = new LogPermissions('qp-flush', none, none, queue, () => {}, fails);
    permissions.setLink(PEER, link(8, 1));
    permissions.enable(PEER);
    reports = first; // 9 is that of a link whose peer's operation was refused
    permissions.revoke(PEER);
    permissions.prepare();

    permissions.setLink(PEER, link(9, 2));
    reports = meanwhile;
    permissions.enable(PEER);
    reports = [...reports, [], [], [9]];
    permissions.revoke(PEER);
    expect(reports).toEqual([]);
  });
});

it('a flush marker that does not come is waited for once: then it is looked for, and others can be granted when it is there', () => {
  const PEER = 3;
  const OTHER = 4;
  let now_ms = 0;
  let polls = 0;
  const flushed: { qpNum: number }[] = [];
  /** Each look takes a millisecond. */
  const queue = {
    poll: () => {
      now_ms++;
      polls++;
      return flushed.splice(0);
    },
  };
  const link = (number: number) => ({
    generation: number,
    queuePair: {
      number,
      setAccessFlags: () => {},
      modify: () => {},
      query: () => ({ state: QpState.RTS }),
      close: () => {},
    },
  });
  const now_ns = () => now_ms * 1e6;
  const none = { registerMemory: () => expect.unreachable() };
  const permissions = new LogPermissions('qp-flush', none, { length: 64 }, queue, () => {}, fails, now_ns);
  permissions.setLink(PEER, link(8));
  permissions.setLink(OTHER, link(9));
  permissions.enable(PEER);
  const late = expect.objectContaining({ code: 'QUORATE_REVOKE_FAILED' });
  expect(() => permissions.revoke(PEER)).toThrow(late);
  // Whoever waits meanwhile does not beat, and is taken for dead.
  polls = 0;
  for (let tick = 0; tick < 5; tick++) expect(() => permissions.revoke(PEER)).toThrow(late);
  expect(polls).toBe(5);
  flushed.push({ qpNum: 7 }, { qpNum: 8 });
  permissions.revoke(PEER);
  expect(permissions.enable(OTHER)).toBe(0);
  // That one's is waited for.
  polls = 0;
  expect(() => permissions.revoke(OTHER)).toThrow(late);
  expect(polls).toBeGreaterThan(5);
});

describe('a device that fails', () => {
  const PEER = 3;
  const OTHER = 4;
  const failed = new Error('the device does not answer');
  /** Queue pairs whose marker was flushed. */
  const flushed: { qpNum: number }[] = [];
  let closed: number[] = [];
  const queue = { poll: () => flushed.splice(0) } as unknown as CompletionQueue;
  const region = { rkey: 5, close: () => {} };
  const domain = { registerMemory: () => region } as never;

  /** A queue pair whose next call of a method, or next ones, can be made to fail. */
  function link(number: number, generation: number) {
    let state: QpState = QpState.RTS;
    let failing = '';
    let times = 0;
    const mayFail = (method: string): void => {
      if (failing !== method || times === 0) return;
      times--;
      throw failed;
    };
    const queuePair = {
      number,
      setAccessFlags: () => {
        mayFail('setAccessFlags');
        if (state !== QpState.RTS) throw new Error('the queue pair has failed');
      },
      modify: (attributes: { state: QpState }) => {
        state = attributes.state;
        flushed.push({ qpNum: number });
      },
      query: () => {
        mayFail('query');
        return { state };
      },
      close: () => {
        mayFail('close');
        closed.push(number);
      },
    };
    const fail = (method: 'setAccessFlags' | 'query' | 'close', count = 1): void => {
      failing = method;
      times = count;
    };
    return { link: { generation, queuePair: queuePair as unknown as QueuePair }, fail };
  }

  it.each(['qp-flush', 'qp-flags'] as const)('while it grants keeps no other grant out for ever, %s', (strategy) => {
    const permissions = new LogPermissions(strategy, domain, {} as never, queue, () => {}, fails);
    const first = link(8, 1);
    permissions.setLink(PEER, first.link);
    first.fail('setAccessFlags');
    expect(() => permissions.enable(PEER)).toThrow(failed);
    permissions.prepare();
    // What became of the access flags is not known, so the queue pair has done its service.
    expect(permissions.generation(PEER)).toBe(0);
    permissions.setLink(OTHER, link(8, 2).link);
    expect(permissions.enable(OTHER)).toBe(0);
  });

  it('while it grants, and again while it takes that back, has the permission taken back before another is given', () => {
    const permissions = new LogPermissions('qp-flags', domain, {} as never, queue, () => {}, fails);
    const first = link(8, 1);
    permissions.setLink(PEER, first.link);
    first.fail('setAccessFlags', 2);
    expect(() => permissions.enable(PEER)).toThrow(failed);
    expect(permissions.writer).toBe(PEER);
    permissions.setLink(OTHER, link(9, 2).link);
    expect(() => permissions.enable(OTHER)).toThrow('single writer');
    permissions.revoke(PEER);
    expect(permissions.writer).toBe(-1);
    expect(permissions.enable(OTHER)).toBe(0);
  });

  it('when it is asked for the state of a link that has failed keeps no other grant out for ever, qp-flush', () => {
    const permissions = new LogPermissions('qp-flush', domain, {} as never, queue, () => {}, fails);
    const broken = link(8, 1);
    permissions.setLink(PEER, broken.link);
    broken.link.queuePair.modify({ state: QpState.ERR });
    broken.fail('query');
    expect(() => permissions.enable(PEER)).toThrow(failed);
    expect(permissions.writer).toBe(-1);
    permissions.setLink(OTHER, link(9, 2).link);
    expect(permissions.enable(OTHER)).toBe(0);
  });

  it('behind a revocation keeps no other grant out for ever', () => {
    const permissions = new LogPermissions('mr-dereg', domain, { length: 64 } as never, queue, () => {}, fails);
    const first = link(8, 1);
    permissions.setLink(PEER, first.link);
    permissions.enable(PEER);
    first.fail('query');
    permissions.revoke(PEER);
    permissions.prepare();
    expect(permissions.generation(PEER)).toBe(0);
    permissions.setLink(OTHER, link(9, 2).link);
    expect(permissions.enable(OTHER)).toBe(region.rkey);
  });

  it('to close a link keeps nothing else from being done, and is asked again', () => {
    closed = [];
    const dead: number[] = [];
    const told: [string, unknown][] = [];
    const permissions = new LogPermissions(
      'qp-flags',
      domain,
      {} as never,
      queue,
      (_, generation) => dead.push(generation),
      (what, error) => told.push([what, error]),
    );
    const first = link(8, 1);
    first.fail('close');
    permissions.setLink(PEER, first.link);
    permissions.setLink(PEER, link(9, 2).link); // a fresh one replaces it
    expect(told).toEqual([[`closing a log link of replica ${PEER}`, failed]]);
    permissions.enable(PEER);
    permissions.revoke(PEER);
    permissions.prepare();
    expect(closed).toEqual([8, 9]);
    expect(dead).toEqual([2]);
    expect(told).toHaveLength(1);
  });

  it('to register the log for a grant that is to come says so once, and is asked again when there is one', () => {
    const told: [string, unknown][] = [];
    let refused = 0;
    let isRefusing = false;
    const registering = {
      registerMemory: () => {
        if (isRefusing) {
          refused++;
          throw failed;
        }
        return region;
      },
    };
    const log = { length: 64 } as never;
    const permissions = new LogPermissions(
      'mr-dereg',
      registering,
      log,
      queue,
      () => {},
      (what, error) => told.push([what, error]),
    );
    permissions.setLink(PEER, link(8, 1).link);
    isRefusing = true;
    permissions.enable(PEER); // with the region that is there from the beginning
    permissions.revoke(PEER);
    permissions.prepare();
    permissions.prepare();
    expect(told).toEqual([['a region for the next grant', failed]]);
    expect(refused).toBe(1);
    expect(() => permissions.enable(PEER)).toThrow(failed);
    expect(permissions.writer).toBe(-1);
    isRefusing = false;
    expect(permissions.enable(PEER)).toBe(region.rkey);
  });
});

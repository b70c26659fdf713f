// A spare on an RDMA device takes the place of a voter that was killed: the state comes by READs from the follower that is
// left. One process for each replica; they share the devices that there are.
import { type ChildProcess, fork } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import { afterEach, expect, test } from 'vitest';
import { rdmaDevices } from '../devices.js';

const PROGRAM = fileURLToPath(new URL('../fixtures/spare-replica.mjs', import.meta.url));
const PORT = 18700;
const VOTERS = 3;
const SPARE = 3;
const TIMEOUT_MS = 240_000;

interface Report {
  readonly id: number;
  readonly role: string;
  readonly voters: readonly number[];
  readonly active: readonly number[];
  readonly spares: readonly number[];
  readonly digest: string;
  readonly applied: number;
  readonly transfers: readonly { role: string; donor: number; state: string }[];
  readonly errors: readonly string[];
}

const children = new Map<number, ChildProcess>();
afterEach(() => {
  for (const child of children.values()) child.kill('SIGKILL');
  children.clear();
});

function launch(id: number, clusterKey: string): void {
  const devices = rdmaDevices();
  const places = Array.from({ length: VOTERS + 1 }, (_, at) => ({ id: at, host: '127.0.0.1', port: PORT + at }));
  const order = { id, places, voters: VOTERS, clusterKey, device: devices[id % devices.length] };
  children.set(id, fork(PROGRAM, [JSON.stringify(order)]));
}

function ask(id: number, action: string): Promise<Report> {
  return new Promise((resolve, reject) => {
    const child = children.get(id);
    const ended = (): void => reject(new Error(`replica ${id} ended`));
    child?.once('exit', ended);
    child?.once('message', (report) => {
      child.off('exit', ended);
      resolve(report as Report);
    });
    child?.send(action);
  });
}

async function until<Value>(probe: () => Promise<Value | undefined | false>, what: string): Promise<Value> {
  for (const end = Date.now() + 100_000; Date.now() < end; await new Promise((resolve) => setTimeout(resolve, 200))) {
    const value = await probe();
    if (value !== undefined && value !== false) return value;
  }
  throw new Error(`waited in vain for ${what}`);
}

test('a spare takes the place of a voter that was killed, and has the same state', {
  timeout: TIMEOUT_MS,
}, async () => {
  const clusterKey = randomBytes(32).toString('hex');
  for (let id = 0; id <= VOTERS; id++) launch(id, clusterKey);
  const reports = () => Promise.all([...children.keys()].map((id) => ask(id, 'status')));
  const before = await until(async () => {
    const leader = (await reports()).find(({ role }) => role === 'leader');
    return leader?.active.length === VOTERS && leader.spares.includes(SPARE) && leader;
  }, 'three voters and a spare');
  await ask(before.id, 'fill');
  const victim = before.voters.find((id) => id !== before.id) as number;
  children.get(victim)?.kill('SIGKILL');
  children.delete(victim);
  const after = await until(async () => {
    const leader = (await reports()).find(({ role }) => role === 'leader');
    return leader?.voters.includes(SPARE) && leader.active.length === VOTERS && leader;
  }, 'the spare as a voter');
  expect(after.voters).not.toContain(victim);
  const [one, ...others] = await until(async () => {
    const all = await reports();
    return all.every(({ applied }) => applied === all[0]?.applied) && all;
  }, 'all to be applied');
  for (const { digest } of others) expect(digest).toBe(one?.digest);
  const spare = await ask(SPARE, 'status');
  const last = spare.transfers.filter(({ role }) => role === 'receiver').at(-1);
  expect(last).toMatchObject({ state: 'done' });
  expect(spare.errors).toEqual([]);
});

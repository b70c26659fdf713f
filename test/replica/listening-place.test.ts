// Where a replica listens while its address is changed, and changed again.
import { afterEach, expect, it, vi } from 'vitest';
import { ControlServer } from '#lib/replica/control-channel.js';
import { ListeningPlace } from '#lib/replica/listening-place.js';
import { REMOVED_GRACE_MS } from '#lib/replica/member-directory.js';
import { answers, CLUSTER_KEY, freePorts } from './fixture.js';

const HOST = '127.0.0.1';
let place: ListeningPlace;
const servers: ControlServer[] = [];
const warnings: string[] = [];
afterEach(async () => {
  await place.close();
  servers.length = 0;
  warnings.length = 0;
});

function makePlace(): ListeningPlace {
  place = new ListeningPlace({
    makeServer: () => {
      const identity = { memberIds: [0, 1], hello: () => ({ id: 0, bootId: 1, clusterId: null }) };
      const server = new ControlServer({ ...identity, clusterKey: CLUSTER_KEY });
      servers.push(server);
      return server;
    },
    isClosed: () => false,
    onWarning: ({ message }) => warnings.push(message),
  });
  return place;
}

it('is the one of the last change, also if the name of an earlier one takes longer to look up', async () => {
  const [first, slow, last] = (await freePorts(3)) as [number, number, number];
  const place = makePlace();
  await place.listen(HOST, first);
  let found: () => void = () => {};
  const lookup = new Promise<void>((resolve) => {
    found = resolve;
  });
  const { listen } = ControlServer.prototype;
  ControlServer.prototype.listen = async function (host, port) {
    if (port === slow) await lookup;
    return await listen.call(this, host, port);
  };
  try {
    const moves = [place.move(HOST, slow), place.move(HOST, last)];
    // Whatever the later one does without the earlier one.
    await Promise.race([moves[1], new Promise((resolve) => setImmediate(() => setImmediate(resolve)))]);
    found();
    await Promise.all(moves);
  } finally {
    ControlServer.prototype.listen = listen;
  }
  expect(place.at).toEqual({ host: HOST, port: last });
  expect(await answers(HOST, last)).toBe(true);
  expect(warnings).toEqual([]);
});

it('is told of no failure when the address becomes again the one where it still listens', async () => {
  const [first, taken] = (await freePorts(2)) as [number, number];
  const place = makePlace();
  await place.listen(HOST, first);
  const other = new ControlServer({ memberIds: [0], hello: () => ({ id: 0, bootId: 1, clusterId: null }) });
  await other.listen(HOST, taken);
  await place.move(HOST, taken);
  expect(warnings.splice(0)).toEqual([
    expect.stringContaining(`was changed to ${HOST}:${taken}, where it cannot listen`),
  ]);
  await other.close();
  await place.move(HOST, first);
  expect(warnings).toEqual([]);
  expect(place.at).toEqual({ host: HOST, port: first });
  expect(await answers(HOST, first)).toBe(true);
});

it('stays as it is when the change is to another name of the same address', async () => {
  const [first, second] = (await freePorts(2)) as [number, number];
  const otherName = '127.1'; // as inet_aton(3) reads it, 127.0.0.1
  const place = makePlace();
  await place.listen(HOST, first);
  await place.move(otherName, first);
  expect(warnings).toEqual([]);
  expect(place.at).toEqual({ host: otherName, port: first });
  // Nor is it left when it was about to be.
  await place.move(HOST, second);
  await place.move(HOST, first);
  expect(warnings).toEqual([]);
  expect(place.at).toEqual({ host: HOST, port: first });
  expect(await answers(HOST, first)).toBe(true);
});

it('is a former one again, under another name, also when that is left in the moment in which it is found to be in use', async () => {
  const [first, second] = (await freePorts(2)) as [number, number];
  const otherName = '127.1'; // as inet_aton(3) reads it, 127.0.0.1
  const place = makePlace();
  await place.listen(HOST, first);
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  const { listen } = ControlServer.prototype;
  try {
    await place.move(HOST, second);
    ControlServer.prototype.listen = function (...parameters) {
      return listen.apply(this, parameters).finally(() => vi.advanceTimersByTime(REMOVED_GRACE_MS));
    };
    await place.move(otherName, first);
  } finally {
    ControlServer.prototype.listen = listen;
    vi.useRealTimers();
  }
  expect(warnings).toEqual([]);
  expect(place.at).toEqual({ host: otherName, port: first });
  expect(await answers(HOST, first)).toBe(true);
});

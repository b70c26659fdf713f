// Three replicas of a key-value store in one process (in real life: one process or host each). Run it with
//   node examples/key-value.mjs
import { encodeSet, KeyValueStore, Replica } from 'quorate';

const members = [0, 1, 2].map((id) => ({ id, host: '127.0.0.1', port: 7700 + id }));
const clusterKey = 'at least sixteen bytes, and secret';
const stores = members.map(() => new KeyValueStore());
const replicas = await Promise.all(
  members.map(({ id }) => Replica.open({ id, members, clusterKey, stateMachine: stores[id] })),
);

const leader = replicas[replicas[0].status().leader ?? 0];
const { lsn, result } = await leader.propose(encodeSet('greeting', 'hello')); // in the memory of a majority
console.log(
  `${result} at LSN ${lsn}; the leader, replica ${leader.id}, has "${stores[leader.id].getText('greeting')}"`,
);
await Promise.all(replicas.map((replica) => replica.close()));

// Ping-pong with datagrams, with another of its kind or with ibv_ud_pingpong of rdma-core:
//
//   node examples/ud-pingpong.mjs [--device shm] [--gid-index N] [--port 18515] [--size 1024] [--iterations 1000]
//   node examples/ud-pingpong.mjs ... HOST                 the client, on the same or another machine
//
// Nobody repeats a datagram that is lost: then it ends with an error after --timeout-ms.
import { GRH_BYTES, QpState, QpType } from 'quorate/verbs';
import { exchange, open, play, postReceives, readOptions } from './support/pingpong.mjs';

const QKEY = 0x1111_1111; // that of ibv_ud_pingpong

const options = readOptions(import.meta.url, 1024);
const side = open(options, QpType.UD, GRH_BYTES);
const { queuePair, context, domain } = side;
queuePair.toInit({ qkey: QKEY });
const receives = postReceives(side);
let destination = {};
await exchange(options, side, async (peer) => {
  queuePair.modify({ state: QpState.RTR });
  queuePair.modify({ state: QpState.RTS, sqPsn: queuePair.psn });
  const addressHandle = domain.createAddressHandle(context.addressVectorFor(peer, 1, side.gid.index));
  destination = { addressHandle, remoteQpNum: peer.qpNum, remoteQkey: QKEY };
});
play(options, side, receives, destination);
context.close();

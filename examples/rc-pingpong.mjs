// Ping-pong over a reliable connection, with another of its kind or with ibv_rc_pingpong of rdma-core:
//
//   node examples/rc-pingpong.mjs [--device shm] [--gid-index N] [--port 18515] [--size 4096] [--iterations 1000]
//   node examples/rc-pingpong.mjs ... HOST                 the client, on the same or another machine
//
//   ibv_rc_pingpong -d mlx5_0 -g 3 HOST                    the same client, written in C (-g: GID index)
import { QpType } from 'quorate/verbs';
import { exchange, open, play, postReceives, readOptions } from './support/pingpong.mjs';

const options = readOptions(import.meta.url, 4096);
const side = open(options, QpType.RC, 0);
const { queuePair, context } = side;
queuePair.toInit();
const receives = postReceives(side);
const sgidIndex = side.gid.index;
await exchange(options, side, async (peer) => {
  // Off this thread: the transition to RTR may wait for the network to resolve the peer's address.
  await queuePair.toReadyToReceiveAsync(
    { ...peer, pathMtuBytes: options.mtu },
    { pathMtuBytes: options.mtu, maxDestRdAtomic: 1, minRnrTimer: 12, sgidIndex },
  );
  queuePair.toReadyToSend({ maxRdAtomic: 1 });
});
play(options, side, receives, {});
context.close();

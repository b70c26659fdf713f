// Free TCP ports on the loopback interface for the control channels of one run. They are taken from below the range
// that the kernel gives to outgoing connections, so that a replica that is started again finds its port still free.
import { createServer } from 'node:net';
import { DemoError } from './deadline.js';

const PORT_MIN = 20_000;
const PORT_MAX = 32_000;
const TRIES_MAX = 200;

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen({ port, host: '127.0.0.1', exclusive: true }, () => server.close(() => resolve(true)));
  });
}

/** `random` is uniform in [0, 1). */
export async function freePorts(count: number, random: () => number): Promise<number[]> {
  const ports = new Set<number>();
  for (let tries = 0; tries < TRIES_MAX && ports.size < count; tries++) {
    const port = PORT_MIN + Math.floor(random() * (PORT_MAX - PORT_MIN));
    if (!ports.has(port) && (await isFree(port))) ports.add(port);
  }
  if (ports.size < count) throw new DemoError(`found no ${count} free TCP ports between ${PORT_MIN} and ${PORT_MAX}`);
  return [...ports];
}

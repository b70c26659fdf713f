// npm run rxe: runs a command where there are RDMA devices in software (SoftRoCE), as root, in this checkout. That is
// this machine when its kernel can do it, else a virtual machine. See docs/RXE.md.
import { mkdirSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { devicesHere, runHere } from './rxe/host.mjs';
import { runInMachine } from './rxe/machine.mjs';
import { setup } from './setup.mjs';
import { fail } from './tools/child.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const USAGE = `usage: npm run rxe -- [OPTIONS] -- COMMAND...

Runs COMMAND as root in this checkout with RDMA devices b0, b1, ... (one per replica) and rxe0.
Its output is streamed, its exit code comes back. What it writes vanishes, except in the folder $QUORATE_RESULTS.
$QUORATE_RDMA_DEVICES lists the devices of the replicas; $QUORATE_ONE_CORE is 'yes' in a virtual machine with --pin.
Other variables QUORATE_* are handed on.

  --replicas N       devices b0 .. b<N-1> (default 3)
  --mtu BYTES        of their interfaces: 1500 gives path MTU 1024, 4200 gives 4096 (default 1500)
  --cpus N           of the virtual machine (default 2)
  --memory MIB       of the virtual machine (default 4096)
  --pin              run the whole virtual machine on one core of this machine
  --timeout SECONDS  for everything (default 600)
  --results FOLDER   what $QUORATE_RESULTS stands for (default out/results/rxe)
  --machine WHICH    vm, host, or auto (default auto: this machine where it can, else a virtual machine)
`;

/** A whole number within bounds, from an option. */
function number(values, name, least, most) {
  const value = Number(values[name]);
  if (Number.isInteger(value) && value >= least && value <= most) return value;
  throw new Error(`--${name} is "${values[name]}"; it must be a whole number from ${least} to ${most}`);
}

/** The options, for parseArgs. */
export const rxeOptions = /** @type {const} */ ({
  replicas: { type: 'string', default: '3' },
  mtu: { type: 'string', default: '1500' },
  cpus: { type: 'string', default: '2' },
  memory: { type: 'string', default: '4096' },
  pin: { type: 'boolean', default: false },
  timeout: { type: 'string', default: '600' },
  results: { type: 'string', default: join(root, 'out/results/rxe') },
  machine: { type: 'string', default: 'auto' },
});

/** @returns {import('./rxe/machine.mjs').RxeOptions & { machine: string }} */
function parse(args) {
  const { values, positionals } = parseArgs({ args, options: rxeOptions, allowPositionals: true });
  const machine = String(values.machine);
  if (positionals.length === 0) throw new Error(`no command was given\n\n${USAGE}`);
  if (!['auto', 'host', 'vm'].includes(machine)) {
    throw new Error(`--machine is "${machine}"; it must be vm, host or auto`);
  }
  return {
    root,
    command: positionals,
    replicas: number(values, 'replicas', 0, 64),
    mtu: number(values, 'mtu', 1280, 9000),
    cpus: number(values, 'cpus', 1, 64),
    memoryMiB: number(values, 'memory', 512, 1 << 20),
    pin: values.pin === true,
    timeoutMs: number(values, 'timeout', 1, 86_400) * 1000,
    results: resolve(String(values.results)),
    machine,
  };
}

/**
 * Runs a command with RDMA devices and returns its exit code.
 * @param {string[]} args as on the command line
 */
export async function rxe(args) {
  const { machine, ...options } = parse(args);
  mkdirSync(options.results, { recursive: true });
  const choice = machine === 'vm' ? undefined : await devicesHere(options.replicas);
  if (choice) return await runHere(options, choice);
  if (machine === 'host')
    throw new Error('this machine has no RDMA device, and none can be made (root? module rdma_rxe?)');
  if (process.arch !== 'x64') {
    throw new Error(
      `the virtual machine is for x86-64 and this is ${process.arch}; use a kernel with rdma_rxe as root`,
    );
  }
  await setup(['rxe']);
  return await runInMachine(options);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    if (process.argv.includes('--help')) process.stdout.write(USAGE);
    else process.exitCode = await rxe(process.argv.slice(2));
  } catch (error) {
    fail(error);
  }
}

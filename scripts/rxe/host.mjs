// Runs a command on this machine itself where its kernel can give RDMA devices: SoftRoCE devices like those of the
// virtual machine (root, and a kernel with the module), which are removed afterwards, or devices that are there already.
import { accessSync, constants, existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { run, runOrThrow } from '../tools/child.mjs';
import { deviceNames } from './machine.mjs';
import { checkKernelWarnings } from './warnings.mjs';

const DEVICES_TIMEOUT_MS = 60_000;
const devicesScript = join(import.meta.dirname, 'devices.sh');

function usableDevices() {
  const list = (folder) => (existsSync(folder) ? readdirSync(folder) : []);
  const mayOpen = (name) => {
    try {
      accessSync(join('/dev/infiniband', name), constants.R_OK | constants.W_OK);
      return true;
    } catch {
      return false;
    }
  };
  const nodes = list('/dev/infiniband').filter((name) => name.startsWith('uverbs'));
  return nodes.some(mayOpen) ? list('/sys/class/infiniband').sort() : [];
}

async function kernelHasRxe() {
  if (process.getuid?.() !== 0) return false;
  if (existsSync('/sys/module/rdma_rxe')) return true;
  const probe = await run('modprobe', ['--dry-run', 'rdma_rxe'], { timeoutMs: DEVICES_TIMEOUT_MS, output: 'capture' });
  return probe.code === 0;
}

/**
 * Which devices a command could use here without a virtual machine.
 * @param {number} replicas
 * @returns {Promise<{ kind: 'make' | 'use', devices: string[] } | undefined>}
 */
export async function devicesHere(replicas) {
  const present = usableDevices();
  const wanted = deviceNames(replicas);
  if (present.length > 0 && wanted.every((name) => present.includes(name))) return { kind: 'use', devices: wanted };
  if (await kernelHasRxe()) return { kind: 'make', devices: wanted };
  return present.length > 0 ? { kind: 'use', devices: present } : undefined;
}

async function kernelMessages() {
  const { code, output } = await run('dmesg', [], { timeoutMs: DEVICES_TIMEOUT_MS, output: 'capture' });
  return code === 0 ? output : '';
}

/**
 * @param {import('./machine.mjs').RxeOptions} options
 * @param {{ kind: 'make' | 'use', devices: string[] }} choice
 * @returns {Promise<number>} the command's exit code
 */
export async function runHere(options, { kind, devices }) {
  const made = kind === 'make';
  process.stderr.write(`rxe-vm: no virtual machine needed: ${made ? 'making' : 'using'} ${devices.join(', ')} here\n`);
  const devicesSh = (...args) =>
    runOrThrow('bash', [devicesScript, ...args], { timeoutMs: DEVICES_TIMEOUT_MS, output: 'capture' });
  const before = await kernelMessages();
  try {
    if (made) await devicesSh('up', String(options.replicas), String(options.mtu));
    const [program = '', ...args] = options.command;
    const { code, timedOut } = await run(program, args, {
      cwd: options.root,
      timeoutMs: options.timeoutMs,
      env: { QUORATE_RESULTS: options.results, QUORATE_RDMA_DEVICES: devices.join(',') },
    });
    if (timedOut) throw new Error(`the command did not end within ${options.timeoutMs / 1000} s and was stopped`);
    const after = await kernelMessages();
    checkKernelWarnings(after.startsWith(before) ? after.slice(before.length) : after, 'dmesg');
    return code;
  } finally {
    if (made) await devicesSh('down');
  }
}

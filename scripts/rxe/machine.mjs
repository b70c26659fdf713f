// Runs one command in one virtual machine and reports how it ended. The machine's console carries what the kernel and
// the start-up scripts say; two virtio ports carry the command's standard output and error; a folder shared with the
// guest carries the command in, and results, exit code and kernel messages out.
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { release, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { run } from '../tools/child.mjs';
import { checkoutImage, dependenciesImage, initramfs, kernel, remembered } from './cache.mjs';
import { checkKernelWarnings } from './warnings.mjs';

/** The guest is up within 20 s on a quiet machine; a busy one takes many times that, a hanging one never comes. */
const BOOT_TIMEOUT_MS = 300_000;
const KVM_TRIAL_TIMEOUT_MS = 10_000;
const KERNEL_IS_UP = 'quorate-guest: kernel is up';
const DEVICES_ARE_UP = 'quorate-guest: devices are up';

/** Single-quotes a word for a POSIX shell. */
export function shellQuote(word) {
  return `'${word.replaceAll("'", "'\\''")}'`;
}

/** Listens on a socket of which qemu is the only client; what comes is given to `onText`. */
function listen(path, onText) {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => {
      socket.setEncoding('utf8');
      socket.on('data', onText);
      socket.on('error', () => {}); // qemu was ended
    });
    server.on('error', reject);
    server.listen(path, () => resolve(server));
  });
}

/** A value inside a comma-separated option of qemu. */
function qemuValue(text) {
  return text.replaceAll(',', ',,');
}

function seconds(durationMs) {
  return `${(durationMs / 1000).toFixed(1)} s`;
}

function qemuArguments({ image, initrd, accelerator, cpus, memoryMiB, append }) {
  return [
    ...['-machine', 'q35', '-accel', accelerator, '-cpu', accelerator === 'kvm' ? 'host' : 'max'],
    ...['-smp', String(cpus), '-m', `${memoryMiB}M`, '-nic', 'none', '-display', 'none', '-monitor', 'none'],
    ...['-no-reboot', '-nodefaults', '-no-user-config'],
    ...['-kernel', image, '-initrd', initrd],
    '-append',
    // A steady clock for timings; a log large enough to hold every kernel message of a test run.
    `console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable clocksource=tsc log_buf_len=8M ${append}`,
  ];
}

/** Boots the initramfs alone under KVM. Some machines have /dev/kvm and still hang with an ordinary kernel. */
async function kvmBoots(image, initrd) {
  if (!existsSync('/dev/kvm')) return false;
  const version = (await run('qemu-system-x86_64', ['--version'], { timeoutMs: 10_000, output: 'capture' })).output;
  const cpu = /^model name.*$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[0] ?? '';
  const verdict = await remembered('kvm', [image, version, release(), cpu], async () => {
    process.stderr.write(`rxe-vm: trying KVM, for at most ${KVM_TRIAL_TIMEOUT_MS / 1000} s (the verdict is kept)\n`);
    const args = qemuArguments({ image, initrd, accelerator: 'kvm', cpus: 1, memoryMiB: 512, append: 'quorate.probe' });
    const { output } = await run('qemu-system-x86_64', [...args, '-serial', 'stdio'], {
      timeoutMs: KVM_TRIAL_TIMEOUT_MS,
      output: 'capture',
    });
    return output.includes(KERNEL_IS_UP) ? 'boots' : 'hangs';
  });
  return verdict === 'boots';
}

/** The folder shared with the guest: what init.sh and guest.sh must know, and the command as a shell script. */
function writeShare(share, { root, modules, command, replicas, mtu, pin }) {
  const config = { CHECKOUT: root, KERNEL_MODULES: modules, REPLICAS: String(replicas), MTU: String(mtu) };
  const variables = {
    ...Object.fromEntries(Object.entries(process.env).filter(([key]) => key.startsWith('QUORATE_'))),
    QUORATE_RDMA_DEVICES: deviceNames(replicas).join(','),
    QUORATE_RESULTS: '/run/results',
    QUORATE_ONE_CORE: pin ? 'yes' : '',
  };
  const assignments = (entries) => Object.entries(entries).map(([key, value]) => `${key}=${shellQuote(value ?? '')}`);
  mkdirSync(share);
  writeFileSync(join(share, 'config'), assignments(config).join('\n'));
  const script = [
    ...assignments(variables).map((line) => `export ${line}`),
    `export PATH=${shellQuote(dirname(process.execPath))}:"$PATH"`,
    `exec ${command.map(shellQuote).join(' ')}`,
  ];
  writeFileSync(join(share, 'command'), `${script.join('\n')}\n`);
}

/** Names of the devices that scripts/rxe/devices.sh makes for replicas. */
export function deviceNames(replicas) {
  return Array.from({ length: replicas }, (_, replica) => `b${replica}`);
}

/**
 * @typedef {object} RxeOptions
 * @property {string} root folder of the checkout
 * @property {string[]} command
 * @property {number} replicas devices b0 .. b<replicas - 1>
 * @property {number} mtu of their interfaces
 * @property {number} cpus of the machine
 * @property {boolean} pin run all of the machine on one core of the host
 * @property {number} memoryMiB
 * @property {number} timeoutMs for all of it
 * @property {string} results folder on the host that the command sees as $QUORATE_RESULTS
 *
 * @param {RxeOptions} options
 * @returns {Promise<number>} the command's exit code
 */
export async function runInMachine(options) {
  const startedMs = Date.now();
  const { image, modules, name } = await kernel();
  const initrd = await initramfs({ name, modules });
  const accelerator = (await kvmBoots(image, initrd)) ? 'kvm' : 'tcg,thread=multi';
  const dependenciesDisk = await dependenciesImage(options.root);

  const folder = mkdtempSync(join(tmpdir(), 'quorate-rxe-')); // a short path: the name of a socket has 107 bytes at most
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
  const checkoutDisk = join(folder, 'checkout.squashfs');
  await checkoutImage(options.root, checkoutDisk);
  const share = join(folder, 'share');
  writeShare(share, { ...options, modules });

  const abort = new AbortController();
  const boot = { console: '', endedMs: 0, timer: setTimeout(() => abort.abort(), BOOT_TIMEOUT_MS) };
  const servers = await Promise.all([
    listen(join(folder, 'stdout'), (text) => process.stdout.write(text)),
    listen(join(folder, 'stderr'), (text) => process.stderr.write(text)),
    listen(join(folder, 'console'), (text) => {
      boot.console += text;
      if (boot.endedMs !== 0 || !boot.console.includes(DEVICES_ARE_UP)) return;
      boot.endedMs = Date.now();
      clearTimeout(boot.timer);
      process.stderr.write(`rxe-vm: up after ${seconds(boot.endedMs - startedMs)}\n`);
    }),
  ]);

  const port = (id) => ['-chardev', `socket,id=${id},path=${qemuValue(join(folder, id))}`];
  const disk = (path) => ['-drive', `file=${qemuValue(path)},format=raw,if=virtio,readonly=on`];
  const shared = (path, tag, more = '') => [
    '-virtfs',
    `local,path=${qemuValue(path)},mount_tag=${tag},security_model=none,multidevs=remap${more}`,
  ];
  const qemu = [
    'qemu-system-x86_64',
    ...qemuArguments({ ...options, image, initrd, accelerator, append: '' }),
    ...[...disk(checkoutDisk), ...disk(dependenciesDisk)],
    ...[...shared('/', 'host', ',readonly=on'), ...shared(share, 'share'), ...shared(options.results, 'results')],
    ...[...port('console'), ...port('stdout'), ...port('stderr'), '-serial', 'chardev:console'],
    ...['-device', 'virtio-serial-pci', '-device', 'virtserialport,nr=1,chardev=stdout'],
    ...['-device', 'virtserialport,nr=2,chardev=stderr'],
  ];
  const [program = '', ...args] = options.pin ? ['taskset', '--cpu-list', '0', ...qemu] : qemu;
  const how = `${accelerator === 'kvm' ? 'KVM' : 'software emulation'}, ${options.cpus} CPUs${options.pin ? ' on one core' : ''}`;
  process.stderr.write(`rxe-vm: booting ${name} (${how})\n`);
  const machine = await run(program, args, {
    timeoutMs: Math.max(1, options.timeoutMs - (Date.now() - startedMs)),
    output: 'capture',
    signal: abort.signal,
  });
  clearTimeout(boot.timer);
  for (const server of servers) server.close();
  return conclude({ options, share, machine, boot, bootTimedOut: abort.signal.aborted });
}

/** Says how the machine ended: the command's exit code, or one clear error. */
function conclude({ options, share, machine, boot, bootTimedOut }) {
  const consolePath = join(options.results, 'console.txt');
  writeFileSync(consolePath, boot.console);
  const kernelPath = join(options.results, 'dmesg.txt');
  if (existsSync(join(share, 'dmesg'))) cpSync(join(share, 'dmesg'), kernelPath);
  const tail = boot.console.trimEnd().split('\n').slice(-15).join('\n');

  const cause = /quorate-guest: cannot start: .*/.exec(boot.console)?.[0];
  if (machine.timedOut) {
    throw new Error(
      `the command did not end within ${options.timeoutMs / 1000} s, so the virtual machine was stopped; ` +
        `give it more time with --timeout SECONDS (console: ${consolePath})`,
    );
  }
  if (bootTimedOut) {
    throw new Error(
      `the virtual machine was not up after ${BOOT_TIMEOUT_MS / 1000} s and was stopped; is this machine very busy? ` +
        `End of its console (${consolePath}):\n${tail}`,
    );
  }
  if (/Kernel panic/.test(boot.console)) {
    throw new Error(`the virtual machine's kernel panicked; end of its console (${consolePath}):\n${tail}`);
  }
  if (cause) throw new Error(`the virtual machine did not start: ${cause}; console: ${consolePath}\n${tail}`);
  if (!existsSync(join(share, 'exit'))) {
    throw new Error(
      `qemu ended (code ${machine.code}) before the command did: ${machine.output.trim() || 'it printed nothing'}\n` +
        `End of the console (${consolePath}):\n${tail}`,
    );
  }
  const code = Number(readFileSync(join(share, 'exit'), 'utf8'));
  checkKernelWarnings(readFileSync(kernelPath, 'utf8'), kernelPath);
  return code;
}

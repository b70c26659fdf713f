// What the virtual machine is made of, kept in the user's cache folder: the distribution's kernel with its modules, an
// initramfs, an image of node_modules, and the verdict whether KVM boots this kernel here.
import { createHash } from 'node:crypto';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { homedir } from 'node:os';
import { basename, join } from 'node:path';
import { runOrThrow } from '../tools/child.mjs';

const QUICK_TIMEOUT_MS = 60_000;
const DOWNLOAD_TIMEOUT_MS = 10 * 60_000;

/**
 * Modules in the initramfs; what they depend on is added. The first row shows the guest the host's folders; the second
 * row makes RDMA devices, and is here because modprobe over 9p takes more than a second for each.
 */
const EARLY_MODULES = [
  ...['virtio_pci', 'virtio_blk', 'virtio_console', '9pnet_virtio', '9p', 'overlay', 'squashfs'],
  ...['crc32_pclmul', 'crc32_generic', 'ib_uverbs', 'rdma_ucm', 'rdma_rxe', 'dummy', 'veth', 'bridge'],
];

export function cacheFolder() {
  const folder = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'quorate');
  mkdirSync(folder, { recursive: true });
  return folder;
}

/** @type {(command: string, args: string[], timeoutMs?: number, cwd?: string) => Promise<{ output: string }>} */
function capture(command, args, timeoutMs = QUICK_TIMEOUT_MS, cwd = undefined) {
  return runOrThrow(command, args, { timeoutMs, output: 'capture', ...(cwd === undefined ? {} : { cwd }) });
}

/** Makes `path` by way of a temporary name, so that an interrupted run leaves nothing half done behind. */
async function makeOnce(path, make) {
  if (existsSync(path)) return path;
  const temporary = `${path}.${process.pid}.tmp`;
  rmSync(temporary, { recursive: true, force: true });
  try {
    await make(temporary);
    if (!existsSync(path)) renameSync(temporary, path);
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
  return path;
}

function fingerprint(...parts) {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part).update('\0');
  return hash.digest('hex').slice(0, 16);
}

/**
 * The kernel that the distribution calls linux-image-amd64 (its cloud flavour lacks rdma_rxe), unpacked.
 * @returns {Promise<{ name: string, image: string, modules: string }>} modules: a folder with one folder per version
 */
export async function kernel() {
  const folder = cacheFolder();
  const kept = readdirSync(folder)
    .filter((name) => name.startsWith('linux-image-') && !name.endsWith('.tmp'))
    .sort()
    .at(-1);
  const name = kept ?? (await kernelPackage());
  const unpacked = await makeOnce(join(folder, name), (temporary) => unpackKernel(name, temporary));
  const version = readdirSync(join(unpacked, 'lib/modules'))[0];
  return { name, image: join(unpacked, `boot/vmlinuz-${version}`), modules: join(unpacked, 'lib/modules') };
}

async function kernelPackage() {
  const { output } = await capture('apt-cache', ['depends', 'linux-image-amd64']);
  const name = /Depends: (linux-image-\S+)/.exec(output)?.[1];
  if (name) return name;
  throw new Error(
    'apt knows no package linux-image-amd64, whose kernel the virtual machine boots; run "apt-get update", or use a ' +
      'Debian machine (x86-64) with its package lists in place',
  );
}

async function unpackKernel(name, target) {
  process.stderr.write(`rxe-vm: downloading ${name} (about 70 MB, once)\n`);
  const download = `${target}.download`;
  mkdirSync(download, { recursive: true });
  try {
    await capture('apt-get', ['download', '-q', name], DOWNLOAD_TIMEOUT_MS, download);
    const archive = readdirSync(download).find((file) => file.endsWith('.deb'));
    if (archive === undefined) throw new Error(`apt-get download ${name} left no .deb file`);
    await capture('dpkg', ['-x', join(download, archive), target]);
    // Where /usr is merged, newer packages put the modules below usr/.
    if (!existsSync(join(target, 'lib/modules')))
      cpSync(join(target, 'usr/lib'), join(target, 'lib'), { recursive: true });
    await capture('depmod', ['-b', target, readdirSync(join(target, 'lib/modules'))[0] ?? '']);
  } finally {
    rmSync(download, { recursive: true, force: true });
  }
}

/** The initramfs: busybox, the early modules in loading order, and init.sh of this folder. */
export async function initramfs({ name, modules }) {
  const init = join(import.meta.dirname, 'init.sh');
  const key = fingerprint(name, readFileSync(init), EARLY_MODULES.join(' '));
  return await makeOnce(join(cacheFolder(), `initramfs-${key}.cpio`), async (temporary) => {
    const tree = `${temporary}.tree`;
    const version = readdirSync(modules)[0] ?? '';
    const order = new Set();
    for (const module of EARLY_MODULES) {
      const { output } = await capture('modprobe', [
        '--dirname',
        join(modules, '../..'),
        '--set-version',
        version,
        '--show-depends',
        module,
      ]);
      for (const match of output.matchAll(/^insmod (\S+)/gm)) order.add(match[1]);
    }
    for (const folder of ['bin', 'modules', 'proc', 'sys', 'dev']) mkdirSync(join(tree, folder), { recursive: true });
    try {
      cpSync('/bin/busybox', join(tree, 'bin/busybox'));
      cpSync(init, join(tree, 'init'));
      chmodSync(join(tree, 'init'), 0o755);
      for (const path of order) cpSync(path, join(tree, 'modules', basename(path)));
      writeFileSync(join(tree, 'modules/order'), [...order].map((path) => `${basename(path)}\n`).join(''));
      const pack = 'find . | cpio --quiet -o -H newc > "$1"';
      await capture('sh', ['-c', pack, 'sh', temporary], QUICK_TIMEOUT_MS, tree);
    } finally {
      rmSync(tree, { recursive: true, force: true });
    }
  });
}

/** An image of node_modules, made again when npm changed it. */
export async function dependenciesImage(root) {
  const marker = join(root, 'node_modules/.package-lock.json');
  if (!existsSync(marker))
    throw new Error(`${join(root, 'node_modules')} is missing or unfinished; run "npm ci" first`);
  const key = fingerprint(root, readFileSync(marker), String(statSync(marker).mtimeMs));
  const own = fingerprint(root);
  for (const name of readdirSync(cacheFolder())) {
    if (name.startsWith(`node_modules-${own}-`) && !name.startsWith(`node_modules-${own}-${key}`)) {
      rmSync(join(cacheFolder(), name), { force: true });
    }
  }
  return await makeOnce(join(cacheFolder(), `node_modules-${own}-${key}.squashfs`), (temporary) =>
    makeImage(join(root, 'node_modules'), temporary, ['-keep-as-directory']),
  );
}

/** An image of the checkout as it is now, without node_modules and what no test reads. */
export async function checkoutImage(root, target) {
  await makeImage(root, target, [
    '-wildcards',
    '-e',
    '.git',
    'node_modules',
    'build/Release/obj.target',
    'build/Release/.deps',
    'out/results',
    '... CMakeFiles',
    '... *.o',
  ]);
}

async function makeImage(source, target, options) {
  const fast = ['-comp', 'lz4', '-no-xattrs', '-noappend', '-no-progress', '-quiet'];
  await capture('mksquashfs', [source, target, ...fast, ...options]);
}

/** Remembers a verdict for this kernel and this machine, e.g. whether KVM boots it. */
export async function remembered(name, parts, find) {
  const path = join(cacheFolder(), `${name}-${fingerprint(...parts)}`);
  if (existsSync(path)) return readFileSync(path, 'utf8').trim();
  const verdict = await find();
  writeFileSync(path, `${verdict}\n`);
  return verdict;
}

// npm run setup: installs what the other scripts need on a fresh Debian or Ubuntu, and only what is missing. The scripts
// call it themselves, so `npm run demo` and `npm test` work right after a clone. It imports nothing but Node itself,
// since it is what makes everything else importable.
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { fail, run } from './tools/child.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const INSTALL_TIMEOUT_MS = 15 * 60_000;

/** Debian packages by what they are for. */
const GROUPS = {
  build: ['g++', 'make', 'python3', 'libibverbs-dev'],
  test: ['cmake', 'doctest-dev', 'librdmacm-dev'],
  model: ['spin', 'gcc'],
  rxe: [
    ...['qemu-system-x86', 'busybox-static', 'cpio', 'squashfs-tools', 'kmod', 'nftables', 'iproute2', 'procps'],
    ...['rdma-core', 'libibverbs-dev', 'librdmacm-dev', 'ibverbs-utils', 'rdmacm-utils', 'perftest'],
  ],
};

/**
 * Names of the packages that dpkg holds as installed. Read from its database: `dpkg-query` is not everywhere.
 */
function installedPackages() {
  const database = '/var/lib/dpkg/status';
  if (!existsSync(database)) return undefined;
  const installed = new Set();
  for (const stanza of readFileSync(database, 'utf8').split('\n\n')) {
    const name = /^Package: (.+)$/m.exec(stanza)?.[1];
    if (name && /^Status: \S+ ok installed$/m.test(stanza)) installed.add(name);
  }
  return installed;
}

/** Whether there are package lists to install from. */
function hasPackageLists() {
  const folder = '/var/lib/apt/lists';
  return existsSync(folder) && readdirSync(folder).some((name) => name.includes('_Packages'));
}

async function installPackages(names) {
  const isRoot = process.getuid?.() === 0;
  const byHand = `${isRoot ? '' : 'sudo '}apt-get install -y --no-install-recommends ${names.join(' ')}`;
  if (!isRoot) {
    const sudo = await run('sudo', ['--non-interactive', 'true'], { timeoutMs: 10_000, output: 'capture' });
    if (sudo.code !== 0) {
      throw new Error(`these packages are missing and installing them needs root; run:\n  ${byHand}`);
    }
  }
  process.stderr.write(`setup: installing ${names.join(' ')}\n`);
  const apt = (...args) => {
    const command = [
      'env',
      'DEBIAN_FRONTEND=noninteractive',
      'apt-get',
      '-q',
      '-o',
      'DPkg::Lock::Timeout=300',
      ...args,
    ];
    const [program = '', ...rest] = isRoot ? command : ['sudo', '--non-interactive', ...command];
    return run(program, rest, { timeoutMs: INSTALL_TIMEOUT_MS, output: 'capture' });
  };
  const install = () => apt('install', '-y', '--no-install-recommends', ...names);
  let result = hasPackageLists() ? await install() : undefined;
  if (result?.code !== 0) {
    // No lists, or lists so old that they name packages the archive no longer has.
    const update = await apt('update');
    result = update.code === 0 ? await install() : update;
  }
  if (result.code !== 0) {
    throw new Error(
      `installing packages failed:\n${result.output.trimEnd()}\nInstall them yourself with:\n  ${byHand}`,
    );
  }
}

async function ensurePackages(groups) {
  const wanted = [...new Set(groups.flatMap((group) => GROUPS[group]))];
  const installed = installedPackages();
  if (installed === undefined) {
    throw new Error(
      `this is not a Debian or Ubuntu machine, so setup cannot install what is needed; install the counterparts of: ` +
        `${wanted.join(' ')}; then set QUORATE_SKIP_PACKAGES=1`,
    );
  }
  const missing = wanted.filter((name) => !installed.has(name));
  if (missing.length > 0) await installPackages(missing);
}

/** npm ci, unless node_modules is at least as new as the lock file. */
async function ensureDependencies() {
  const marker = join(root, 'node_modules/.package-lock.json');
  const lock = join(root, 'package-lock.json');
  if (existsSync(marker) && statSync(marker).mtimeMs >= statSync(lock).mtimeMs) return;
  process.stderr.write('setup: npm ci\n');
  // Without install scripts: the only one that matters here builds the addon, which scripts/build.mjs does.
  const { code, output } = await run('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error'], {
    cwd: root,
    timeoutMs: INSTALL_TIMEOUT_MS,
    output: 'capture',
  });
  if (code !== 0) throw new Error(`npm ci failed:\n${output.trimEnd()}`);
}

/**
 * Makes sure that what the named groups need is installed, and the npm dependencies.
 * @param {('build' | 'test' | 'model' | 'rxe')[]} groups
 */
export async function setup(groups) {
  if (process.env.QUORATE_SKIP_PACKAGES !== '1') await ensurePackages(groups);
  await ensureDependencies();
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const groups = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(GROUPS);
  const unknown = groups.find((group) => !(group in GROUPS));
  try {
    if (unknown) throw new Error(`there is no group "${unknown}"; there are: ${Object.keys(GROUPS).join(', ')}`);
    await setup(/** @type {any} */ (groups));
  } catch (error) {
    fail(error);
  }
}

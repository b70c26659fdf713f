// npm run build: TypeScript (lib/ to dist/) and, when it is missing or older than its sources, the native addon.
// With the name of a variant it builds that instead:
//   native, native-address, native-thread   the C++ tests: plain, address + undefined-behaviour sanitizer, thread sanitizer
//   addon-address, addon-thread             the addon under a sanitizer; use it with QUORATE_PREBUILD=out/addon-address
//   write-fanout                            the C program that benchmarks compare with on RDMA devices
//   shm-write                               the C++ program that bench/verbs-overhead.mjs compares with on shared memory
//   takeover-wakes                          the C++ program that bench/failover.mjs compares with
import { existsSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { fail, runOrThrow } from './tools/child.mjs';

export const root = dirname(dirname(fileURLToPath(import.meta.url)));
const COMPILE_TIMEOUT_MS = 10 * 60_000;

export const VARIANTS = [
  'native',
  'native-address',
  'native-thread',
  'addon-address',
  'addon-thread',
  'write-fanout',
  'shm-write',
  'takeover-wakes',
];

function packageFile(name, path) {
  return join(root, 'node_modules', name, path);
}

/**
 * The headers that came with this Node.js, where they did: building then needs no download.
 */
function nodeHeaders() {
  const prefix = dirname(dirname(process.execPath));
  if (process.env.npm_config_nodedir || !existsSync(join(prefix, 'include/node/node.h'))) return {};
  return { npm_config_nodedir: prefix };
}

/** Runs one native build at a time per checkout: two at once would write the same object files. */
function runLocked(name, command, args, niceness = 0) {
  mkdirSync(join(root, 'out'), { recursive: true });
  const nice = niceness > 0 ? ['nice', '-n', `${niceness}`] : [];
  return runOrThrow('flock', [join(root, 'out', `${name}.lock`), ...nice, command, ...args], {
    cwd: root,
    env: nodeHeaders(),
    timeoutMs: COMPILE_TIMEOUT_MS,
    output: 'capture',
  });
}

function newestMs(path) {
  const info = statSync(path);
  if (!info.isDirectory()) return info.mtimeMs;
  // The folder's own time counts too: it changes when a file is removed.
  return readdirSync(path).reduce((newest, name) => Math.max(newest, newestMs(join(path, name))), info.mtimeMs);
}

/** Builds dist/ from lib/ and removes what no longer has a source. */
export async function buildTypeScript() {
  const dist = join(root, 'dist');
  if (existsSync(dist)) {
    for (const entry of readdirSync(dist, { recursive: true, withFileTypes: true })) {
      const path = join(entry.parentPath, entry.name);
      const source = relative(dist, path).replace(/(\.js|\.js\.map|\.d\.ts)$/, '.ts');
      if (source.endsWith('.ts') && !existsSync(join(root, 'lib', source))) rmSync(path);
    }
  }
  await runOrThrow(process.execPath, [packageFile('typescript', 'bin/tsc'), '-p', 'tsconfig.json'], {
    cwd: root,
    timeoutMs: 5 * 60_000,
    output: 'capture',
  });
}

/** Builds the addon, unless it is newer than everything it is made of. */
export async function buildAddon() {
  const addon = join(root, 'build/Release/quorate.node');
  const inputs = ['native', 'binding.gyp', 'scripts/native-sources.mjs', 'node_modules/node-addon-api/package.json'];
  if (existsSync(addon)) {
    const builtMs = statSync(addon).mtimeMs;
    if (inputs.every((path) => newestMs(join(root, path)) <= builtMs)) return;
  }
  await runLocked('addon', process.execPath, [
    packageFile('node-gyp', 'bin/node-gyp.js'),
    'configure',
    'build',
    '--jobs=max',
  ]);
}

/** Folder of a variant. For an addon it is what QUORATE_PREBUILD is set to. */
export function variantFolder(variant) {
  return join(root, 'out', variant);
}

async function buildNative(variant, sanitizer, target, niceness) {
  const folder = variantFolder(variant);
  const configure = ['-S', root, '-B', folder, `-DQUORATE_SANITIZE=${sanitizer}`];
  await runLocked(variant, 'cmake', configure, niceness);
  await runLocked(variant, 'cmake', ['--build', folder, '--parallel', '2', '--target', target], niceness);
  return join(folder, target);
}

/**
 * Builds a variant with CMake and returns the path of the program or addon. With a niceness (see nice(1)) it takes the
 * processor time that others leave.
 */
export async function buildVariant(variant, niceness = 0) {
  if (['write-fanout', 'shm-write', 'takeover-wakes'].includes(variant))
    return await buildNative('native', '', variant.replace('-', '_'), niceness);
  const [what, sanitizer = ''] = variant.split('-');
  if (what === 'native') return await buildNative(variant, sanitizer, 'native_tests', niceness);
  const folder = variantFolder(variant);
  const args = ['build', '--out', join(folder, 'build'), `--CDQUORATE_SANITIZE=${sanitizer}`, '--parallel', '2'];
  await runLocked(variant, process.execPath, [packageFile('cmake-js', 'bin/cmake-js'), ...args], niceness);
  return join(folder, 'build/Release/quorate.node');
}

/** What `npm run build` makes. */
export async function buildAll() {
  await buildAddon();
  await buildTypeScript();
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const variant = process.argv[2];
  try {
    if (variant === undefined) await buildAll();
    else if (VARIANTS.includes(variant)) console.log(await buildVariant(variant));
    else throw new Error(`there is no build variant "${variant}"; there are: ${VARIANTS.join(', ')}`);
  } catch (error) {
    fail(error);
  }
}

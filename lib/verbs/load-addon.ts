// Finds and loads the native addon: the one that was built here or the prebuilt one that fits, as node-gyp-build
// chooses. A failed load says what to do about it on this platform. Nothing else in the project loads native code.
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { QuorateError } from '../errors.js';
import type { NativeAddon } from './native.js';

const PACKAGE_ROOT = fileURLToPath(new URL('../..', import.meta.url));

/** What a failed load means on this platform, most probable first. */
export function possibleSolutions(platform: string, arch: string, libc: string, reason: string): string {
  const solutions: string[] = [];
  if (platform !== 'linux') {
    return (
      `quorate runs on Linux only (RDMA verbs, POSIX shared memory and futexes); this is ${platform}-${arch}.\n` +
      'Possible solutions:\n- run it in a Linux container or virtual machine'
    );
  }
  if (/GLIBC|GLIBCXX|CXXABI/.test(reason)) {
    solutions.push(
      'the C or C++ library of this system is older than the prebuilt addon needs: build it here with ' +
        '`npm rebuild quorate --build-from-source`',
    );
  }
  if (libc === 'musl')
    solutions.push(
      'on Alpine and other musl systems: `apk add build-base python3 linux-headers`, then `npm rebuild quorate`',
    );
  if (/wrong ELF class|invalid ELF header|Exec format/.test(reason)) {
    solutions.push(
      'node_modules was copied from a machine of another architecture: remove it and run `npm install` here',
    );
  }
  solutions.push(
    'the install script did not run (`npm install --ignore-scripts`, a package manager that blocks scripts): run ' +
      '`npm rebuild quorate`',
    `there is no prebuilt addon for ${platform}-${arch} and building failed: install a C++20 compiler, make, ` +
      'Python 3 and the verbs headers (Debian: `apt-get install build-essential python3 libibverbs-dev`), then ' +
      '`npm rebuild quorate`',
    'the program was bundled: keep `quorate` external, so that its `prebuilds` and `build` folders are found beside it',
  );
  return `Possible solutions:\n${solutions.map((line) => `- ${line}`).join('\n')}`;
}

function libcName(): string {
  const report = process.report?.getReport() as { header?: { glibcVersionRuntime?: string } } | undefined;
  return report?.header?.glibcVersionRuntime ? 'glibc' : 'musl';
}

function load(): NativeAddon {
  const require = createRequire(import.meta.url);
  try {
    const nodeGypBuild = require('node-gyp-build') as (directory: string) => NativeAddon;
    return nodeGypBuild(PACKAGE_ROOT);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    const libc = process.platform === 'linux' ? libcName() : '';
    throw new QuorateError(
      'QUORATE_ADDON',
      `cannot load quorate's native addon on ${process.platform}-${process.arch}, Node.js ${process.version}: ` +
        `${reason}\n${possibleSolutions(process.platform, process.arch, libc, reason)}`,
      { cause: error },
    );
  }
}

/** The addon of this process, loaded once per thread. */
export const addon: NativeAddon = load();
addon.setErrorClass(QuorateError);

// Tells binding.gyp which C++ files make up the addon, so that a new file needs no entry in a list. It also refuses,
// with one clear sentence, to start a build that cannot succeed because the header of libibverbs is missing. (Only
// the header is needed: the library itself is opened at run time.) It imports nothing but Node itself, because node-gyp
// runs it on users' machines.
import { existsSync, readdirSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** All files below `folder` with one of these endings, sorted, as paths relative to the root of the package. */
export function listFiles(folder, endings) {
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && endings.some((ending) => entry.name.endsWith(ending)))
    .map((entry) => relative(root, join(entry.parentPath ?? entry.path, entry.name)))
    .sort();
}

/** The C++ files of the addon: all of native/ but its tests. */
export function addonSources() {
  return listFiles('native', ['.cc']).filter((path) => !path.startsWith('native/test/'));
}

function includeFolders() {
  const fromEnvironment = ['CPATH', 'CPLUS_INCLUDE_PATH'].flatMap((name) => (process.env[name] ?? '').split(':'));
  return ['/usr/include', '/usr/local/include', ...fromEnvironment.filter((folder) => folder !== '')];
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  if (!includeFolders().some((folder) => existsSync(join(folder, 'infiniband/verbs.h')))) {
    console.error(
      'quorate: the C header <infiniband/verbs.h> was not found, so the native addon cannot be built. ' +
        'Install it with "apt-get install libibverbs-dev" (Debian, Ubuntu) or "dnf install rdma-core-devel" (Fedora), ' +
        'or add its folder to CPATH, and install again.',
    );
    process.exit(1);
  }
  console.log(addonSources().join('\n'));
}

// Tells binding.gyp what to compile for the addon, so that a new C++ file needs no entry in a list: files that include
// some twenty of ours each, which takes a third of the time, since each header is read only so often. It also refuses, with
// one clear sentence, to start a build that cannot succeed because the header of libibverbs is missing. (Only the header
// is needed: the library itself is opened at run time.) It imports nothing but Node itself, because node-gyp runs it on
// users' machines.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
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

/** Ours per file that is compiled: the compiler takes 0.4 GB for so many. */
const SOURCES_PER_FILE = 20;
const FOLDER = 'build/sources';

/** Writes what is compiled, unless it stands there already: then nothing is compiled again. Paths relative to the root. */
function writeUnits() {
  const sources = addonSources();
  const count = Math.ceil(sources.length / SOURCES_PER_FILE);
  mkdirSync(join(root, FOLDER), { recursive: true });
  return Array.from({ length: count }, (_, index) => {
    const path = `${FOLDER}/${index}.cc`;
    const included = sources.slice(index * SOURCES_PER_FILE, (index + 1) * SOURCES_PER_FILE);
    const text = included.map((source) => `#include "${relative(FOLDER, source)}"\n`).join('');
    const file = join(root, path);
    if (!existsSync(file) || readFileSync(file, 'utf8') !== text) writeFileSync(file, text);
    return path;
  });
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
  console.log(writeUnits().join('\n'));
}

// The one-way layers of docs/ARCHITECTURE.md and the non-functional rules that code review would otherwise have to
// remember. Reads the sources as text; a rule that is broken names file and line.
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..');

function filesBelow(folder: string, endings: readonly string[]): string[] {
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && endings.some((ending) => entry.name.endsWith(ending)))
    .map((entry) => relative(root, join(entry.parentPath, entry.name)));
}

const textOf = (file: string) => readFileSync(join(root, file), 'utf8');

interface Import {
  readonly file: string;
  readonly specifier: string;
  /** Path below the root for relative imports, the specifier itself otherwise. */
  readonly target: string;
  /** Gone in what runs. */
  readonly isType: boolean;
}

function importsOf(file: string): Import[] {
  return [...textOf(file).matchAll(/^(?:import|export)\s+(?:type\s)?(?:[^'";]*?\sfrom\s+)?'([^']+)'/gm)].map(
    (match) => {
      const specifier = match[1] as string;
      const target = specifier.startsWith('.') ? relative(root, resolve(root, dirname(file), specifier)) : specifier;
      return { file, specifier, target, isType: /^\w+\s+type\s/.test(match[0]) };
    },
  );
}

/** Folder or file of lib (longest prefix wins) -> what of lib it may import. */
const ALLOWED: Readonly<Record<string, readonly string[]>> = {
  'lib/errors': [],
  'lib/verbs': ['lib/verbs', 'lib/errors'],
  'lib/fabric/fabric': [],
  'lib/consensus': ['lib/consensus', 'lib/fabric/fabric'],
  'lib/fabric': ['lib/fabric', 'lib/verbs', 'lib/consensus', 'lib/errors'],
  'lib/fabric/sim': [
    'lib/fabric/sim',
    'lib/fabric/fabric',
    'lib/fabric/permissions',
    'lib/verbs/rights',
    'lib/consensus',
    'lib/errors',
  ],
  'lib/rsm': ['lib/rsm', 'lib/errors', 'lib/replica/replica-options', 'lib/consensus/limits'],
  'lib/replica': ['lib/replica', 'lib/rsm', 'lib/consensus', 'lib/fabric', 'lib/verbs', 'lib/errors'],
  'lib/testing': [
    'lib/testing',
    'lib/rsm',
    'lib/consensus',
    'lib/fabric/sim',
    'lib/fabric/fabric',
    'lib/fabric/permissions',
    'lib/errors',
  ],
  'lib/cli': ['lib'],
  'lib/index': ['lib'],
};

function isWithin(path: string, prefix: string): boolean {
  return path.startsWith(`${prefix}/`) || path.startsWith(`${prefix}.`);
}

function ruleFor(file: string): readonly string[] {
  const prefix = Object.keys(ALLOWED)
    .filter((key) => isWithin(file, key))
    .sort((a, b) => b.length - a.length)[0];
  if (prefix === undefined) throw new Error(`${file} belongs to no layer; give it one in this test`);
  return ALLOWED[prefix] as readonly string[];
}

const libFiles = filesBelow('lib', ['.ts']);
const nativeFiles = filesBelow('native', ['.cc', '.h']);

describe('layers', () => {
  it('depend downwards only', () => {
    const wrong = libFiles
      .flatMap(importsOf)
      .filter(
        (from) => from.specifier.startsWith('.') && !ruleFor(from.file).some((rule) => isWithin(from.target, rule)),
      );
    expect(wrong.map((from) => `${from.file} imports ${from.specifier}`)).toEqual([]);
  });

  it('keep I/O, clocks and randomness out of the consensus core', () => {
    const banned = /\b(Date\.|Math\.random|performance\.|setTimeout|setInterval|setImmediate|queueMicrotask|process\.)/;
    const core = libFiles.filter((file) => file.startsWith('lib/consensus/'));
    const imports = core.flatMap(importsOf).filter((from) => !from.specifier.startsWith('.'));
    const lines = core.flatMap((file) =>
      textOf(file)
        .split('\n')
        .map((line, index) => ({ where: `${file}:${index + 1}`, code: line.replace(/\/\/.*|^\s*\*.*/, '') }))
        .filter(({ code }) => banned.test(code)),
    );
    expect(imports.map((from) => `${from.file} imports ${from.specifier}`)).toEqual([]);
    expect(lines.map(({ where, code }) => `${where}: ${code.trim()}`)).toEqual([]);
  });

  it('load the addon in one place', () => {
    const wrong = libFiles
      .filter((file) => !file.startsWith('lib/verbs/'))
      .flatMap(importsOf)
      .filter((from) => /load-addon|verbs\/native|node-gyp-build/.test(from.specifier));
    expect(wrong.map((from) => `${from.file} imports ${from.specifier}`)).toEqual([]);
  });

  it('have simulations run where there is no addon', () => {
    const loaded = new Set(['lib/testing/index.ts']);
    for (const file of loaded) {
      for (const { target, isType } of importsOf(file)) {
        if (!isType && target.startsWith('lib/')) loaded.add(target.replace(/\.js$/, '.ts'));
      }
    }
    expect(loaded).toContain('lib/fabric/permissions.ts');
    expect([...loaded].filter((file) => file.includes('load-addon'))).toEqual([]);
  });

  it('keep napi.h in the addon folder, and the providers unaware of each other', () => {
    const wrong: string[] = [];
    for (const file of nativeFiles) {
      for (const match of textOf(file).matchAll(/^\s*#\s*include\s+[<"]([^>"]+)[>"]/gm)) {
        const header = match[1] as string;
        const isForeign =
          (/napi|node_api|^uv\.h/.test(header) && !file.startsWith('native/addon/')) ||
          // All of the addon must be compiled with the same settings of it.
          (header === 'napi.h' && file !== 'native/addon/napi_support.h') ||
          (header.includes('addon/') && !file.startsWith('native/addon/')) ||
          (header.includes('provider/shm') && file.startsWith('native/provider/ibverbs')) ||
          (header.includes('provider/ibverbs') && file.startsWith('native/provider/shm'));
        if (isForeign) wrong.push(`${file} includes ${header}`);
      }
    }
    expect(wrong).toEqual([]);
  });
});

describe('every source file', () => {
  it('opens with a comment that says what it is', () => {
    const silent = [...libFiles, ...nativeFiles].filter(
      (file) => !/^(\/\/ \S|\/\*)/.test(textOf(file).replace(/^#!.*\n/, '')),
    );
    expect(silent).toEqual([]);
  });
});

describe('the documentation', () => {
  it('links to files that exist', () => {
    const documents = ['README.md', 'CONTRIBUTING.md', ...filesBelow('docs', ['.md'])];
    const tracked = new Set(
      execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard'], {
        cwd: root,
        encoding: 'utf8',
      }).split('\n'),
    );
    const broken = documents.flatMap((file) =>
      [...textOf(file).matchAll(/\]\((?!https?:)([^)#]+)[^)]*\)/g)]
        .map((match) => relative(root, resolve(root, dirname(file), match[1] as string)))
        .filter((target) => !tracked.has(target) && ![...tracked].some((name) => name.startsWith(`${target}/`)))
        .map((target) => `${file} links to ${target}`),
    );
    expect(broken).toEqual([]);
  });

  it('names npm scripts that exist', () => {
    const { scripts } = JSON.parse(textOf('package.json')) as { scripts: Record<string, string> };
    const documents = ['README.md', 'CONTRIBUTING.md', ...filesBelow('docs', ['.md'])];
    const unknown = documents.flatMap((file) =>
      [...textOf(file).matchAll(/npm run ([a-z][a-z:-]*)/g)]
        .map((match) => match[1] as string)
        .filter((script) => scripts[script] === undefined)
        .map((script) => `${file} names npm run ${script}`),
    );
    expect(unknown).toEqual([]);
  });
});

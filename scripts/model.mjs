// npm run model: checks model/takeover.pml, the formal model of grant, takeover and commit, with spin. Every state within
// the bounds is visited (no bitstate hashing, no hash compaction, no partial-order reduction); then the model is broken in
// one way after another, and each time the checker must find a counterexample, or the model proves nothing.
//
// It installs nothing: `npm run setup -- model` does. One process at a time, on one core.
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { fail, run, runOrThrow } from './tools/child.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const USAGE = `usage: npm run model -- [--quick] [--json] [--trace] [--only NAME[,NAME]]

--quick    smaller bounds, and the mutations that show within them: a part of "npm test"
--trace    print every counterexample, step by step
--only     only these mutations, and no exhaustive check
--json     last line: {states, depth, seconds, errors, mutations, caught, missed}
`;
const MODEL = join(root, 'model/takeover.pml');

/** A search that takes longer is ended, which is a failure. The longest takes 1.5 minutes of an idle core; machines are shared. */
const SEARCH_TIMEOUT_MS = 8 * 60_000;
const TOOL_TIMEOUT_MS = 5 * 60_000;
/** Memory of one search, enforced by the checker itself. */
const SEARCH_MEMORY_MAX_MIB = 6_000;
/** Longest run that a depth-first search follows, in steps; reaching it is a failure. */
const SEARCH_DEPTH_MAX_STEPS = 100_000;
/** What the compiler is told to make spin's checker exact: assertions only, every interleaving. */
const CHECKER_FLAGS = ['-DSAFETY', '-DNOFAIR', '-DNOREDUCE', `-DMEMLIM=${SEARCH_MEMORY_MAX_MIB}`];

/**
 * @typedef {object} Search
 * @property {string} name
 * @property {string} about
 * @property {string[]} defines of the model
 * @property {number} hashBits the table of visited states has 2^hashBits slots
 * @property {'-O0' | '-O2'} optimize compiling well takes longer than a small search
 * @property {boolean} [shortest] breadth first: finds the shortest counterexample
 * @property {boolean} [quick] also a part of the quick form
 */

/** @type {Search[]} visited completely in the full form */
const EXHAUSTIVE = [
  {
    name: 'three-epochs',
    about: '3 replicas, 3 epochs, logs of 3 entries, from the empty cluster',
    defines: ['EPOCHS=3', 'SLOTS=3'],
    hashBits: 27,
    optimize: '-O2',
  },
];

/** @type {Search[]} visited completely in the quick form */
const EXHAUSTIVE_QUICK = [
  {
    name: 'two-epochs',
    about: '3 replicas, 2 epochs, logs of 3 entries, from the empty cluster',
    defines: ['EPOCHS=2', 'SLOTS=3'],
    hashBits: 22,
    optimize: '-O2',
  },
];

const TWO_EPOCHS = ['EPOCHS=2', 'SLOTS=2'];
const THREE_EPOCHS = ['EPOCHS=3', 'SLOTS=2'];

/**
 * @param {string} name
 * @param {string} about
 * @param {string[]} defines
 * @param {Partial<Search>} [more]
 * @returns {Search}
 */
function broken(name, about, defines, more = {}) {
  const flag = name.toUpperCase().replaceAll('-', '_');
  return { name, about, defines: [...defines, flag], hashBits: 22, optimize: '-O0', shortest: true, ...more };
}
const quick = true;
const large = /** @type {const} */ ({ optimize: '-O2', hashBits: 24 });

/** @type {Search[]} each must end in a counterexample */
const MUTATIONS = [
  broken('no-drain', 'revoking does not wait for a WRITE that is being placed', TWO_EPOCHS, { quick }),
  broken('no-fence', 'a deposed leader appends to its own log', TWO_EPOCHS, { quick }),
  broken('grant-without-promise', 'a voter grants an earlier epoch after a later one', TWO_EPOCHS, { quick }),
  broken('epoch-shared', 'two candidates use one epoch, and a voter grants it to both', TWO_EPOCHS, { quick }),
  broken('elect-on-minority', 'a candidate takes over with its own vote', TWO_EPOCHS, { quick }),
  broken('commit-on-minority', 'the leader commits what it alone holds', TWO_EPOCHS, { quick }),
  broken('best-log-not-adopted', 'a candidate leads with its own log though a better one was granted', TWO_EPOCHS, {
    quick,
  }),
  broken('apply-before-own-entry', 'a follower applies what no entry of the epoch vouches for', TWO_EPOCHS, { quick }),
  broken(
    'permission-of-link',
    'a grant opens the link itself, so that WRITEs of an earlier grant of the same replica pass',
    [...THREE_EPOCHS, 'LATE_WRITES_UNWATCHED'],
    large,
  ),
  broken('best-by-length', 'the longest log is adopted, not the one of the latest epoch', THREE_EPOCHS, large),
  broken('skip-tail-repair', 'a log is continued from its end, not from where it diverges', THREE_EPOCHS, large),
  broken(
    'count-old-epoch',
    'entries of earlier epochs count as committed before the noop is',
    ['EPOCHS=4', 'SLOTS=2', 'PAST_EPOCH'],
    { ...large, shortest: false }, // deep: breadth first would visit most of the space
  ),
];

/** @type {Search[]} places that must be reachable, or a clean result says nothing; found like counterexamples */
const WITNESSES = [
  broken('reach-leader-of-last-epoch', 'a later leader commits on top of what an earlier one committed', TWO_EPOCHS),
  broken('reach-follower-applies-all', 'a follower applies a full log in the last epoch', TWO_EPOCHS),
];

async function requireTools() {
  const missing = [];
  for (const [tool, flag] of [
    ['spin', '-V'],
    ['gcc', '--version'],
  ]) {
    const { code } = await run(tool, [flag], { timeoutMs: TOOL_TIMEOUT_MS, output: 'capture' });
    if (code !== 0) missing.push(tool);
  }
  if (missing.length === 0) return;
  throw new Error(
    `${missing.join(' and ')} ${missing.length > 1 ? 'are' : 'is'} not installed; run \`npm run setup -- model\`, or ` +
      `\`apt-get install ${missing.join(' ')}\` on Debian and Ubuntu`,
  );
}

function numberIn(output, pattern) {
  const match = pattern.exec(output);
  return match === null ? Number.NaN : Number(match[1]);
}

/** What the violated assertion is about: the comment beside it in the model. */
function propertyAt(line) {
  const text = readFileSync(MODEL, 'utf8').split('\n')[line - 1] ?? '';
  return /\/\* (.+?) \*\/\s*(?:;.*)?$/.exec(text)?.[1] ?? text.trim();
}

/** The steps of the run that the checker left behind, in words, and what was violated. */
async function counterexample(folder, defines) {
  const trail = join(folder, 'takeover.pml.trail');
  if (!existsSync(trail)) return undefined;
  const args = [...defines, '-DTRACE', '-t', '-k', trail, '-B', 'takeover.pml'];
  const { output } = await run('spin', args, { cwd: folder, timeoutMs: TOOL_TIMEOUT_MS, output: 'capture' });
  const line = numberIn(output, /takeover\.pml:(\d+), Error: assertion violated/);
  const steps = output.split('\n').map((text) => text.trim());
  return {
    property: Number.isNaN(line) ? undefined : propertyAt(line),
    steps: steps.filter((text) => /^(replica|a write)\b/.test(text)),
  };
}

/** @param {Search} search */
async function check({ defines, hashBits, optimize, shortest = false }) {
  const folder = mkdtempSync(join(tmpdir(), 'quorate-model-'));
  try {
    copyFileSync(MODEL, join(folder, 'takeover.pml'));
    const flags = [...defines, ...(shortest ? ['SHORTEST'] : [])].map((define) => `-D${define}`);
    const tool = /** @type {const} */ ({ cwd: folder, timeoutMs: TOOL_TIMEOUT_MS, output: 'capture' });
    await runOrThrow('spin', [...flags, '-a', 'takeover.pml'], tool);
    const compile = [optimize, ...CHECKER_FLAGS, ...(shortest ? ['-DBFS'] : []), '-o', 'pan', 'pan.c'];
    await runOrThrow('gcc', compile, tool);
    const { code, timedOut, output } = await run('./pan', [`-m${SEARCH_DEPTH_MAX_STEPS}`, `-w${hashBits}`], {
      ...tool,
      timeoutMs: SEARCH_TIMEOUT_MS,
    });
    const errors = numberIn(output, /errors: (\d+)/);
    const isIncomplete = /Search not completed|max search depth too small|memory limit|out of memory/i.test(output);
    return {
      states: numberIn(output, /(\d+) states, stored/),
      depth: numberIn(output, /depth reached (\d+)/),
      seconds: numberIn(output, /elapsed time ([\d.]+) seconds/),
      mebibytes: numberIn(output, /([\d.]+)\s+total actual memory usage/),
      errors,
      isComplete: code === 0 && !timedOut && errors === 0 && !isIncomplete,
      found: await counterexample(folder, flags),
      timedOut,
      output,
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function printSteps(steps) {
  for (const [index, step] of steps.entries()) console.log(`    ${String(index + 1).padStart(3)}. ${step}`);
}

async function main() {
  const { values } = parseArgs({
    options: {
      quick: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
      trace: { type: 'boolean', default: false },
      only: { type: 'string' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    return;
  }
  const names = values.only?.split(',');
  const unknown = names?.find((name) => !MUTATIONS.some((mutation) => mutation.name === name));
  if (unknown !== undefined) {
    throw new Error(`there is no mutation "${unknown}"; there are: ${MUTATIONS.map(({ name }) => name).join(', ')}`);
  }
  await requireTools();
  const startedMs = Date.now();
  let exhaustive = values.quick ? EXHAUSTIVE_QUICK : EXHAUSTIVE;
  let witnesses = WITNESSES;
  let mutations = values.quick ? MUTATIONS.filter((mutation) => mutation.quick) : MUTATIONS;
  if (names !== undefined) {
    exhaustive = [];
    witnesses = [];
    mutations = MUTATIONS.filter(({ name }) => names.includes(name));
  }

  const total = { states: 0, depth: 0, errors: 0 };
  let incomplete = 0;
  for (const search of exhaustive) {
    console.log(`${search.name}: ${search.about}`);
    const result = await check(search);
    total.states += result.states;
    total.depth = Math.max(total.depth, result.depth);
    total.errors += result.errors;
    console.log(
      `  errors: ${result.errors}  states: ${result.states}  depth: ${result.depth}  ` +
        `memory: ${result.mebibytes.toFixed(0)} MiB  time: ${result.seconds.toFixed(1)} s`,
    );
    if (result.isComplete) {
      console.log('  every state within the bounds was visited');
      continue;
    }
    incomplete++;
    if (result.found !== undefined) {
      console.log(`  violated: ${result.found.property}`);
      printSteps(result.found.steps);
    } else {
      console.log(result.timedOut ? `  ended after ${SEARCH_TIMEOUT_MS / 1000} s` : result.output.trimEnd());
    }
  }

  let unreached = 0;
  if (witnesses.length > 0) console.log('what must be reachable');
  for (const search of witnesses) {
    const { found, states } = await check(search);
    // The witness is an assertion that says it is not reached; it stands in a step that has no other.
    const isReached = found?.property?.startsWith('witness') === true;
    if (!isReached) unreached++;
    console.log(`  ${search.name}: ${isReached ? 'reached' : 'NOT REACHED'} (${states} states) ${search.about}`);
    if (values.trace && found !== undefined) printSteps(found.steps);
  }

  const missed = [];
  console.log('mutations: each must give a counterexample');
  for (const search of mutations) {
    const { found, states, seconds } = await check(search);
    const isCaught = found?.property !== undefined && found.steps.length > 0;
    if (!isCaught) missed.push(search.name);
    const verdict = isCaught ? `caught after ${found.steps.length} events: ${found.property}` : 'NOT CAUGHT';
    console.log(`  ${search.name} (${search.about})`);
    console.log(`    ${verdict} [${states} states, ${seconds.toFixed(1)} s]`);
    if (values.trace && found !== undefined) printSteps(found.steps);
  }

  const seconds = Math.round((Date.now() - startedMs) / 100) / 10;
  const caught = mutations.length - missed.length;
  const isGood = incomplete === 0 && unreached === 0 && missed.length === 0;
  console.log(
    `errors: ${total.errors}; ${caught} of ${mutations.length} mutations caught; ${seconds} s; ${isGood ? 'OK' : 'FAILED'}`,
  );
  if (values.json) {
    console.log(JSON.stringify({ ...total, seconds, mutations: mutations.length, caught, missed }));
  }
  process.exitCode = isGood ? 0 : 1;
}

main().catch(fail);

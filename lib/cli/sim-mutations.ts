// npm run sim:mutations: breaks the protocol in named ways and shows that the simulation notices each of them within a
// stated number of seeds.
import { setImmediate as nextTurn } from 'node:timers/promises';
import { Command, InvalidArgumentError } from 'commander';
import { VIRTUAL_SECONDS_MAX } from '../testing/check-request.js';
import { tryMutation } from '../testing/mutation-run.js';
import { MUTATIONS } from '../testing/mutations.js';
import { endWithReader } from './as-program.js';
import { integerFrom } from './integer-option.js';

const COUNT_MAX = 2 ** 40;

function names(text: string): readonly string[] {
  const list = text.split(',');
  for (const name of list) {
    if (!MUTATIONS.some((mutation) => mutation.name === name)) {
      throw new InvalidArgumentError(`there is no mutation '${name}'; --list shows all.`);
    }
  }
  return list;
}

const command = new Command('sim-mutations')
  .description('Breaks the protocol in named ways; the simulation must notice each.')
  .option('--seed <number>', 'first seed of each mutation', integerFrom(1, COUNT_MAX), 1)
  .option(
    '--seeds <count>',
    'run at most so many seeds per mutation, instead of its own limit',
    integerFrom(1, COUNT_MAX),
  )
  .option('--virtual-seconds <seconds>', 'length of each run in virtual time', integerFrom(1, VIRTUAL_SECONDS_MAX), 13)
  .option('--only <names>', 'comma-separated names of mutations to run', names)
  .option('--list', 'list the mutations')
  .option('--json', 'print the totals as the last line, in JSON')
  .parse();
const options = command.opts<{
  seed: number;
  seeds?: number;
  virtualSeconds: number;
  only?: readonly string[];
  list?: boolean;
  json?: boolean;
}>();

endWithReader();
const chosen = MUTATIONS.filter(({ name }) => options.only?.includes(name) ?? true);
const missed: string[] = [];
for (const mutation of chosen) {
  if (options.list) {
    console.log(`${mutation.name.padEnd(32)} ${mutation.breaks} (within ${mutation.seedsMax} seeds)`);
    continue;
  }
  const begun_ms = performance.now();
  const verdict = tryMutation(mutation, {
    firstSeed: options.seed,
    virtualSeconds: options.virtualSeconds,
    ...(options.seeds === undefined ? {} : { seedsMax: options.seeds }),
  });
  const seconds = ((performance.now() - begun_ms) / 1e3).toFixed(1);
  if (!verdict.caught) missed.push(mutation.name);
  const what = verdict.violation === null ? 'MISSED' : `caught by ${verdict.violation.invariant}`;
  const message = verdict.violation?.message.split('\n', 1)[0] ?? mutation.breaks;
  console.log(
    `${mutation.name.padEnd(32)} ${what}, seed ${verdict.seed} (${verdict.seeds} run, ${seconds} s): ${message}`,
  );
  await nextTurn(); // or it would not be noticed before the end that nobody reads this
}
if (!options.list) {
  const caught = chosen.length - missed.length;
  console.log(
    `${caught} of ${chosen.length} mutations caught${missed.length > 0 ? `; missed: ${missed.join(', ')}` : ''}`,
  );
  if (options.json) console.log(JSON.stringify({ mutations: chosen.length, caught, missed }));
  process.exitCode = missed.length > 0 ? 1 : 0;
}

// The command line of a benchmark: that of an example, and what benchmarks have besides. Examples are in the package, which
// has no benchmarks, so what both need is there.
import { endWithReader } from '#lib/cli/as-program.js';
import { PROFILES } from '#lib/replica/profiles.js';
import { readArguments, refuse } from '../../examples/support/options.mjs';

export { refuse, wholeNumber } from '../../examples/support/options.mjs';

/**
 * The options of the program with this `import.meta.url`, which are described as for util.parseArgs(). From then on the
 * program ends when nobody reads its output.
 * @template {NonNullable<import('node:util').ParseArgsConfig['options']>} Options
 * @param {string} url
 * @param {Options} options
 * @returns {ReturnType<typeof import('node:util').parseArgs<{ options: Options }>>['values']}
 */
export function readOptions(url, options) {
  endWithReader();
  return readArguments(url, { options }).values;
}

/**
 * One of some words.
 * @template {string} Word
 * @param {string} name of the option, without its dashes
 * @param {string | undefined} text
 * @param {readonly Word[]} words
 * @returns {Word}
 */
export function oneOf(name, text, words) {
  const word = /** @type {Word} */ (text);
  if (words.includes(word)) return word;
  return refuse(`--${name} is "${text}"; it must be one of ${words.join(', ')}`);
}

/** The name of a profile of failure detection, from the option for it. @param {string} text */
export function profileName(text) {
  return oneOf('profile', text, /** @type {import('#lib/index.js').ProfileName[]} */ (Object.keys(PROFILES)));
}

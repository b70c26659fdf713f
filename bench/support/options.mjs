// The command line of a benchmark. What it takes stands at the top of the program, and --help prints it from there; what
// is wrong with it is said in one line.
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { PROFILES } from '#lib/replica/profiles.js';

/** A word on what is wrong with the command line, and the end. @type {(problem: string) => never} */
export function refuse(problem) {
  process.stderr.write(`${problem}\nThe option --help says what there is.\n`);
  process.exit(1);
}

/** The comment at the top of a program. @param {string} url */
function usage(url) {
  const [text = ''] = readFileSync(new URL(url), 'utf8').split(/^(?!\/\/)/m);
  return text.replaceAll(/^\/\/ ?/gm, '');
}

/**
 * The options of the program with this `import.meta.url`, which are described as for util.parseArgs().
 * @template {NonNullable<import('node:util').ParseArgsConfig['options']>} Options
 * @param {string} url
 * @param {Options} options
 * @returns {ReturnType<typeof parseArgs<{ options: Options }>>['values']}
 */
export function readOptions(url, options) {
  const help = /** @type {const} */ ({ type: 'boolean', short: 'h' });
  try {
    const { values } = parseArgs({ options: { ...options, help } });
    if (values.help !== true) return /** @type {any} */ (values);
  } catch (error) {
    return refuse(/** @type {Error} */ (error).message);
  }
  process.stdout.write(usage(url));
  return process.exit(0);
}

/**
 * A whole number within bounds.
 * @param {string} name of the option, without its dashes
 * @param {string | undefined} text
 * @param {number} min
 * @param {number} max
 */
export function wholeNumber(name, text, min, max) {
  const value = Number(text);
  if (/^-?\d+$/.test(text ?? '') && value >= min && value <= max) return value;
  return refuse(`--${name} is "${text}"; it must be a whole number from ${min} to ${max}`);
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

// The command line of an example. What it takes stands at the top of the program, and --help prints it from there; what is
// wrong with it is said in one line, and so is what the system or a device refuses later.
import { readFileSync } from 'node:fs';
import { inspect, parseArgs } from 'node:util';

/** A word on what is wrong with the command line, and the end. @type {(problem: string) => never} */
export function refuse(problem) {
  process.stderr.write(`${problem}\nThe option --help says what there is.\n`);
  process.exit(1);
}

/** Errors with a code say what happened and what to do: where in the program is of no use then. */
function tellErrorsInALine() {
  process.on('uncaughtException', (error) => {
    const { code } = /** @type {{ code?: unknown }} */ (error);
    const isExpected = error instanceof Error && typeof code === 'string' && code !== 'QUORATE_INTERNAL';
    const text = isExpected ? error.message : inspect(error);
    process.stderr.write(isExpected && !text.includes(code) ? `${code}: ${text}\n` : `${text}\n`);
    process.exit(1);
  });
}

/**
 * What util.parseArgs() gives for the program with this `import.meta.url`. From then on the program ends with a line about
 * what it does not handle, if that has a code.
 * @template {import('node:util').ParseArgsConfig} Config
 * @param {string} url
 * @param {Config} config
 * @returns {ReturnType<typeof parseArgs<Config>>}
 */
export function readArguments(url, config) {
  const help = /** @type {const} */ ({ type: 'boolean', short: 'h' });
  let parsed;
  try {
    parsed = parseArgs({ ...config, options: { ...config.options, help } });
  } catch (error) {
    return refuse(/** @type {Error} */ (error).message);
  }
  if (parsed.values.help !== true) {
    tellErrorsInALine();
    return /** @type {any} */ (parsed);
  }
  const [text = ''] = readFileSync(new URL(url), 'utf8').split(/^(?!\/\/)/m);
  process.stdout.write(text.replaceAll(/^\/\/ ?/gm, ''));
  return process.exit(0);
}

/** A whole number within bounds. @type {(name: string, text: string | undefined, least: number, most: number) => number} */
export function wholeNumber(name, text, least, most) {
  const value = Number(text);
  if (/^-?\d+$/.test(text ?? '') && value >= least && value <= most) return value;
  return refuse(`--${name} is "${text}"; it must be a whole number from ${least} to ${most}`);
}

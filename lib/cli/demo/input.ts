// What the demo's clients write: the lines of a file or of standard input, or the keys and values of the repository's
// own package-lock.json, flattened. Everything is checked before the first process starts.
import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { encodeDelete, encodeSet } from '../../rsm/key-value-store.js';
import { AUDIT_HEADER_BYTES } from './audited-store.js';
import { DemoError } from './deadline.js';

/** Largest input, file or standard input. */
export const INPUT_BYTES_MAX = 256 * 1024 * 1024;
/** Below the store's own limit, because a repeated key gets a suffix. */
export const INPUT_KEY_BYTES_MAX = 1000;
export const INPUT_VALUE_BYTES_MAX = 1_000_000;
/** Of a line that is quoted in an error message. */
const QUOTED_CHARACTERS_MAX = 60;
const COMMAND_HEADER_BYTES = AUDIT_HEADER_BYTES + 3;

export interface InputCommand {
  readonly operation: 'set' | 'del';
  readonly key: string;
  readonly value: string;
}

function checkLengths(command: InputCommand, where: string): InputCommand {
  const keyBytes = Buffer.byteLength(command.key);
  if (keyBytes > INPUT_KEY_BYTES_MAX) {
    throw new DemoError(`${where}: the key has ${keyBytes} bytes; the limit is ${INPUT_KEY_BYTES_MAX} bytes`);
  }
  const valueBytes = Buffer.byteLength(command.value);
  if (valueBytes > INPUT_VALUE_BYTES_MAX) {
    throw new DemoError(`${where}: the value has ${valueBytes} bytes; the limit is ${INPUT_VALUE_BYTES_MAX} bytes`);
  }
  return command;
}

/** One command a line: "set KEY VALUE", where VALUE is the rest of the line, or "del KEY". Empty lines are skipped. */
export function parseCommands(text: string, name: string): InputCommand[] {
  const commands: InputCommand[] = [];
  let lineNumber = 0;
  for (const raw of text.split('\n')) {
    lineNumber++;
    const line = raw.endsWith('\r') ? raw.slice(0, -1) : raw;
    if (line.trim() === '') continue;
    const where = `${name}, line ${lineNumber}`;
    const set = /^set ([^\s]+) (.*)$/s.exec(line);
    const del = /^del ([^\s]+)\s*$/.exec(line);
    if (set !== null) {
      commands.push(checkLengths({ operation: 'set', key: set[1] as string, value: set[2] as string }, where));
    } else if (del !== null) {
      commands.push(checkLengths({ operation: 'del', key: del[1] as string, value: '' }, where));
    } else {
      const quoted = line.length > QUOTED_CHARACTERS_MAX ? `${line.slice(0, QUOTED_CHARACTERS_MAX)}...` : line;
      throw new DemoError(`${where}: ${JSON.stringify(quoted)} is neither "set KEY VALUE" nor "del KEY"`);
    }
  }
  if (commands.length === 0) throw new DemoError(`${name} holds no command; a line is "set KEY VALUE" or "del KEY"`);
  return commands;
}

/** Every leaf of a JSON text as a "set", its path as the key. */
export function flattenJson(text: string, name: string): InputCommand[] {
  const commands: InputCommand[] = [];
  const walk = (path: string, value: unknown): void => {
    if (typeof value === 'object' && value !== null && Object.keys(value).length > 0) {
      for (const [key, child] of Object.entries(value)) walk(path === '' ? key : `${path}:${key}`, child);
      return;
    }
    const leaf = typeof value === 'string' ? value : JSON.stringify(value);
    commands.push(checkLengths({ operation: 'set', key: path === '' ? '.' : path, value: leaf }, name));
  };
  walk('', JSON.parse(text));
  return commands;
}

async function readStream(stream: AsyncIterable<Buffer>, name: string): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of stream) {
    chunks.push(chunk);
    length += chunk.length;
    if (length > INPUT_BYTES_MAX) {
      throw new DemoError(`${name} has more than ${INPUT_BYTES_MAX} bytes, the limit of an input`);
    }
  }
  try {
    // Whose byte order mark, if there is one, it leaves out.
    return new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks));
  } catch {
    throw new DemoError(`${name} is not UTF-8 text`);
  }
}

/** Reads the commands of --input, or the default ones. */
export async function readCommands(input: string | undefined): Promise<{ name: string; commands: InputCommand[] }> {
  if (input === '-') {
    const name = 'standard input';
    return { name, commands: parseCommands(await readStream(process.stdin, name), name) };
  }
  if (input !== undefined) {
    let text: string;
    try {
      text = await readStream(createReadStream(input), input);
    } catch (error) {
      if (error instanceof DemoError) throw error;
      throw new DemoError(`--input ${input} cannot be read: ${(error as Error).message}`);
    }
    return { name: input, commands: parseCommands(text, input) };
  }
  const name = 'package-lock.json';
  let text: string;
  try {
    text = await readFile(new URL('../../../package-lock.json', import.meta.url), 'utf8');
  } catch (error) {
    throw new DemoError(
      `there is no ${name} here to take commands from, give --input FILE: ${(error as Error).message}`,
    );
  }
  return { name, commands: flattenJson(text, name) };
}

/** An endless supply of commands made of a finite one: each time round, keys get another suffix. */
export class CommandSource {
  constructor(
    private readonly commands: readonly InputCommand[],
    /** "set" commands are padded to this many bytes of payload; longer ones stay as they are. */
    private readonly payloadBytes: number,
  ) {}

  get length(): number {
    return this.commands.length;
  }

  /** The command with this number, from 1 on, as bytes for the store. */
  command(sequence: number): Uint8Array {
    const lap = Math.floor((sequence - 1) / this.commands.length);
    const { operation, key: plainKey, value } = this.commands[(sequence - 1) % this.commands.length] as InputCommand;
    const key = lap === 0 ? plainKey : `${plainKey}#${lap}`;
    if (operation === 'del') return encodeDelete(key);
    const missing = this.payloadBytes - COMMAND_HEADER_BYTES - Buffer.byteLength(key) - Buffer.byteLength(value);
    return encodeSet(key, missing > 0 ? value + '.'.repeat(missing) : value);
  }
}

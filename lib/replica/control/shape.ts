// Checks of what a peer sent. Each takes a decoded value and its name, and returns it with a type or throws
// QUORATE_PROTOCOL; nothing of a message is used before it passed one of them.
import { QuorateError } from '../../errors.js';

function describe(value: unknown): string {
  if (value === null) return 'null';
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (value instanceof Uint8Array) return `${value.length} bytes`;
  return typeof value === 'number' || typeof value === 'boolean' ? String(value) : typeof value;
}

export function badShape(name: string, expected: string, value: unknown): QuorateError {
  return new QuorateError('QUORATE_PROTOCOL', `${name} is ${describe(value)} where ${expected} is due`);
}

export function checkRecord(value: unknown, name: string): Readonly<Record<string, unknown>> {
  if (typeof value !== 'object' || value === null || Array.isArray(value) || value instanceof Uint8Array) {
    throw badShape(name, 'an object', value);
  }
  return value as Record<string, unknown>;
}

export function checkInteger(value: unknown, min: number, max: number, name: string): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
    throw badShape(name, `an integer in ${min}..${max}`, value);
  }
  return value;
}

export function checkString(value: unknown, charactersMax: number, name: string): string {
  if (typeof value !== 'string' || value.length > charactersMax) {
    throw badShape(name, `a string of at most ${charactersMax} characters`, value);
  }
  return value;
}

export function checkBytes(value: unknown, bytesMax: number, name: string): Uint8Array {
  if (!(value instanceof Uint8Array) || value.length > bytesMax)
    throw badShape(name, `at most ${bytesMax} bytes`, value);
  return value;
}

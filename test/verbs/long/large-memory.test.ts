// Memory that is longer than an ArrayBuffer can be: its pages are made one after the other, which takes up to half a minute.
import { constants } from 'node:buffer';
import { statfsSync } from 'node:fs';
import { freemem } from 'node:os';
import { expect, it } from 'vitest';
import { startChild } from '../support/child.js';

const TOO_LONG_BYTES = constants.MAX_LENGTH + 4096; // Node.js 20: 4 GiB and a page; later versions have no such bound
const { bavail, bsize } = statfsSync('/dev/shm');
const hasRoom = Math.min(freemem(), bavail * bsize) > 1.5 * TOO_LONG_BYTES;

it.skipIf(!hasRoom)(
  'a memory that is longer than an ArrayBuffer can be has no buffer',
  { timeout: 120_000 },
  async () => {
    const child = startChild('large-buffer.mjs', [String(TOO_LONG_BYTES)]);
    const { code, signal, stdout, stderr } = await child.exited();
    expect({ code, signal, stderr }).toEqual({ code: 0, signal: null, stderr: '' });
    expect(JSON.parse(stdout)).toEqual(['QUORATE_UNSUPPORTED', 'QUORATE_UNSUPPORTED']);
  },
);

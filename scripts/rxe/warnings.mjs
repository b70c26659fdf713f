// A kernel warning during a run is a failure of that run: what the tests measured on a broken kernel says nothing.

/**
 * Throws when kernel messages hold a warning or worse, with the messages around the first one.
 * QUORATE_RXE_ALLOW_WARNINGS=1 turns it into a note.
 * @param {string} messages
 * @param {string} source where the reader finds all of them
 */
export function checkKernelWarnings(messages, source) {
  const lines = messages.split('\n');
  const first = lines.findIndex((line) => line.includes('cut here') || /\b(BUG|Oops):/.test(line));
  if (first === -1) return;
  const text = `the kernel printed a warning during the run (${source}):\n${lines.slice(first, first + 25).join('\n')}`;
  if (process.env.QUORATE_RXE_ALLOW_WARNINGS !== '1') {
    throw new Error(`${text}\nTo let such a run pass, set QUORATE_RXE_ALLOW_WARNINGS=1.`);
  }
  process.stderr.write(`rxe-vm: note: ${text}\n`);
}

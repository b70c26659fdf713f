// One configuration for every vitest run: on this machine, with the address sanitizer, and in the rxe virtual machine.
// Which files run is chosen on the command line (scripts/test.mjs, scripts/test-rxe.mjs). Plain JavaScript, because
// loading a TypeScript configuration takes seconds in the virtual machine.
import { defineConfig } from 'vitest/config';

/** Set where the tests run on RDMA devices in software, usually on an emulated machine. */
const onRdmaDevices = process.env.QUORATE_RDMA_DEVICES !== undefined;
const withSanitizer = process.env.QUORATE_PREBUILD !== undefined;
const timeoutMs = onRdmaDevices ? 120_000 : withSanitizer ? 60_000 : 30_000;

/** In the virtual machine one file follows the other, in whatever order; loading this would take time there. */
const sequence = onRdmaDevices ? {} : { sequencer: (await import('./test/support/longest-first.mjs')).LongestFirst };

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // A process per file: the addon's state, shared memory and worker threads of one file do not meet another's. In the
    // virtual machine each one takes ten seconds to start, and files have little in their own process.
    pool: 'forks',
    isolate: !onRdmaDevices,
    // The devices, their counters and injected faults are shared by all files of the virtual machine.
    fileParallelism: !onRdmaDevices,
    maxWorkers: onRdmaDevices ? 1 : 2,
    testTimeout: timeoutMs,
    hookTimeout: timeoutMs,
    teardownTimeout: 10_000,
    sequence,
    // Node.js loads what was compiled as it does for users: without being transformed once more, which takes longer than
    // many a test in the virtual machine, and slows down what is loaded.
    server: { deps: { external: [/\/dist\/.*\.js$/] } },
    // A test that passes only the second time has failed.
    retry: 0,
  },
});

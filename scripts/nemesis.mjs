// npm run nemesis: faults on the processes of a cluster, and a check of what its clients saw (lib/cli/nemesis.ts).
import { handOver } from './tools/hand-over.mjs';

await handOver('dist/cli/nemesis.js');

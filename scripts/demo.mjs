// npm run demo: a cluster on this host that loses its leader again and again (lib/cli/demo.ts).
import { handOver } from './tools/hand-over.mjs';

await handOver('dist/cli/demo.js');

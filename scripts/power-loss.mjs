// npm run power-loss: kills all replicas of a durable cluster again and again (lib/cli/power-loss.ts).
import { handOver } from './tools/hand-over.mjs';

await handOver('dist/cli/power-loss.js');

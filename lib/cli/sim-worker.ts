// A thread of npm run sim: runs one simulation per message.
import { parentPort } from 'node:worker_threads';
import { runSimulation, type SimulationRequest, type SimulationResult } from '../testing/simulation.js';

export type SimWorkerRequest = Omit<SimulationRequest, 'adjust'>;
export type SimWorkerResult = Omit<SimulationResult, 'trace' | 'options'>;

if (parentPort === null) throw new Error('sim-worker.js is a thread of sim.js, not a program');
const port = parentPort;
port.on('message', (request: SimWorkerRequest) => {
  const { trace: _trace, options: _options, ...result } = runSimulation(request);
  port.postMessage(result satisfies SimWorkerResult);
});

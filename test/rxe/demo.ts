// The demo on RDMA devices: one process and one device per replica, leaders killed and stopped.
import { expect, test } from 'vitest';
import { runDemo } from '../demo/support/demo-process.ts';

const TIMEOUT_MS = 170_000;
const devices = (process.env['QUORATE_RDMA_DEVICES'] ?? '').split(',').filter((name) => name !== '');

/** @param signals that the leader gets, each in a run of its own */
export function demoTests(signals: readonly string[]): void {
  test.each(signals)(
    'a leader that gets %s is replaced, and nothing is lost',
    async (signal) => {
      expect(devices.length).toBeGreaterThanOrEqual(3);
      const device = devices.slice(0, 3).join(',');
      const args = ['--device', device, '--ops', '600', '--rounds', '1', '--kill', signal, '--timeout', '150'];
      const { code, summary, errors } = await runDemo(args, { timeoutMs: TIMEOUT_MS });
      expect(summary, errors).toMatchObject({
        fabric: 'verbs',
        replicas: 3,
        acknowledged: 600,
        lost: 0,
        duplicated: 0,
        digestsAgree: true,
        rounds: 1,
      });
      expect(code, errors).toBe(0);
      for (const name of devices.slice(0, 3)) expect(errors).toContain(name);
    },
    TIMEOUT_MS,
  );
}

// The demo as a program: clusters of processes on shared memory, killed and stopped leaders and followers, input from
// files and pipes, options that make no sense, and that no process is left behind.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { childrenOf, expectGone, isRunning, runDemo, startDemo } from './support/demo-process.ts';

const folder = mkdtempSync(join(tmpdir(), 'quorate-demo-test-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const TIMEOUT_MS = 100_000;
const SHM = ['--device', 'shm', '--timeout', '90'];
const number = expect.any(Number);

describe('on shared memory', () => {
  test(
    'a killed leader is replaced, comes back, and nothing is lost',
    async () => {
      const args = [...SHM, '--ops', '2000', '--rounds', '1', '--kill', 'SIGKILL'];
      const { code, summary, errors } = await runDemo(args, { timeoutMs: TIMEOUT_MS });
      expect(summary, errors).toEqual({
        fabric: 'shm',
        replicas: 3,
        acknowledged: 2000,
        lost: 0,
        duplicated: 0,
        digestsAgree: true,
        rounds: 1,
        failoverUs: { p50: number, p99: number, max: number },
        commitUs: { p50: number, p99: number },
      });
      expect(code, errors).toBe(0);
      expect(errors).toMatch(/SIGKILL to replica \d \(leader/);
      expect(errors).toMatch(/is a caught-up voter again/);
    },
    TIMEOUT_MS,
  );

  test(
    'a stopped leader is replaced, finds itself deposed when it continues, and nothing is lost',
    async () => {
      const args = [...SHM, '--ops', '2000', '--rounds', '1', '--kill', 'SIGSTOP'];
      const { code, summary, errors } = await runDemo(args, { timeoutMs: TIMEOUT_MS });
      expect(summary, errors).toMatchObject({
        acknowledged: 2000,
        lost: 0,
        duplicated: 0,
        digestsAgree: true,
        rounds: 1,
      });
      expect(code, errors).toBe(0);
      expect(errors).toMatch(/found itself deposed/);
    },
    TIMEOUT_MS,
  );

  test.each(['SIGKILL', 'SIGSTOP'])(
    'a follower that gets %s does not disturb the leader',
    async (signal) => {
      const args = [
        ...SHM,
        '--ops',
        '2000',
        '--rounds',
        '1',
        '--kill',
        signal,
        '--victim',
        'follower',
        '--profile',
        'relaxed',
      ];
      const { code, summary, errors } = await runDemo(args, { timeoutMs: TIMEOUT_MS });
      expect(summary, errors).toMatchObject({
        acknowledged: 2000,
        lost: 0,
        duplicated: 0,
        digestsAgree: true,
        rounds: 1,
      });
      expect(summary?.['failoverUs']).toEqual({ p50: null, p99: null, max: null });
      expect(code, errors).toBe(0);
      expect(errors).toMatch(/committed everything without replica/);
    },
    TIMEOUT_MS,
  );

  test(
    'commands come from a file, and --payload pads them',
    async () => {
      const file = join(folder, 'commands');
      writeFileSync(file, 'set colour green\nset shape round\nset colour red\ndel shape\n');
      const args = [...SHM, '--input', file, '--kill', 'none', '--payload', '4096'];
      const demo = startDemo(args, { timeoutMs: TIMEOUT_MS });
      const { code, output, errors } = await demo.ended;
      expect(output + errors).toContain(`4 commands from ${file}`);
      expect(output).toMatch(/state +1 keys/);
      expect(output).toContain('Nothing was lost, nothing was applied twice.');
      expect(code, errors).toBe(0);
    },
    TIMEOUT_MS,
  );

  test(
    'commands come from standard input',
    async () => {
      const lines = Array.from({ length: 50 }, (_, index) => `set key${index} value ${index}`);
      const input = `\ufeff${lines.join('\r\n')}`; // as some editors save text
      const args = [...SHM, '--input', '-', '--kill', 'none'];
      const { code, summary, errors } = await runDemo(args, { input, timeoutMs: TIMEOUT_MS });
      expect(summary, errors).toMatchObject({ acknowledged: 50, lost: 0, digestsAgree: true, rounds: 0 });
      expect(code, errors).toBe(0);
    },
    TIMEOUT_MS,
  );
});

describe('nothing is left behind', () => {
  test(
    'when it is interrupted',
    async () => {
      const demo = startDemo([...SHM, '--ops', '500000'], { timeoutMs: TIMEOUT_MS });
      await demo.printed('leads in epoch', TIMEOUT_MS);
      const children = childrenOf(demo.pid);
      expect(children.length).toBeGreaterThanOrEqual(3);
      demo.child.kill('SIGINT');
      expect(await demo.ended).toMatchObject({ code: 130 });
      await expectGone(children, 10_000);
    },
    TIMEOUT_MS,
  );

  test(
    'when its output is not read to the end',
    async () => {
      const demo = startDemo([...SHM, '--ops', '500000'], { timeoutMs: TIMEOUT_MS });
      await demo.printed('commands from', TIMEOUT_MS);
      demo.child.stdout?.destroy();
      const { code, errors } = await demo.ended;
      expect(errors).toBe('');
      expect(code).toBe(141);
    },
    TIMEOUT_MS,
  );

  test(
    'when the loss of power is interrupted',
    async () => {
      const demo = startDemo(['--ops', '100000'], { program: 'power-loss.js', timeoutMs: TIMEOUT_MS });
      await demo.printed('leads in epoch', TIMEOUT_MS);
      const [, directory = ''] = /directories below (.+)/.exec(demo.output()) ?? [];
      expect(readdirSync(directory)).toHaveLength(3);
      demo.child.kill('SIGINT');
      expect(await demo.ended).toMatchObject({ code: 130 });
      expect(existsSync(directory)).toBe(false);
    },
    TIMEOUT_MS,
  );

  test(
    'the replicas are killed before what is done at the exit besides',
    () => {
      const program = join(folder, 'exits.mjs');
      const parts = new URL('../../dist/cli/demo/', import.meta.url);
      const text = `
        import { Cluster } from '${new URL('cluster.js', parts)}';
        import { Deadline } from '${new URL('deadline.js', parts)}';
        let cluster;
        process.on('exit', () => console.log(cluster.replicas.map(({ child }) => child.killed)));
        cluster = await Cluster.start({
          replicas: 3, devices: ['shm'], openTimeoutMs: 60_000,
          random: Math.random, deadline: new Deadline(60_000), say: console.error,
        });
        process.exit();`;
      writeFileSync(program, text);
      const { stdout, stderr } = spawnSync(process.execPath, [program], { encoding: 'utf8', timeout: TIMEOUT_MS });
      expect(stdout, stderr).toBe('[ true, true, true ]\n');
    },
    TIMEOUT_MS,
  );

  test(
    'when it is killed while a replica is stopped',
    async () => {
      const args = [...SHM, '--ops', '200000', '--rounds', '1', '--kill', 'SIGSTOP', '--victim', 'follower'];
      const demo = startDemo(args, { timeoutMs: TIMEOUT_MS });
      await demo.printed(/SIGSTOP to replica \d/, TIMEOUT_MS);
      const children = childrenOf(demo.pid);
      expect(children.filter(isRunning).length).toBeGreaterThanOrEqual(3);
      demo.child.kill('SIGKILL');
      await demo.ended;
      await expectGone(children, 15_000);
    },
    TIMEOUT_MS,
  );
});

describe('what makes no sense is refused with a reason', () => {
  const file = join(folder, 'bad');
  writeFileSync(file, 'set a 1\nput b 2\n');
  const latin1 = join(folder, 'latin1');
  writeFileSync(latin1, 'set a caf\xe9\n', 'latin1');
  test.each<[string[], string]>([
    [['--replicas', '4'], 'Allowed choices are 3, 5, 7'],
    [['--ops', '0'], 'It must be a whole number from 1 to'],
    [['--ops', 'many'], 'It must be a whole number from 1 to'],
    [['--payload', '2000000'], 'It must be a whole number from 0 to 1000000'],
    [['--rounds', '-1'], 'It must be a whole number from 0 to'],
    [['--kill', 'SIGTERM'], 'Allowed choices are SIGKILL, SIGSTOP, none'],
    [['--profile', 'quick'], 'Allowed choices are fast, balanced, relaxed'],
    [['--device', 'a,b'], '--device names 2 devices for 3 replicas'],
    [['--device', 'a,,b'], 'It must be a device name, or several with commas'],
    [['--input', join(folder, 'missing')], 'cannot be read: ENOENT'],
    [['--input', file], 'line 2: "put b 2" is neither "set KEY VALUE" nor "del KEY"'],
    [['--input', latin1], `${latin1} is not UTF-8 text`],
    [['--input', '-'], 'standard input holds no command'],
    [['--nonsense'], "unknown option '--nonsense'"],
  ])('%s', async (args, message) => {
    const { code, errors, summary } = await runDemo(args, { timeoutMs: 20_000 });
    expect(errors).toContain(message);
    expect(code, errors).toBe(1);
    expect(summary).toBeUndefined();
  });

  test(
    'a device that does not exist',
    async () => {
      const { code, errors } = await runDemo(['--device', 'nowhere0', '--timeout', '60'], { timeoutMs: TIMEOUT_MS });
      expect(errors).toContain('QUORATE_NO_DEVICE');
      expect(errors).toContain('nowhere0');
      expect(code, errors).toBe(1);
    },
    TIMEOUT_MS,
  );

  test(
    'a time limit that is too short says what was waited for',
    async () => {
      const args = ['--device', 'shm', '--ops', '5000000', '--kill', 'none', '--timeout', '4'];
      const { code, errors, summary } = await runDemo(args, { timeoutMs: TIMEOUT_MS });
      expect(errors).toMatch(
        /time limit of 4 s reached while waiting for: (all commands|the cluster|a leader|the status)/,
      );
      expect(code, errors).toBe(1);
      if (summary !== undefined) expect(summary).toMatchObject({ lost: null, digestsAgree: false });
    },
    TIMEOUT_MS,
  );
});

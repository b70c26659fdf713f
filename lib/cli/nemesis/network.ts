// Faults of the network between SoftRoCE devices: links that are down, packets that are dropped in one direction or
// delayed. Only on the interfaces that scripts/rxe/devices.sh makes, which carry nothing else, and only as root. All
// replicas are in one network namespace, so the control channel is not affected: only RDMA traffic is.
import { execFile, execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { promisify } from 'node:util';

const run = promisify(execFile);
const COMMAND_TIMEOUT_MS = 20_000;
/** Hardware addresses of the interfaces that scripts/rxe/devices.sh makes begin with this. */
const OWN_HARDWARE_ADDRESS = '02:71:72:6d:';
const TABLE = 'quorate_nemesis';
const ROCE_UDP_PORT = 4791;

interface Interface {
  readonly name: string;
  /** Other end of the veth pair, a port of the bridge. */
  readonly port: string;
  readonly address: string;
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return undefined;
  }
}

async function command(program: string, ...args: string[]): Promise<string> {
  const { stdout } = await run(program, args, { timeout: COMMAND_TIMEOUT_MS });
  return stdout;
}

export class Network {
  /** What must be undone, by what undoes it. */
  private readonly undone = new Map<string, string[][]>();

  private constructor(private readonly interfaces: readonly Interface[]) {
    process.on('exit', this.healNow);
  }

  /** Returns why the network of these devices is left alone, where it is; `devices` are the replicas', by id. */
  static async open(devices: readonly string[]): Promise<Network | string> {
    if (process.getuid?.() !== 0) return 'it needs root';
    if (new Set(devices).size !== devices.length || devices.length < 2)
      return 'every replica needs a device of its own';
    const interfaces: Interface[] = [];
    for (const device of devices) {
      const name = readText(`/sys/class/infiniband/${device}/ports/1/gid_attrs/ndevs/0`);
      if (name === undefined) return `device ${device} has no network interface`;
      const hardwareAddress = readText(`/sys/class/net/${name}/address`) ?? '';
      if (!hardwareAddress.startsWith(OWN_HARDWARE_ADDRESS)) return `interface ${name} was not made by npm run rxe`;
      try {
        const port = /@([^:\s]+)/.exec(await command('ip', '-o', 'link', 'show', 'dev', name))?.[1];
        const address = /inet ([\d.]+)/.exec(await command('ip', '-4', '-o', 'address', 'show', 'dev', name))?.[1];
        if (port === undefined || address === undefined) return `interface ${name} has no peer or no address`;
        interfaces.push({ name, port, address });
      } catch (error) {
        return `ip: ${(error as Error).message}`;
      }
    }
    const rules = [
      `add table ip ${TABLE}`,
      `delete table ip ${TABLE}`, // of a run that was killed
      `add table ip ${TABLE}`,
      `add set ip ${TABLE} cuts { type ipv4_addr . ipv4_addr; }`,
      // On input: what is dropped on output makes rxe spin.
      `add chain ip ${TABLE} input { type filter hook input priority 0; }`,
      `add rule ip ${TABLE} input ip saddr . ip daddr @cuts udp dport ${ROCE_UDP_PORT} drop`,
    ];
    try {
      await command('nft', rules.join('\n'));
    } catch (error) {
      return `nft: ${(error as Error).message}`;
    }
    const network = new Network(interfaces);
    network.undone.set('table', [['nft', `delete table ip ${TABLE}`]]);
    return network;
  }

  private at(id: number): Interface {
    return this.interfaces[id] as Interface;
  }

  /** Drops what `from` sends to `to`. */
  async cut(from: number, to: number): Promise<void> {
    const element = `${this.at(from).address} . ${this.at(to).address}`;
    await command('nft', `add element ip ${TABLE} cuts { ${element} }`);
  }

  async mend(from: number, to: number): Promise<void> {
    const element = `${this.at(from).address} . ${this.at(to).address}`;
    await command('nft', `delete element ip ${TABLE} cuts { ${element} }`);
  }

  /** Takes the interface of a replica down, or the port of the bridge that it is connected to (a pulled cable). */
  async down(id: number, which: 'interface' | 'port'): Promise<void> {
    const { name, port } = this.at(id);
    if (which === 'port') {
      this.undone.set(`link ${id}`, [['ip', 'link', 'set', port, 'up']]);
      await command('ip', 'link', 'set', port, 'down');
      return;
    }
    // An interface that goes down forgets its neighbours, and a queue pair would wait for address resolution.
    const neighbours = (await command('ip', 'neigh', 'show', 'dev', name, 'nud', 'permanent'))
      .split('\n')
      .map((line) => /^(\S+) lladdr (\S+)/.exec(line))
      .filter((match) => match !== null);
    this.undone.set(`link ${id}`, [
      ['ip', 'link', 'set', name, 'up'],
      ...neighbours.map(([, address, lladdr]) => [
        ...['ip', 'neigh', 'replace', address as string, 'lladdr', lladdr as string],
        ...['dev', name, 'nud', 'permanent'],
      ]),
    ]);
    await command('ip', 'link', 'set', name, 'down');
  }

  async up(id: number): Promise<void> {
    await this.undo(`link ${id}`);
  }

  /** Delays what a replica receives, and loses some of it. */
  async degrade(id: number, delayMs: number, lossPercent: number): Promise<void> {
    const { port } = this.at(id);
    this.undone.set(`degraded ${id}`, [['tc', 'qdisc', 'del', 'dev', port, 'root']]);
    const netem = ['netem', 'delay', `${delayMs.toFixed(2)}ms`, `${(delayMs / 2).toFixed(2)}ms`];
    await command('tc', 'qdisc', 'add', 'dev', port, 'root', ...netem, 'loss', `${lossPercent.toFixed(1)}%`);
  }

  async restore(id: number): Promise<void> {
    await this.undo(`degraded ${id}`);
  }

  private async undo(name: string): Promise<void> {
    const commands = this.undone.get(name) ?? [];
    this.undone.delete(name);
    for (const [program, ...args] of commands) await command(program as string, ...args);
  }

  /** Undoes everything at once, also from an "exit" handler. */
  readonly healNow = (): void => {
    process.off('exit', this.healNow);
    for (const [program, ...args] of [...this.undone.values()].flat()) {
      try {
        execFileSync(program as string, args, { timeout: COMMAND_TIMEOUT_MS, stdio: 'ignore' });
      } catch {
        // Whatever is left of it ends with the virtual machine, or with devices.sh down.
      }
    }
    this.undone.clear();
  };
}

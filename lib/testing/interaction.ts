// Scripts that lead a simulated cluster, with what it then does written down behind each command: tests that a person
// can read. A script is a text of comments (#) and blocks; a block is one or more commands, a line "----", and what they
// said, up to the next empty line. Running a script gives the same text with what the commands say now; a test compares.
//
//   cluster REPLICAS [joiners=N] [log=KIB] [tear=US] [apply=US] [first=US] [lease=MS] [replace=MS] [seed=N]    a cluster, all of it started, and
//                                            so many processes that may be added; the first command of a script. With
//                                            tear, messages are placed in pieces, in any order, up to so far apart; with
//                                            apply, a command takes up to so long to apply; with first, leaders wait so
//                                            long for a majority before they write to the others; with lease, leaders read
//                                            by leases of that length, and followers with the leader's help; with replace,
//                                            spares take the places of voters that are gone for so long
//   trace all | elections | none             what is told from here on
//   run DURATION                             such as 20us, 5ms, 1s of virtual time
//   run until leader [ID] | answered | converged | suspected ID | trusted ID | takeover ID |
//             repairing ID [within DURATION]
//   propose ID COMMAND... [bytes=N] [times=N]    x=1 writes, x+=1 adds, x? reads; N bytes of filler; so many of each
//   read ID REGISTER...                      reads registers from the state of a leader: by lease if there is one, else
//                                            behind a read barrier
//   add ID, spare ID, promote ID, remove ID, priority ID N, transfer [ID]    the operator asks a leader, the latest one
//                                            or the one named with at=ID, to change the membership or to hand over
//   pause ID, stall-main ID, stall-background ID, resume ID    the process, or one of its planes, stands still
//   crash ID, restart ID                     the memory is lost; the next life begins
//   partition 0 1 | 2, cut FROM TO, heal     nothing gets through between the groups, or in one direction
//   slow FACTOR                              packets sent from now on take so many times as long
//   status, log ID, state ID, time           where replicas stand; what a log holds; registers; virtual time
import { entryBytes, entryEpoch, entryPayloadBytes, entryType } from '../consensus/entry.js';
import { formatEpoch } from '../consensus/epoch.js';
import { LOG_BYTES_MAX, LOG_BYTES_MIN, MAX_REPLICAS } from '../consensus/limits.js';
import type { MembershipChange } from '../consensus/membership.js';
import { readU53 } from '../consensus/sealed-block.js';
import { errorCode, QuorateError } from '../errors.js';
import type { Violation } from '../fabric/sim/sim-world.js';
import { describeEntry, nameOf, ProtocolTrace } from './protocol-trace.js';
import { formatCommand, type Held, mistake, ScriptedCluster } from './scripted-cluster.js';
import type { ProposalOutcome } from './sim-life.js';

const SEPARATOR = '----';
const READ_MEANS = { lease: 'lease', follower: "the leader's word" } as const;
const UNITS_NS: Readonly<Record<string, number>> = { us: 1e3, ms: 1e6, s: 1e9 };
/** How long "run until" waits, in virtual time. */
const WAIT_LIMIT_NS = 10e9;
const REPLICAS_MAX = 7;
const TRANSFER_TIMEOUT_NS = 100e6;
const HOLDS: Readonly<Record<string, Held>> = {
  pause: 'paused',
  'stall-main': 'main stalled',
  'stall-background': 'background stalled',
};

/** Most words of the commands that take the same number of them each time. */
const WORDS_MAX: Readonly<Record<string, number>> = {
  trace: 1,
  pause: 1,
  'stall-main': 1,
  'stall-background': 1,
  resume: 1,
  crash: 1,
  restart: 1,
  cut: 2,
  heal: 0,
  slow: 1,
  status: 0,
  log: 1,
  state: 1,
  time: 0,
};

/** What came of a script of {@link runInteraction}. */
export interface InteractionResult {
  /** The script with what its commands say now. */
  readonly text: string;
  /** The first invariant that was broken; the rest of the script was not run. */
  readonly violation: Violation | null;
}

/**
 * Runs a script. Throws where it cannot be understood or done, with the number of the line: QUORATE_INVALID_ARGUMENT, or
 * QUORATE_TIMEOUT if "run until" waits in vain.
 */
export function runInteraction(script: string): InteractionResult {
  if (typeof script !== 'string') throw mistake('a script is a text');
  const interpreter = new Interpreter();
  const lineEnd = script.includes('\r\n') ? '\r\n' : '\n';
  const lines = script.split(lineEnd);
  const text: string[] = [];
  let index = 0;
  let isBlock = false;
  while (index < lines.length) {
    const line = lines[index] as string;
    if (line.trim() === '' || line.startsWith('#')) {
      text.push(line);
      index++;
      continue;
    }
    const commands: { line: string; number: number }[] = [];
    for (; index < lines.length && lines[index] !== SEPARATOR && lines[index]?.trim() !== ''; index++) {
      commands.push({ line: lines[index] as string, number: index + 1 });
    }
    if (lines[index] === SEPARATOR) {
      while (index < lines.length && lines[index]?.trim() !== '') index++;
    }
    const output: string[] = [];
    for (const command of commands) {
      text.push(command.line);
      if (interpreter.violation !== null) continue;
      try {
        output.push(...interpreter.execute(command.line));
      } catch (error) {
        const text = `line ${command.number}, '${command.line}': ${error instanceof Error ? error.message : error}`;
        throw new QuorateError(errorCode(error) ?? 'QUORATE_INTERNAL', text, { cause: error });
      }
    }
    text.push(SEPARATOR, ...(output.length === 0 ? ['ok'] : output));
    isBlock = true;
  }
  if (!isBlock) throw mistake('the script has no command');
  return { text: text.join(lineEnd), violation: interpreter.violation };
}

function describeOutcome(outcome: ProposalOutcome): string {
  switch (outcome.kind) {
    case 'applied':
      return `applied, result ${outcome.result}`;
    case 'notLeader':
      return outcome.leader < 0 ? 'refused, it knows no leader' : `refused, r${outcome.leader} leads`;
    case 'full':
      return 'refused, the log is full';
    case 'read':
      return `read${outcome.by === 'barrier' ? '' : ` by ${READ_MEANS[outcome.by]}`}, result ${outcome.result}`;
    case 'readAgain':
      return 'READ AGAIN';
    default:
      return 'OUTCOME UNKNOWN';
  }
}

class Interpreter {
  private script: ScriptedCluster | null = null;
  private readonly trace = new ProtocolTrace();
  /** Outcomes of the running command, where many are alike. */
  private outcomes = new Map<string, string[]>();

  get violation(): Violation | null {
    return this.script?.world.violation ?? null;
  }

  execute(line: string): string[] {
    const [name, ...words] = line.trim().split(/\s+/) as [string, ...string[]];
    const said = this.command(name, words);
    const { violation } = this;
    const lines = [...this.trace.take(), ...said];
    for (const [text, commands] of this.outcomes) lines.push(`${commands.length} proposals ${text}`);
    this.outcomes.clear();
    if (violation !== null) lines.push(`VIOLATION of ${violation.invariant}: ${violation.message}`);
    return lines;
  }

  private get cluster(): ScriptedCluster {
    if (this.script === null) throw mistake('there is no cluster yet; begin with: cluster 3');
    return this.script;
  }

  private command(name: string, words: readonly string[]): string[] {
    if (name === 'cluster') return this.newCluster(words);
    const { cluster } = this;
    this.noMore(words, WORDS_MAX[name] ?? words.length);
    switch (name) {
      case 'trace':
        if (words[0] !== 'all' && words[0] !== 'elections' && words[0] !== 'none')
          throw mistake('all, elections or none?');
        this.trace.level = words[0];
        return [];
      case 'run':
        this.runFor(words);
        return [];
      case 'propose':
        return this.propose(words);
      case 'read':
        return this.read(words);
      case 'pause':
      case 'stall-main':
      case 'stall-background':
        cluster.hold(this.id(words[0]), HOLDS[name] as Held);
        return [];
      case 'resume':
        cluster.release(this.id(words[0]));
        return [];
      case 'crash':
        cluster.life(this.id(words[0]));
        cluster.cluster.crash(this.id(words[0]));
        return [];
      case 'restart':
        cluster.cluster.start(this.id(words[0]));
        return [];
      case 'partition': {
        const groups = words.join(' ').split('|');
        cluster.partition(
          ...groups.map((group) =>
            group
              .trim()
              .split(/\s+/)
              .map((word) => this.id(word)),
          ),
        );
        return [];
      }
      case 'cut':
        cluster.cut(this.id(words[0]), this.id(words[1]));
        return [];
      case 'heal':
        cluster.heal();
        return [];
      case 'slow':
        cluster.slowDown(this.count(words[0]));
        return [];
      case 'add':
      case 'spare':
      case 'promote':
      case 'remove':
      case 'priority':
      case 'transfer':
        this.operate(name, words);
        return [];
      case 'status':
        return this.status();
      case 'log':
        return this.log(this.id(words[0]));
      case 'state':
        return [this.state(this.id(words[0]))];
      case 'time':
        return [`${(cluster.world.now_ns / 1e6).toFixed(3)} ms`];
      default:
        throw mistake('this command is unknown; lib/testing/interaction.ts lists those there are');
    }
  }

  // -- words -------------------------------------------------------------------------------------------------------

  private count(word: string | undefined): number {
    const value = Number(word);
    if (word === undefined || word === '' || !Number.isInteger(value) || value < 0)
      throw mistake(`'${word}' is no count`);
    return value;
  }

  /** A word that is not understood would be one that is left out. */
  private noMore(words: readonly string[], count: number): void {
    if (words.length > count) throw mistake(`'${words[count]}' means nothing here`);
  }

  private id(word: string | undefined): number {
    const id = this.count(word);
    if (id >= this.cluster.options.replicas) throw mistake(`there is no replica ${id}`);
    return id;
  }

  private duration_ns(word: string | undefined): number {
    const match = /^(\d+(?:\.\d+)?)(us|ms|s)$/.exec(word ?? '');
    if (match === null) throw mistake(`'${word}' is no duration, such as 20us, 5ms or 1s`);
    return Number(match[1]) * (UNITS_NS[match[2] as string] as number);
  }

  /** Takes "name=N" out of the words. */
  private setting(words: string[], name: string, byDefault: number): number {
    const index = words.findIndex((word) => word.startsWith(`${name}=`));
    if (index < 0) return byDefault;
    const [word] = words.splice(index, 1);
    return this.count((word as string).slice(name.length + 1));
  }

  // -- commands ----------------------------------------------------------------------------------------------------

  private newCluster(given: readonly string[]): string[] {
    if (this.script !== null) throw mistake('a script has one cluster');
    const words = [...given];
    const joiners = this.setting(words, 'joiners', 0);
    const logBytes = this.setting(words, 'log', 64) * 1024;
    if (logBytes < LOG_BYTES_MIN || logBytes > LOG_BYTES_MAX || (logBytes & (logBytes - 1)) !== 0) {
      const range = `${LOG_BYTES_MIN / 1024}..${LOG_BYTES_MAX / 1024}`;
      throw mistake(`a log of ${logBytes / 1024} KiB is not possible: log must be a power of two in ${range}`);
    }
    const seed = this.setting(words, 'seed', 1);
    const tearGapMax_ns = this.setting(words, 'tear', 0) * 1e3;
    const majorityFirst_ns = this.setting(words, 'first', 0) * 1e3;
    const applyTimeMax_ns = this.setting(words, 'apply', 0) * 1e3;
    const lease_ns = this.setting(words, 'lease', 0) * 1e6;
    const replaceAfter_ns = this.setting(words, 'replace', 0) * 1e6;
    const replicas = this.count(words[0]);
    this.noMore(words, 1);
    if (replicas < 1 || replicas > REPLICAS_MAX) throw mistake(`${replicas} replicas are not in 1..${REPLICAS_MAX}`);
    if (joiners > MAX_REPLICAS - replicas) {
      throw mistake(`${joiners} joiners are not in 0..${MAX_REPLICAS - replicas}`);
    }
    const script = new ScriptedCluster({
      replicas,
      joiners,
      seed,
      observers: [this.trace],
      adjust: (options) => ({
        ...options,
        logBytes,
        majorityFirst_ns,
        applyEntriesMax: applyTimeMax_ns > 0 ? 1 : options.applyEntriesMax,
        applyTimeMax_ns,
        replaceAfter_ns,
        ...(lease_ns > 0 ? { lease: { length_ns: lease_ns, driftBound: 0 }, leasedReads: 1, followerReads: 1 } : {}),
        network: {
          ...options.network,
          tearProbability: tearGapMax_ns > 0 ? 1 : 0,
          tearOutOfOrder: true,
          tearGapMax_ns,
        },
      }),
    });
    this.script = script;
    script.onOutcome = ({ replica, command, outcome }) => {
      const text = describeOutcome(outcome as ProposalOutcome);
      if (this.proposedTogether === 1) this.trace.note(`client: ${formatCommand(command)} at r${replica} ${text}`);
      else {
        const what = text.startsWith('applied') ? 'were applied' : `were answered: ${text}`;
        this.outcomes.set(what, [...(this.outcomes.get(what) ?? []), formatCommand(command)]);
      }
    };
    script.cluster.startAll();
    return [];
  }

  /** Size of the last batch; the outcomes of many are counted, not named. */
  private proposedTogether = 1;

  private propose(given: readonly string[]): string[] {
    const { cluster } = this;
    const words = [...given];
    const bytes = this.setting(words, 'bytes', 0);
    const times = this.setting(words, 'times', 1);
    const id = this.id(words.shift());
    if (words.length === 0) throw mistake('what shall be proposed?');
    this.proposedTogether = times;
    for (let count = 0; count < times; count++) {
      for (const word of words) cluster.propose(id, word, bytes);
    }
    return [];
  }

  /** What the operator asks for, and the refusal; what follows from it is in the trace. */
  private operate(name: string, given: readonly string[]): void {
    const { cluster } = this.cluster;
    const words = [...given];
    const at = this.setting(words, 'at', cluster.leader()?.id ?? -1);
    const life = cluster.lives[at];
    if (!life) throw mistake('there is no leader to ask');
    const id = words[0] === undefined && name === 'transfer' ? undefined : this.id(words[0]);
    const priority = name === 'priority' ? this.count(words[1]) : 0;
    this.noMore(words, name === 'priority' ? 2 : 1);
    const change = (): MembershipChange => {
      const member = { id: id as number, host: 'sim', port: 1 + (id as number), priority: 0 };
      if (name === 'add') return { kind: 'addLearner', ...member };
      if (name === 'spare') return { kind: 'addSpare', ...member };
      if (name === 'priority') return { kind: 'setPriority', id: member.id, priority };
      return { kind: name as 'promote' | 'remove', id: member.id };
    };
    life.postToMain(() => {
      const code =
        name === 'transfer' ? life.transferLeadership(id, TRANSFER_TIMEOUT_NS) : life.changeMembership(change());
      if (code !== '') this.trace.note(`operator: ${[name, ...given].join(' ')} is refused: ${code}`);
    });
  }

  private read(words: readonly string[]): string[] {
    const id = this.id(words[0]);
    if (words.length < 2) throw mistake('which register shall be read?');
    this.proposedTogether = 1;
    for (const register of words.slice(1)) this.cluster.read(id, register);
    return [];
  }

  private runFor(words: readonly string[]): void {
    const { cluster } = this;
    try {
      if (words[0] !== 'until') {
        const duration_ns = this.duration_ns(words[0]);
        this.noMore(words, 1);
        cluster.run(duration_ns);
      } else {
        const within = words.indexOf('within');
        const limit_ns = within < 0 ? WAIT_LIMIT_NS : this.duration_ns(words[within + 1]);
        const until = within < 0 ? words : words.slice(0, within);
        const [, what = '', id] = until;
        this.noMore(until, what === 'answered' || what === 'converged' ? 2 : 3);
        if (within >= 0) this.noMore(words, within + 2);
        this.runUntil(what, id, limit_ns);
      }
    } catch (error) {
      if (this.violation === null) throw error; // a violation is told with the output
    }
  }

  private runUntil(what: string, word: string | undefined, limit_ns: number): void {
    const { cluster } = this;
    const wait = (text: string, condition: () => boolean): void => cluster.runUntil(text, condition, limit_ns);
    const trusts = (id: number): boolean[] =>
      cluster.cluster.lives.flatMap((life) =>
        life === null || life.id === id || cluster.heldAs(life.id).length > 0
          ? []
          : [(life.replication.trustedMask & (1 << id)) !== 0],
      );
    switch (what) {
      case 'leader': {
        const id = word === undefined ? -1 : this.id(word);
        wait(id < 0 ? 'a leader' : `replica ${id} to lead`, () => {
          const leader = cluster.cluster.leader();
          return leader !== null && (id < 0 || leader.id === id);
        });
        break;
      }
      case 'answered':
        wait('answers to all proposals', () => cluster.proposals.every(({ isOpen }) => !isOpen));
        break;
      case 'converged':
        wait('the cluster to converge', () => cluster.cluster.notConverged() === null);
        break;
      case 'suspected': {
        const id = this.id(word);
        wait(`all to suspect replica ${id}`, () => trusts(id).every((isTrusted) => !isTrusted));
        break;
      }
      case 'trusted': {
        const id = this.id(word);
        wait(`all to trust replica ${id}`, () => trusts(id).every((isTrusted) => isTrusted));
        break;
      }
      case 'takeover': {
        const id = this.id(word);
        wait(`replica ${id} to take over`, () => cluster.life(id).replication.role === 'takingOver');
        break;
      }
      case 'repairing': {
        const id = this.id(word);
        wait(`the leader to repair replica ${id}`, () => {
          return cluster.cluster.leader()?.replication.peerPhase(id) === 'repairing';
        });
        break;
      }
      default:
        throw mistake(`'until ${what}' is unknown`);
    }
  }

  // -- what can be asked -------------------------------------------------------------------------------------------

  private status(): string[] {
    return this.cluster.cluster.lives.map((life, id) => {
      if (life === null) return `r${id} is down`;
      const { replication, background, node } = life;
      const held = this.cluster.heldAs(id);
      const role =
        replication.role === 'leader' ? `leads in epoch ${formatEpoch(replication.leaderEpoch)}` : replication.role;
      const writer = node.granted === null ? 'nobody' : `r${node.granted.peer}`;
      const stopped = held.length === 0 ? '' : ` (${held.join(', ')})`;
      return (
        `${nameOf(id, life.bootId)} ${role}${stopped}: promised ${formatEpoch(background.promised)}, writer ${writer}, ` +
        `applied ${replication.appliedLsn}, commit ${replication.commitLsn}, tail ${replication.tailLsn}`
      );
    });
  }

  /** What chains in the memory of a log, from its beginning, or where the ring was recycled from the applied LSN on. */
  private log(id: number): string[] {
    const { node, replication } = this.cluster.life(id);
    const words = new Uint32Array(node.log.buffer);
    const { length: capacity } = node.log;
    let lsn = replication.tailLsn > capacity ? replication.appliedLsn : 0;
    const lines: string[] = [];
    while (lsn < replication.tailLsn || readU53(words, (lsn % capacity) >>> 2) === lsn) {
      const offset = lsn % capacity;
      const at = offset >>> 2;
      if (readU53(words, at) !== lsn || entryType(words, at) === 0) break;
      const endLsn = lsn + entryBytes(entryPayloadBytes(words, at));
      const isApplied = endLsn <= replication.appliedLsn;
      const isCommitted = endLsn <= replication.commitLsn;
      const state = isApplied ? 'applied' : isCommitted ? 'committed' : '';
      const text = `${String(lsn).padStart(6)}  ${formatEpoch(entryEpoch(words, at))}  ${describeEntry(node.log, words, offset)}`;
      lines.push(state === '' ? text : `${text.padEnd(28)} ${state}`);
      lsn = endLsn;
    }
    return lines.length === 0 ? ['(empty)'] : lines;
  }

  private state(id: number): string {
    const { registers } = this.cluster.life(id).state.snapshot();
    const set = registers.flatMap((value, key) => (value === 0 ? [] : [`${String.fromCharCode(97 + key)}=${value}`]));
    return set.length === 0 ? '(nothing)' : set.join(' ');
  }
}

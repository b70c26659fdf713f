// The state machine of the nemesis: registers that are written, read, compared-and-set and added to. What an operation
// does is the simulator's definition, which is also the linearizability checker's. A read is a command like any other:
// it goes through the log, so its answer has a place in the order of all commands. Other reads are answered from the
// state, at the leader or a follower.
import { createHash } from 'node:crypto';
import { QuorateError } from '../../errors.js';
import type { StateMachine } from '../../replica/replica-options.js';
import { type Command, Operation, step } from '../../testing/sim-state-machine.js';

/** operation (1 byte, 3 unused), key, value, expected: 32 bits each, little-endian; filler follows. */
const COMMAND_BYTES = 16;
/** Most registers; a command for one more is answered with REFUSED and changes nothing. */
const REGISTERS_MAX = 1_000_000;
/** Answer to what is no command. No operation on a register gives it. */
const REFUSED = -1;
const SNAPSHOT_HEADER_BYTES = 12; // last LSN, number of registers
const SNAPSHOT_REGISTER_BYTES = 8;

/** The bytes of a command with `fillerBytes` behind it, which have no meaning. */
export function encodeRegisterCommand(command: Command, fillerBytes: number): Uint8Array {
  const bytes = new Uint8Array(COMMAND_BYTES + fillerBytes).fill(command.value & 0xff, COMMAND_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint8(0, command.operation);
  view.setUint32(4, command.key, true);
  view.setUint32(8, command.value, true);
  view.setUint32(12, command.expected, true);
  return bytes;
}

/** A command without effect. */
export const PROBE = new Uint8Array(0);

export class RegisterStore implements StateMachine<number> {
  private registers = new Map<number, number>();
  private lastLsn = -1;

  apply(bytes: Uint8Array, lsn: number): number {
    if (lsn <= this.lastLsn) throw new Error(`LSN ${lsn} was applied after LSN ${this.lastLsn}`);
    this.lastLsn = lsn;
    if (bytes.length < COMMAND_BYTES) return REFUSED;
    const view = new DataView(bytes.buffer, bytes.byteOffset, COMMAND_BYTES);
    const command = {
      operation: view.getUint8(0),
      key: view.getUint32(4, true),
      value: view.getUint32(8, true),
      expected: view.getUint32(12, true),
    };
    if (command.operation < Operation.write || command.operation > Operation.add) return REFUSED;
    const before = this.registers.get(command.key);
    if (before === undefined && this.registers.size === REGISTERS_MAX) return REFUSED;
    const { register, result } = step(before ?? 0, command);
    this.registers.set(command.key, register);
    return result;
  }

  /** What a read of this register would answer now. */
  valueOf(key: number): number {
    return this.registers.get(key) ?? 0;
  }

  /** SHA-256 over all registers: equal if and only if the states are. */
  digest(): string {
    const hash = createHash('sha256');
    for (const [key, value] of [...this.registers].sort(([a], [b]) => a - b)) hash.update(`${key}:${value};`);
    return hash.digest('hex');
  }

  snapshot(): Uint8Array {
    const bytes = new Uint8Array(SNAPSHOT_HEADER_BYTES + this.registers.size * SNAPSHOT_REGISTER_BYTES);
    const view = new DataView(bytes.buffer);
    view.setFloat64(0, this.lastLsn, true);
    view.setUint32(8, this.registers.size, true);
    let at = SNAPSHOT_HEADER_BYTES;
    for (const [key, value] of this.registers) {
      view.setUint32(at, key, true);
      view.setUint32(at + 4, value, true);
      at += SNAPSHOT_REGISTER_BYTES;
    }
    return bytes;
  }

  restore(snapshot: Uint8Array): void {
    const refuse = (what: string): QuorateError =>
      new QuorateError('QUORATE_SNAPSHOT_INVALID', `the snapshot holds no registers: ${what}`);
    if (snapshot.length < SNAPSHOT_HEADER_BYTES) throw refuse(`it has ${snapshot.length} bytes`);
    const view = new DataView(snapshot.buffer, snapshot.byteOffset, snapshot.length);
    const count = view.getUint32(8, true);
    if (count > REGISTERS_MAX) throw refuse(`${count} registers, more than ${REGISTERS_MAX}`);
    if (snapshot.length !== SNAPSHOT_HEADER_BYTES + count * SNAPSHOT_REGISTER_BYTES) {
      throw refuse(`${count} registers in ${snapshot.length} bytes`);
    }
    const registers = new Map<number, number>();
    for (let at = SNAPSHOT_HEADER_BYTES; at < snapshot.length; at += SNAPSHOT_REGISTER_BYTES) {
      registers.set(view.getUint32(at, true), view.getUint32(at + 4, true));
    }
    if (registers.size !== count) throw refuse('a register is there twice');
    this.registers = registers;
    this.lastLsn = view.getFloat64(0, true);
  }
}

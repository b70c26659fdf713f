// Ports of the shm device's connection manager: Unix sockets in the folder of the device, whose permissions (it is the
// user's own, mode 0700) say who may connect. A socket is bound to a name of its own and then linked to that of the port,
// which fails if the port is taken; what a process that died has left behind is moved away first.
import { randomBytes } from 'node:crypto';
import { linkSync, lstatSync, mkdirSync, renameSync, unlinkSync } from 'node:fs';
import { connect, createServer, isIPv6, type Server, type Socket, SocketAddress } from 'node:net';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { QuorateError } from '../../errors.js';

/** Ports that are given out when none is asked for. */
const FIRST_FREE_PORT = 49_152;
const TRIES = 64;
/** Of sockaddr_un, without the final NUL. */
const MAX_PATH_BYTES = 107;

const errnoOf = (error: unknown): { code?: string; errno?: number } => error as { code?: string; errno?: number };

function systemError(what: string, syscall: string, code: string, errno: number, advice: string): QuorateError {
  return new QuorateError('QUORATE_SYSTEM', `${what} failed: ${code}. ${advice}`, { errno: Math.abs(errno), syscall });
}

/** The folder, as native/provider/shm chooses it. */
export function shmDirectory(option: string | undefined): string {
  if (option !== undefined && option !== '') return option;
  const fromEnvironment = process.env['QUORATE_SHM_DIR'];
  if (fromEnvironment !== undefined && fromEnvironment !== '') return fromEnvironment;
  return `/dev/shm/quorate-${process.geteuid?.() ?? 0}`;
}

/** Makes sure that the folder exists and is nobody else's. */
export function checkDirectory(directory: string): void {
  try {
    mkdirSync(directory, { mode: 0o700 });
  } catch (error) {
    const { code = 'error', errno = 0 } = errnoOf(error);
    if (code !== 'EEXIST') {
      throw systemError(`Making the folder ${directory}`, 'mkdir', code, errno, 'Create its parent, or name another.');
    }
  }
  const info = lstatSync(directory);
  if (!info.isDirectory() || info.uid !== process.geteuid?.() || (info.mode & 0o022) !== 0) {
    throw new QuorateError(
      'QUORATE_SYSTEM',
      `${directory} cannot be used for connections: it must be a folder of this user that nobody else may write to.`,
      { errno: 13, syscall: 'mkdir' },
    );
  }
}

/** Whether an address is one of this host: shared memory reaches no other. */
export function isOwnAddress(host: string): boolean {
  const [named = ''] = host.split('%');
  // IPv6 has many ways to write an address.
  const bare = isIPv6(named) ? new SocketAddress({ address: named, family: 'ipv6' }).address : named;
  if (/^127\./.test(bare) || ['::1', '::', '0.0.0.0'].includes(bare)) return true;
  return Object.values(networkInterfaces()).some((entries) => entries?.some(({ address }) => address === bare));
}

export function portPath(directory: string, port: number): string {
  return join(directory, `cm-${port}.sock`);
}

function inode(path: string): number | undefined {
  try {
    return lstatSync(path).ino;
  } catch {
    return undefined;
  }
}

function remove(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // It is gone already.
  }
}

/** Whether a process accepts connections on the socket. */
function isAlive(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket: Socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', (error) => resolve(!['ECONNREFUSED', 'ENOENT'].includes(errnoOf(error).code ?? '')));
  });
}

/** Ports of this thread, to be freed when it ends in order. */
const open = new Set<ShmPort>();
let watchesExit = false;

/** A port of this process. */
export class ShmPort {
  readonly port: number;
  readonly #server: Server;
  readonly #path: string;
  readonly #inode: number;

  private constructor(port: number, server: Server, path: string, ownInode: number) {
    this.port = port;
    this.#server = server;
    this.#path = path;
    this.#inode = ownInode;
    open.add(this);
    if (!watchesExit) {
      watchesExit = true;
      process.once('exit', () => {
        for (const port of open) port.close();
      });
    }
  }

  /** Takes the port, 0: one that is free. Connections are closed at once until listen(). */
  static async take(directory: string, port: number): Promise<ShmPort> {
    checkDirectory(directory);
    const own = join(directory, `cm-${randomBytes(8).toString('hex')}`);
    const longest = Math.max(Buffer.byteLength(own), Buffer.byteLength(portPath(directory, 65_535)));
    if (longest > MAX_PATH_BYTES) {
      throw systemError(`Binding in ${directory}`, 'bind', 'ENAMETOOLONG', 36, 'Name a folder with a shorter path.');
    }
    const server = createServer((socket) => socket.destroy());
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error) => {
        const { code = 'error', errno = 0 } = errnoOf(error);
        reject(systemError(`Binding in ${directory}`, 'bind', code, errno, 'Check the rights and the space there.'));
      });
      server.listen(own, 128, resolve);
    });
    server.unref();
    try {
      const ownInode = inode(own);
      if (ownInode === undefined) throw systemError(`Binding in ${directory}`, 'bind', 'ENOENT', 2, 'It was removed.');
      for (let tries = 0; tries < TRIES; tries++) {
        const candidate = port !== 0 ? port : FIRST_FREE_PORT + Math.floor(Math.random() * (65_536 - FIRST_FREE_PORT));
        const path = portPath(directory, candidate);
        if (await claim(own, path)) {
          remove(own); // the port's name is enough
          return new ShmPort(candidate, server, path, ownInode);
        }
        if (port !== 0) break;
      }
      throw systemError(
        port === 0 ? 'Finding a free port' : `Binding port ${port}`,
        'bind',
        'EADDRINUSE',
        98,
        'Another id listens there.',
      );
    } catch (error) {
      server.close();
      throw error;
    }
  }

  /** Hands over who connects from here on. */
  listen(accept: (socket: Socket) => void): void {
    this.#server.removeAllListeners('connection');
    this.#server.on('connection', accept);
  }

  close(): void {
    open.delete(this);
    if (inode(this.#path) === this.#inode) remove(this.#path);
    this.#server.close();
  }
}

async function claim(own: string, path: string): Promise<boolean> {
  try {
    linkSync(own, path);
    return true;
  } catch (error) {
    const { code = 'error', errno = 0 } = errnoOf(error);
    if (code !== 'EEXIST') throw systemError(`Binding ${path}`, 'link', code, errno, '');
  }
  const found = inode(path);
  if (await isAlive(path)) return false;
  const grave = `${own}.old`;
  try {
    renameSync(path, grave);
  } catch {
    return false; // somebody else was faster
  }
  if (inode(grave) !== found) {
    // Somebody else was faster, and what was moved away is theirs: put it back.
    try {
      linkSync(grave, path);
    } catch {
      // And somebody else again.
    }
    remove(grave);
    return false;
  }
  remove(grave);
  try {
    linkSync(own, path);
    return true;
  } catch {
    return false;
  }
}

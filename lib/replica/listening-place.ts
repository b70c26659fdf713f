// Where a replica listens for control connections. When the membership changes its address it listens at the new one, and
// for a moment still at the former one, so that what is under way there gets time to end.
import { lookup } from 'node:dns/promises';
import { QuorateError } from '../errors.js';
import type { ControlServer } from './control-channel.js';
import { REMOVED_GRACE_MS } from './member-directory.js';

export interface ListeningPlaceHost {
  /** A server that does not listen yet. */
  makeServer(): ControlServer;
  isClosed(): boolean;
  onWarning(error: Error): void;
}

/** A server and where it listens. */
interface Place {
  readonly server: ControlServer;
  readonly host: string;
  readonly port: number;
  /** What `host` stood for when it began to. */
  readonly address: string;
}

export class ListeningPlace {
  private current: Place;
  /** At addresses before a change, for a moment still, with what ends that. */
  private readonly former = new Map<Place, NodeJS.Timeout>();
  /** Whose ends close() has to wait for, too: at a former address, or at one where none could listen yet. */
  private readonly others = new Set<ControlServer>();
  /** Changes take effect in their order: the last one counts, however long it takes to look up the name of another. */
  private moving: Promise<void> = Promise.resolve();

  constructor(private readonly host: ListeningPlaceHost) {
    this.current = { server: host.makeServer(), host: '', port: 0, address: '' };
  }

  /** Where it listens now. */
  get at(): { readonly host: string; readonly port: number } {
    const { host, port } = this.current;
    return { host, port };
  }

  async listen(host: string, port: number): Promise<void> {
    const { server } = this.current;
    const { address } = await server.listen(host, port);
    this.current = { server, host, port, address };
  }

  /** The committed configuration has this replica at another address: it listens there from now on. */
  move(host: string, port: number): Promise<void> {
    this.moving = this.moving.then(() => this.moveOn(host, port));
    return this.moving;
  }

  private async moveOn(host: string, port: number): Promise<void> {
    const isThere = (place: Place) => place.host === host && place.port === port;
    if (this.host.isClosed() || isThere(this.current)) return;
    const place = [...this.former.keys()].find(isThere) ?? (await this.begin(host, port));
    if (place === undefined || this.host.isClosed()) return; // close() sees to the server as well
    clearTimeout(this.former.get(place));
    this.former.delete(place);
    if (place !== this.current) this.leave(this.current);
    this.current = { ...place, host, port };
    this.others.delete(place.server);
  }

  /** One where it listens already, under another name of the same address. */
  private async underAnotherName(host: string, port: number): Promise<Place | undefined> {
    const { address } = await lookup(host);
    return [this.current, ...this.former.keys()].find((place) => place.address === address && place.port === port);
  }

  /** Undefined if it is impossible. */
  private async begin(host: string, port: number): Promise<Place | undefined> {
    const before = [...this.former.keys()];
    const server = this.host.makeServer();
    this.others.add(server);
    try {
      const { address } = await server.listen(host, port);
      return { server, host, port, address };
    } catch (error) {
      await server.close();
      this.others.delete(server);
      const isInUse = (error as QuorateError).code === 'QUORATE_ADDRESS_IN_USE';
      const here = isInUse ? await this.underAnotherName(host, port).catch(() => undefined) : undefined;
      if (here !== undefined) return here;
      const left = before.filter((place) => place.port === port && !this.former.has(place));
      if (isInUse && left.length > 0) {
        // Perhaps one of these held the address, for which nobody has to wait any more.
        await Promise.all(left.map((place) => place.server.close()));
        if (this.host.isClosed()) return undefined; // close() knows nothing of a server that is made now
        return await this.begin(host, port);
      }
      const { message } = error as Error;
      const text =
        `the address of this replica was changed to ${host}:${port}, where it cannot listen (${message}); it goes on ` +
        'listening where it did: start it there, or change the address again';
      this.host.onWarning(new QuorateError('QUORATE_ADDRESS_CHANGE', text, { cause: error }));
      return undefined;
    }
  }

  /** Members dial the new address as soon as they know it; what is under way on the connections gets time to end. */
  private leave(place: Place): void {
    const { server } = place;
    this.others.add(server);
    const end = () => {
      this.former.delete(place);
      void server.close().then(() => this.others.delete(server));
    };
    this.former.set(place, setTimeout(end, REMOVED_GRACE_MS).unref());
  }

  async close(): Promise<void> {
    await Promise.all([this.current.server, ...this.others].map((server) => server.close()));
  }
}

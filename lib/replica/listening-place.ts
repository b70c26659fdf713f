// Where a replica listens for control connections. When the membership changes its address it listens at the new one, and
// for a moment still at the former one, so that what is under way there gets time to end.
import { QuorateError } from '../errors.js';
import type { ControlServer } from './control-channel.js';
import { REMOVED_GRACE_MS } from './member-directory.js';

export interface ListeningPlaceHost {
  /** A server that does not listen yet. */
  makeServer(): ControlServer;
  isClosed(): boolean;
  onWarning(error: Error): void;
}

export class ListeningPlace {
  private server: ControlServer;
  private at_: { readonly host: string; readonly port: number } = { host: '', port: 0 };
  /** At an address before a change, for a moment still, or at the one after, not yet. */
  private readonly others = new Set<ControlServer>();

  constructor(private readonly host: ListeningPlaceHost) {
    this.server = host.makeServer();
  }

  /** Where it listens now. */
  get at(): { readonly host: string; readonly port: number } {
    return this.at_;
  }

  async listen(host: string, port: number): Promise<void> {
    await this.server.listen(host, port);
    this.at_ = { host, port };
  }

  /** The committed configuration has this replica at another address: it listens there from now on. */
  async move(host: string, port: number): Promise<void> {
    const server = this.host.makeServer();
    this.others.add(server);
    try {
      await server.listen(host, port);
    } catch (error) {
      await server.close();
      this.others.delete(server);
      const { message } = error as Error;
      const text =
        `the address of this replica was changed to ${host}:${port}, where it cannot listen (${message}); it goes on ` +
        'listening where it did: start it there, or change the address again';
      this.host.onWarning(new QuorateError('QUORATE_ADDRESS_CHANGE', text, { cause: error }));
      return;
    }
    if (this.host.isClosed()) return; // and this server as well
    const former = this.server;
    this.server = server;
    this.at_ = { host, port };
    this.others.delete(server);
    this.others.add(former);
    // Members dial the new address as soon as they know it; what is under way on the connections gets time to end.
    setTimeout(() => void former.close().then(() => this.others.delete(former)), REMOVED_GRACE_MS).unref();
  }

  async close(): Promise<void> {
    await Promise.all([this.server, ...this.others].map((server) => server.close()));
  }
}

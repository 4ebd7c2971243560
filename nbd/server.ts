import type net from "node:net";
import { type Clock, systemClock } from "../src/base/clock.ts";
import { BlockError } from "../src/base/errors.ts";
import { type Logger, silentLogger } from "../src/base/logger.ts";
import { BusyPoll } from "./busy-poll.ts";
import { Connection, type ConnectionHost } from "./connection.ts";
import { checkExport, type NbdExport } from "./export.ts";
import { FailureLog } from "./failure-log.ts";
import { type ListenAddress, type Listener, listen } from "./listen.ts";
import { localDescriptorOf } from "./send.ts";
import { TlsAcceptor, type TlsPolicy } from "./tls.ts";
import type { UnreadWatch } from "./unread.ts";
import { limitWatches } from "./watch-limit.ts";

export const MAX_CONNECTIONS_DEFAULT = 100;
/**
 * Clients whose reading is watched at a time, those included whose connection has ended; each takes a
 * descriptor. Others get copies.
 */
const WATCHES_MAX = 256;
export const HANDSHAKE_MS_DEFAULT = 10_000;
/** How long a shutdown waits for clients and requests under way. */
export const GRACE_MS_DEFAULT = 10_000;

export interface NbdServerOptions {
  /**
   * Connections at a time, negotiating ones included; more are closed on arrival. 0: no limit. Default 100.
   */
  readonly maxConnections?: number;
  /** Time a client has to enter an export. 0: no limit. Default 10 s. */
  readonly handshakeMs?: number;
  /** Name of the export that a client gets who asks for "" when no export has that name. */
  readonly defaultExport?: string;
  /**
   * Removes the name of a unix socket if a server that is gone left it behind; called before listening there.
   * Without it such a name is in the way. This folder does not touch files itself.
   */
  readonly clearStaleSocket?: (path: string) => Promise<void>;
  /**
   * Runs what binds a unix socket, so that its name has the right rights from the first moment. Without it
   * they are what the process gives to new files.
   */
  readonly bindSocket?: (bind: () => void) => void;
  /** Told the descriptor of each client of a unix socket, to set what the system offers there. */
  readonly onLocalClient?: (descriptor: number) => void;
  /**
   * Watches what the client of a unix socket reads. Without it no backend is asked to lend data.
   */
  readonly watchLocalClient?: (descriptor: number) => UnreadWatch | undefined;
  /** Lets clients in over TLS only. Without it there is no TLS. */
  readonly tls?: TlsPolicy;
  readonly clock?: Clock;
  readonly logger?: Logger;
}

export interface ExportEvents {
  /** The last client of the export is gone; its requests have ended. */
  onLastClientLeft?: () => void;
}

/** `safe` refuses while clients are connected; `hard` drops them. */
export type RemovalMode = "safe" | "hard";

interface Offer extends NbdExport {
  readonly events: ExportEvents;
  readonly clients: Set<Connection>;
  /** Told when the last client is gone, while a removal waits. */
  onEmpty: (() => void) | undefined;
}

/** NBD exports under names, on any number of unix and TCP sockets. */
export class NbdServer {
  readonly #offers = new Map<string, Offer>();
  readonly #connections = new Set<Connection>();
  readonly #listeners: Listener[] = [];
  readonly #host: ConnectionHost;
  readonly #logger: Logger;
  readonly #clock: Clock;
  readonly #defaultExport: string;
  readonly #clearStaleSocket: (path: string) => Promise<void>;
  readonly #bindSocket: (bind: () => void) => void;
  readonly #onLocalClient: ((descriptor: number) => void) | undefined;
  readonly #watchLocalClient: (descriptor: number) => UnreadWatch | undefined;
  #maxConnections: number;
  #closing = false;
  /** Clients that wait until they are admitted; undefined: they come in at once. */
  #held: net.Socket[] | undefined;
  #onNoConnections: (() => void) | undefined;

  constructor(options: NbdServerOptions = {}) {
    this.#maxConnections = options.maxConnections ?? MAX_CONNECTIONS_DEFAULT;
    this.#logger = options.logger ?? silentLogger;
    this.#clock = options.clock ?? systemClock;
    this.#clearStaleSocket = options.clearStaleSocket ?? (async () => {});
    this.#defaultExport = options.defaultExport ?? "";
    this.#onLocalClient = options.onLocalClient;
    this.#watchLocalClient = limitWatches(options.watchLocalClient ?? (() => undefined), WATCHES_MAX);
    this.#bindSocket = options.bindSocket ?? ((bind) => bind());
    const tls = options.tls === undefined ? undefined : new TlsAcceptor(options.tls);
    this.#host = this.#connectionHost(options.handshakeMs ?? HANDSHAKE_MS_DEFAULT, tls);
  }

  /**
   * Listens on one more address.
   * @returns the address, with the port that was taken.
   * @throws BlockError EADDRINUSE and what else the host says
   */
  async listen(address: ListenAddress): Promise<ListenAddress> {
    if (this.#closing) throw new BlockError("ESHUTDOWN", "the NBD server is shutting down");
    if ("path" in address) await this.#clearStaleSocket(address.path);
    const listener = await listen(
      address,
      (socket) => this.#accept(socket),
      (error) => this.#logger.warn(`NBD server: ${error.message}`),
      this.#bindSocket,
    );
    this.#listeners.push(listener);
    return listener.address;
  }

  /** Lets clients connect and wait, until `admit`: who comes while exports are set up shall find them all. */
  hold(): void {
    this.#held ??= [];
  }

  admit(): void {
    const held = this.#held ?? [];
    this.#held = undefined;
    for (const socket of held) this.#accept(socket);
  }

  get addresses(): readonly ListenAddress[] {
    return this.#listeners.map((listener) => listener.address);
  }

  get connectionCount(): number {
    return this.#connections.size;
  }

  setMaxConnections(maxConnections: number): void {
    this.#maxConnections = maxConnections;
  }

  /** @throws BlockError EEXIST for a name in use, EINVAL for what the protocol does not allow. */
  addExport(offered: NbdExport, events: ExportEvents = {}): void {
    checkExport(offered);
    const { name, backend } = offered;
    if (this.#offers.has(name)) {
      throw new BlockError("EEXIST", `NBD server already has export named '${name}'`);
    }
    this.#offers.set(name, { name, backend, events, clients: new Set(), onEmpty: undefined });
  }

  /**
   * Takes an export out. Done when its backend sees no more requests.
   * @throws BlockError NODE_IN_USE in safe mode while clients are connected, EINVAL for an unknown name.
   */
  async removeExport(name: string, mode: RemovalMode): Promise<void> {
    const offer = this.#offerNamed(name);
    if (mode === "safe" && offer.clients.size > 0) {
      const count = offer.clients.size;
      const hint = "disconnect them or remove it in hard mode";
      throw new BlockError("NODE_IN_USE", `export '${name}' still in use by ${count} client(s); ${hint}`);
    }
    this.#offers.delete(name);
    for (const client of offer.clients) client.destroy();
    if (offer.clients.size > 0) {
      await new Promise<void>((resolve) => {
        offer.onEmpty = resolve;
      });
    }
  }

  exportNames(): string[] {
    return [...this.#offers.keys()];
  }

  /** Clients in an export now. @throws BlockError EINVAL for an unknown name. */
  clientCount(name: string): number {
    return this.#offerNamed(name).clients.size;
  }

  /**
   * Stops listening, lets requests under way end while later ones get ESHUTDOWN, closes all connections.
   * @returns whether all that was done within `graceMs`; otherwise connections were cut, and false may also
   * mean that a backend still works on a request.
   */
  async close(graceMs: number = GRACE_MS_DEFAULT): Promise<boolean> {
    this.#closing = true;
    for (const connection of this.#connections) connection.shutDown();
    this.admit();
    await Promise.all(this.#listeners.splice(0).map((listener) => listener.close()));
    if (await this.#noConnections(graceMs)) return true;
    for (const connection of this.#connections) connection.destroy();
    await this.#noConnections(graceMs);
    return false;
  }

  #noConnections(withinMs: number): Promise<boolean> {
    if (this.#connections.size === 0) return Promise.resolve(true);
    return new Promise((resolve) => {
      const finish = (done: boolean) => {
        cancel();
        this.#onNoConnections = undefined;
        resolve(done);
      };
      const cancel = this.#clock.after(withinMs, () => finish(false));
      this.#onNoConnections = () => finish(true);
    });
  }

  #accept(socket: net.Socket): void {
    if (this.#held !== undefined) {
      this.#held.push(socket);
      return;
    }
    const full = this.#maxConnections > 0 && this.#connections.size >= this.#maxConnections;
    if (full || this.#closing) {
      if (full) this.#logger.warn(`NBD server: connection refused, ${this.#maxConnections} are open already`);
      socket.on("error", () => {});
      socket.destroy();
      return;
    }
    const local = localDescriptorOf(socket);
    if (local >= 0) this.#onLocalClient?.(local);
    this.#connections.add(new Connection(socket, this.#host));
  }

  #find(name: string): Offer | undefined {
    return this.#offers.get(name) ?? (name === "" ? this.#offers.get(this.#defaultExport) : undefined);
  }

  #offerNamed(name: string): Offer {
    const offer = this.#offers.get(name);
    if (offer === undefined) throw new BlockError("EINVAL", `NBD server has no export named '${name}'`);
    return offer;
  }

  #left(connection: Connection, offer: Offer): void {
    offer.clients.delete(connection);
    if (offer.clients.size > 0) return;
    offer.onEmpty?.();
    offer.events.onLastClientLeft?.();
  }

  #connectionHost(handshakeMs: number, tls: TlsAcceptor | undefined): ConnectionHost {
    const server = this;
    return {
      clock: this.#clock,
      busyPoll: new BusyPoll(this.#clock),
      failures: new FailureLog(this.#logger, this.#clock),
      handshakeMs,
      tls,
      get closing() {
        return server.#closing;
      },
      find: (name) => this.#find(name),
      list: () => this.#offers.values(),
      entered: (connection, offered) => (offered as Offer).clients.add(connection),
      left: (connection, offered) => this.#left(connection, offered as Offer),
      gone: (connection) => {
        this.#connections.delete(connection);
        if (this.#connections.size === 0) this.#onNoConnections?.();
      },
      watchLocalClient: this.#watchLocalClient,
      note: (message) => this.#logger.debug(`NBD server: ${message}`),
    };
  }
}

// The NBD server of the daemon and the exports on it.
//
//   1. One server at a time, as in the reference; exports need it and end with it.
//   2. An export's id and its NBD name are two things: the id is how commands name it ("device"), the name is
//      what clients ask for.
//   3. BLOCK_EXPORT_DELETED goes out when the last request of the export has ended and its node is let go.

import type { ListenAddress } from "../../nbd/listen.ts";
import { NbdServer, type RemovalMode } from "../../nbd/server.ts";
import type { TlsPolicy } from "../../nbd/tls.ts";
import { BlockError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import type { Graph } from "../block/graph.ts";
import type { BlockNode } from "../block/node.ts";
import { NbdExport } from "../export/nbd-export.ts";
import { growSendBuffer } from "../sys/send-buffer.ts";
import { watchSocket } from "../sys/socket-watch.ts";
import { bindError, onFreePort, removeStale, type SocketAddress } from "./chardev/socket-address.ts";
import { exposure, type ListeningRules } from "./exposure.ts";
import { isIdentifier } from "./identifiers.ts";
import { bindPrivately, grantRights } from "./socket-rights.ts";

export interface ServerSettings {
  readonly address: SocketAddress;
  readonly maxConnections?: number | undefined;
  /** Time that a client has to enter an export; 0: no limit. */
  readonly handshakeMs?: number | undefined;
  /** Without it there is no TLS. */
  readonly tls?: TlsPolicy | undefined;
}

export interface ExportSettings {
  readonly id: string;
  /** What clients ask for. */
  readonly name: string;
  readonly node: BlockNode;
  readonly writable: boolean;
  readonly description?: string | undefined;
  readonly allocationDepth: boolean;
}

/** An export as commands see it. */
export interface ExportEntry {
  readonly id: string;
  readonly name: string;
  readonly backend: NbdExport;
  shuttingDown: boolean;
  /** Its end, once that has begun. */
  gone?: Promise<void>;
}

export class ExportTable {
  readonly #exports = new Map<string, ExportEntry>();
  readonly #graph: Graph;
  readonly #logger: Logger;
  readonly #listening: ListeningRules;
  readonly #deleted: (id: string) => void;
  #server: NbdServer | undefined;
  #starting = false;
  #holding = false;

  /** `deleted` is told the id of an export when it is gone. */
  constructor(graph: Graph, logger: Logger, listening: ListeningRules, deleted: (id: string) => void) {
    this.#graph = graph;
    this.#logger = logger;
    this.#listening = listening;
    this.#deleted = deleted;
  }

  /** Oldest first. */
  get entries(): ExportEntry[] {
    return [...this.#exports.values()];
  }

  find(id: string): ExportEntry | undefined {
    return this.#exports.get(id);
  }

  /** @throws BlockError EINVAL in QEMU's words */
  get(id: string): ExportEntry {
    const entry = this.#exports.get(id);
    if (entry === undefined) throw new BlockError("EINVAL", `Export '${id}' is not found`);
    return entry;
  }

  get isServerRunning(): boolean {
    return this.#server !== undefined;
  }

  /** Where the server listens. */
  get addresses(): readonly ListenAddress[] {
    return this.#server?.addresses ?? [];
  }

  // --- server ----------------------------------------------------------------------------------------------

  /** @throws BlockError EINVAL when one is running, EADDRINUSE and what else the host says */
  async startServer(settings: ServerSettings): Promise<void> {
    if (this.#server !== undefined || this.#starting) {
      throw new BlockError("EINVAL", "NBD server already running");
    }
    const { address, maxConnections, handshakeMs, tls } = settings;
    const server = new NbdServer({
      logger: this.#logger,
      bindSocket: bindPrivately,
      onLocalClient: growSendBuffer,
      watchLocalClient: watchSocket,
      ...(tls === undefined ? {} : { tls }),
      ...(maxConnections === undefined ? {} : { maxConnections }),
      ...(handshakeMs === undefined ? {} : { handshakeMs }),
    });
    if (this.#holding) server.hold();
    this.#starting = true;
    try {
      await removeStale(address);
      const taken = await onFreePort(address, (one) => server.listen(listenAddress(one)));
      await this.#opened(server, taken, tls !== undefined);
      this.#server = server;
    } catch (error) {
      // The host's own error tells which words fit; the server's stand beside it for those who use it alone.
      throw error instanceof BlockError && error.cause !== undefined
        ? bindError(address, error.cause)
        : error;
    } finally {
      this.#starting = false;
    }
  }

  async #opened(server: NbdServer, address: ListenAddress, isSecure: boolean): Promise<void> {
    const { rights, insecure } = this.#listening;
    if ("path" in address) {
      try {
        grantRights(address.path, rights);
      } catch (error) {
        await server.close();
        throw error;
      }
    } else if (!isSecure && !insecure) {
      const warning = exposure("nbd", address.host, address.port);
      if (warning !== undefined) this.#logger.warn(warning);
    }
  }

  /**
   * Ends all connections and exports, newest export first. @throws BlockError EINVAL when there is no server
   */
  async stopServer(): Promise<void> {
    const server = this.#runningServer();
    this.#server = undefined;
    // Exports of the next server may come before this one has ended.
    const ending = this.entries.reverse();
    for (const entry of ending) entry.shuttingDown = true;
    await server.close();
    await Promise.all(ending.map((entry) => this.#letGo(entry)));
  }

  /** Clients wait from now on, also those of a server that starts later, until `admitClients`. */
  holdClients(): void {
    this.#holding = true;
    this.#server?.hold();
  }

  admitClients(): void {
    this.#holding = false;
    this.#server?.admit();
  }

  #runningServer(): NbdServer {
    if (this.#server === undefined) throw new BlockError("EINVAL", "NBD server not running");
    return this.#server;
  }

  // --- exports ---------------------------------------------------------------------------------------------

  /** @throws BlockError EINVAL, EEXIST in QEMU's words */
  checkId(id: string): void {
    if (!isIdentifier(id)) throw new BlockError("EINVAL", "Invalid block export id");
    if (this.#exports.has(id)) throw new BlockError("EEXIST", `Block export id '${id}' is already in use`);
  }

  async add(settings: ExportSettings): Promise<void> {
    const { id, name, node } = settings;
    this.checkId(id);
    const server = this.#runningServer();
    if (settings.writable && node.readOnly) {
      throw new BlockError("EPERM", "Cannot export read-only node as writable");
    }
    const backend = new NbdExport(this.#graph, node, settings);
    try {
      server.addExport({ name, backend });
    } catch (error) {
      await backend.release();
      throw error;
    }
    this.#exports.set(id, { id, name, backend, shuttingDown: false });
  }

  /**
   * Done when nothing of the export is left. @throws BlockError NODE_IN_USE in safe mode while clients are
   * there
   */
  async remove(id: string, mode: RemovalMode): Promise<void> {
    const entry = this.get(id);
    if (entry.shuttingDown) throw new BlockError("EINVAL", `Export '${id}' is already shutting down`);
    const server = this.#runningServer();
    if (mode === "safe" && server.clientCount(entry.name) > 0) {
      throw new BlockError(
        "NODE_IN_USE",
        `export '${id}' still in use: use mode='hard' to force client disconnect`,
      );
    }
    entry.shuttingDown = true;
    await server.removeExport(entry.name, mode);
    await this.#letGo(entry);
  }

  /** Once, whoever asks for it. */
  #letGo(entry: ExportEntry): Promise<void> {
    entry.gone ??= this.#release(entry);
    return entry.gone;
  }

  async #release(entry: ExportEntry): Promise<void> {
    try {
      await entry.backend.release();
    } catch (error) {
      this.#logger.error(`export '${entry.id}': ${String(error)}`);
    }
    this.#exports.delete(entry.id);
    this.#deleted(entry.id);
  }
}

function listenAddress(address: SocketAddress): ListenAddress {
  if (address.kind === "fd") throw new BlockError("ENOTSUP", "The NBD server cannot take over a descriptor");
  return address.kind === "unix" ? { path: address.path } : { host: address.host, port: address.port };
}

// A chardev on a unix or TCP socket, as server or as client.
//
//   1. One peer at a time. Others that connect to a server wait their turn, up to a number; more are hung up
//      on.
//   2. A client whose server goes away tries again where `reconnect` says so; otherwise it stays closed.

import net from "node:net";
import type { Clock } from "../../base/clock.ts";
import { fsError } from "../../sys/host-error.ts";
import { bindPrivately } from "../socket-rights.ts";
import type { Chardev, Frontend, Peer } from "./chardev.ts";
import { bindError, onFreePort, removeStale, type SocketAddress } from "./socket-address.ts";

export interface SocketSettings {
  readonly id: string;
  readonly address: SocketAddress;
  readonly server: boolean;
  /** Pause between attempts of a client; 0: it tries once. */
  readonly reconnectMs: number;
}

/** How long the end of a device waits for a peer to take what was written for it. */
const FAREWELL_MS = 1000;
/** Peers that may wait for their turn at a server. */
const WAITING_MAX = 16;

export class SocketChardev implements Chardev {
  readonly id: string;
  readonly #settings: SocketSettings;
  readonly #clock: Clock;
  readonly #waiting: net.Socket[] = [];
  readonly #onFirstPeer: (() => void)[] = [];
  #server: net.Server | undefined;
  #address: SocketAddress;
  #frontend: Frontend | undefined;
  #current: net.Socket | undefined;
  #closed = false;
  #cancelRetry: (() => void) | undefined;

  private constructor(settings: SocketSettings, clock: Clock) {
    this.id = settings.id;
    this.#settings = settings;
    this.#address = settings.address;
    this.#clock = clock;
  }

  /** Listens or connects. @throws BlockError in QEMU's words */
  static async open(settings: SocketSettings, clock: Clock): Promise<SocketChardev> {
    const chardev = new SocketChardev(settings, clock);
    if (settings.server) await chardev.#listen();
    else await chardev.#connectFirst();
    return chardev;
  }

  get filename(): string {
    const { server } = this.#settings;
    const place = `${describe(this.#address)}${server ? ",server=on" : ""}`;
    return this.isOpen ? place : `disconnected:${place}`;
  }

  get isOpen(): boolean {
    return this.#current !== undefined;
  }

  /** Where a server listens, with the port that was really taken. */
  get address(): SocketAddress {
    return this.#address;
  }

  attach(frontend: Frontend): void {
    this.#frontend = frontend;
    this.#seatNext();
  }

  /** Done when the first peer is there. */
  firstPeer(): Promise<void> {
    if (this.#current !== undefined || this.#waiting.length > 0) return Promise.resolve();
    return new Promise((resolve) => this.#onFirstPeer.push(resolve));
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#cancelRetry?.();
    const server = this.#server;
    const closed = server && new Promise<void>((resolve) => server.close(() => resolve()));
    for (const socket of this.#waiting.splice(0)) socket.destroy();
    if (this.#current !== undefined) await this.#farewell(this.#current);
    await closed;
  }

  /** What was written last still goes out; a peer that does not read is not waited for long. */
  async #farewell(socket: net.Socket): Promise<void> {
    if (!socket.destroyed) {
      await new Promise<void>((resolve) => {
        const cancel = this.#clock.after(FAREWELL_MS, resolve);
        socket.once("close", resolve);
        socket.end(() => {
          cancel();
          resolve();
        });
      });
    }
    socket.destroy();
  }

  // --- server ----------------------------------------------------------------------------------------------

  async #listen(): Promise<void> {
    const { address } = this.#settings;
    await removeStale(address);
    const server = net.createServer({ pauseOnConnect: true, allowHalfOpen: false }, (socket) =>
      this.#arrived(socket),
    );
    try {
      await onFreePort(address, (one) => startListening(server, one));
    } catch (error) {
      throw bindError(address, error);
    }
    server.on("error", () => {});
    this.#server = server;
    const bound = server.address();
    if (address.kind === "inet" && typeof bound === "object" && bound !== null) {
      this.#address = { ...address, port: bound.port };
    }
  }

  #arrived(socket: net.Socket): void {
    socket.on("error", () => socket.destroy());
    if (this.#closed || this.#waiting.length >= WAITING_MAX) {
      socket.destroy();
      return;
    }
    this.#waiting.push(socket);
    for (const tell of this.#onFirstPeer.splice(0)) tell();
    this.#seatNext();
  }

  #seatNext(): void {
    if (this.#frontend === undefined || this.#current !== undefined || this.#closed) return;
    const socket = this.#waiting.shift();
    if (socket === undefined) return;
    this.#current = socket;
    socket.once("close", () => this.#left(socket));
    if (socket.destroyed) this.#left(socket);
    else this.#frontend.opened(peerOf(socket));
  }

  #left(socket: net.Socket): void {
    if (this.#current !== socket) return;
    this.#current = undefined;
    if (this.#settings.server) this.#seatNext();
    else this.#retryLater();
  }

  // --- client ----------------------------------------------------------------------------------------------

  async #connectFirst(): Promise<void> {
    try {
      this.#arrived(await connect(this.#settings.address));
    } catch (error) {
      if (this.#settings.reconnectMs === 0) throw error;
      this.#retryLater();
    }
  }

  #retryLater(): void {
    const { reconnectMs, address } = this.#settings;
    if (reconnectMs === 0 || this.#closed) return;
    this.#cancelRetry = this.#clock.after(reconnectMs, () => {
      connect(address).then(
        (socket) => this.#arrived(socket),
        () => this.#retryLater(),
      );
    });
  }
}

function peerOf(socket: net.Socket): Peer {
  return { input: socket, output: socket, close: () => socket.destroySoon() };
}

async function connect(address: SocketAddress): Promise<net.Socket> {
  if (address.kind === "fd") return new net.Socket({ fd: address.fd });
  const options =
    address.kind === "unix" ? { path: address.path } : { host: address.host, port: address.port };
  const socket = net.connect(options);
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once("connect", resolve);
      socket.once("error", reject);
    });
  } catch (error) {
    const place = address.kind === "unix" ? address.path : `${address.host}:${address.port}`;
    throw fsError(error, `Failed to connect to '${place}'`);
  }
  socket.removeAllListeners("error");
  return socket.pause();
}

function startListening(server: net.Server, address: SocketAddress): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    const listen = () =>
      void server.listen(listenOptions(address), () => {
        server.off("error", reject);
        resolve();
      });
    if (address.kind === "unix") bindPrivately(listen);
    else listen();
  });
}

function listenOptions(address: SocketAddress): net.ListenOptions & { fd?: number } {
  if (address.kind === "unix") return { path: address.path };
  return address.kind === "inet" ? { host: address.host, port: address.port } : { fd: address.fd };
}

function describe(address: SocketAddress): string {
  if (address.kind === "unix") return `unix:${address.path}`;
  return address.kind === "inet" ? `tcp:${address.host}:${address.port}` : `fd:${address.fd}`;
}

import type net from "node:net";
import { BlockError } from "../src/base/errors.ts";
import type { HeldBuffer } from "./held-buffer.ts";
import type { ListenAddress } from "./listen.ts";
import { type ReceiveSink, receiveConnected } from "./receive.ts";
import { descriptorOf } from "./send.ts";

/** Who takes a client's bytes once the handshake is over. */
export interface ReplyConsumer {
  target(): Buffer | undefined;
  filled(bytes: number): void;
  consume(buffer: Buffer, at: number, end: number): void;
  /** The connection is over; called once. */
  lost(error: BlockError): void;
}

/** Silence on a TCP connection after which the system asks whether the peer is still there. */
const KEEP_ALIVE_MS = 30_000;

/** Bytes that the handshake may leave unread; a server that sends more unasked is no NBD server. */
const UNREAD_BYTES_MAX = 1024 * 1024;

/** A client's socket: read piece by piece during the handshake, then by a {@link ReplyConsumer}. */
export class ClientWire implements ReceiveSink {
  readonly where: string;
  readonly #socket: net.Socket;
  #unread: Buffer = Buffer.alloc(0);
  #wanted = 0;
  #wake: { resolve: (bytes: Buffer) => void; reject: (error: BlockError) => void } | undefined;
  #consumer: ReplyConsumer | undefined;
  #error: BlockError | undefined;
  #corked = false;
  readonly #onClosed: (() => void)[] = [];

  private constructor(address: ListenAddress) {
    this.where = "path" in address ? `unix socket ${address.path}` : `${address.host}:${address.port}`;
    const target = "path" in address ? { path: address.path } : { ...address, noDelay: true };
    this.#socket = receiveConnected(target, this);
    this.#socket.on("error", (error) =>
      this.#lost(`the connection to ${this.where} failed: ${error.message}`),
    );
    this.#socket.on("end", () => this.#lost(`the server at ${this.where} closed the connection`));
    this.#socket.on("close", () => this.#closed());
  }

  /** @throws BlockError EIO when nobody answers. */
  static async connect(address: ListenAddress): Promise<ClientWire> {
    const wire = new ClientWire(address);
    await new Promise<void>((resolve, reject) => {
      wire.#socket.once("connect", resolve);
      wire.#socket.once("error", (error: NodeJS.ErrnoException) => {
        reject(new BlockError("EIO", `cannot connect to ${wire.where}: ${error.message}`, error));
      });
    });
    return wire;
  }

  /** Exactly `bytes` bytes. @throws BlockError EIO when the connection ends before. */
  read(bytes: number): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      this.#wanted = bytes;
      this.#wake = { resolve, reject };
      this.#serve();
    });
  }

  /** From now on bytes go to `consumer`, those that came early first. */
  handOver(consumer: ReplyConsumer): void {
    this.#consumer = consumer;
    const early = this.#unread;
    this.#unread = Buffer.alloc(0);
    if (early.length > 0) consumer.consume(early, 0, early.length);
    if (this.#error !== undefined) consumer.lost(this.#error);
  }

  /** Sends; what one turn of the program sends leaves together. The bytes are borrowed until a reply came. */
  send(...pieces: Buffer[]): void {
    if (!this.#corked) {
      this.#corked = true;
      this.#socket.cork();
      queueMicrotask(() => {
        this.#corked = false;
        this.#socket.uncork();
      });
    }
    for (const piece of pieces) this.#socket.write(piece);
  }

  /**
   * Stops reading and gives the socket's descriptor, for somebody else to go on with: the kernel. It stays
   * open until `destroy`, which ends our hold on it and not the connection. @throws BlockError when that
   * cannot be
   */
  descriptor(): number {
    this.#socket.setKeepAlive(true, KEEP_ALIVE_MS);
    this.#socket.pause();
    const fd = descriptorOf(this.#socket);
    if (this.#error !== undefined) throw this.#error;
    if (fd < 0) throw new BlockError("ENOTSUP", "this Node does not tell the descriptor of a socket");
    if (this.#unread.length > 0) {
      throw new BlockError("EIO", `the server at ${this.where} sent more than the handshake`);
    }
    return fd;
  }

  /** Says that no more will be sent. Done when the socket is closed. */
  end(): Promise<void> {
    this.#socket.end();
    return new Promise((resolve) => {
      if (this.#socket.closed) resolve();
      else this.#onClosed.push(resolve);
    });
  }

  destroy(): void {
    this.#socket.destroy();
  }

  target(): Buffer | undefined {
    return this.#consumer?.target();
  }

  filled(bytes: number): void {
    this.#consumer!.filled(bytes);
  }

  received(block: HeldBuffer, bytes: number): void {
    if (this.#consumer !== undefined) {
      this.#consumer.consume(block.buffer, 0, bytes);
      return;
    }
    this.#unread = Buffer.concat([this.#unread, block.buffer.subarray(0, bytes)]);
    if (this.#unread.length > UNREAD_BYTES_MAX) this.destroy();
    this.#serve();
  }

  #serve(): void {
    const wake = this.#wake;
    if (wake === undefined) return;
    if (this.#unread.length >= this.#wanted) {
      this.#wake = undefined;
      const bytes = this.#unread.subarray(0, this.#wanted);
      this.#unread = this.#unread.subarray(this.#wanted);
      wake.resolve(bytes);
    } else if (this.#error !== undefined) {
      this.#wake = undefined;
      wake.reject(this.#error);
    }
  }

  #lost(message: string): void {
    if (this.#error !== undefined) return;
    this.#error = new BlockError("EIO", message);
    this.#consumer?.lost(this.#error);
    this.#serve();
  }

  #closed(): void {
    this.#lost(`the connection to ${this.where} is closed`);
    for (const resolve of this.#onClosed) resolve();
  }
}

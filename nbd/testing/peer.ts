// For tests: a peer that sends exactly the bytes it is told to, and the fields that NBD messages are built
// of. The fields are written here a second time on purpose: a mistake in protocol.ts must not hide itself.

import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HandshakeFlags } from "../protocol.ts";
import { NbdServer, type NbdServerOptions } from "../server.ts";

export function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

export function u64(value: number | bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}

/** A string with its 32-bit length. */
export function str(text: string | Buffer): Buffer {
  const bytes = Buffer.from(text as string);
  return Buffer.concat([u32(bytes.length), bytes]);
}

export function concat(...parts: Buffer[]): Buffer {
  return Buffer.concat(parts);
}

export const OPTS = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED: 8,
  LIST_META: 9,
  SET_META: 10,
  EXTENDED: 11,
};

export function option(code: number, ...data: Buffer[]): Buffer {
  const body = Buffer.concat(data);
  return Buffer.concat([Buffer.from("IHAVEOPT"), u32(code), u32(body.length), body]);
}

export function optionReply(code: number, type: number, ...data: Buffer[]): Buffer {
  const body = Buffer.concat(data);
  return Buffer.concat([u64(0x3e889045565a9n), u32(code), u32(type), u32(body.length), body]);
}

export const ACK = 1;
/** Error n of the option replies. */
export function repError(n: number): number {
  return 2 ** 31 + n;
}

export interface RequestFields {
  flags?: number;
  type: number;
  cookie?: bigint | number;
  offset?: number | bigint;
  length?: number | bigint;
  payload?: Buffer;
}

export function compact(fields: RequestFields): Buffer {
  const { flags = 0, type, cookie = 1, offset = 0, length = 0, payload } = fields;
  const head = [u32(0x25609513), u16(flags), u16(type), u64(cookie), u64(offset), u32(Number(length))];
  return Buffer.concat(payload === undefined ? head : [...head, payload]);
}

export function extended(fields: RequestFields): Buffer {
  const { flags = 0, type, cookie = 1, offset = 0, length = 0, payload } = fields;
  const head = [u32(0x21e41c71), u16(flags), u16(type), u64(cookie), u64(offset), u64(length)];
  return Buffer.concat(payload === undefined ? head : [...head, payload]);
}

export function simpleReply(cookie: bigint | number, error = 0, data: Buffer = Buffer.alloc(0)): Buffer {
  return Buffer.concat([u32(0x67446698), u32(error), u64(cookie), data]);
}

export interface ChunkFields {
  done?: boolean;
  type: number;
  cookie?: bigint | number;
  offset?: number | bigint;
  payload?: Buffer;
}

export function structuredChunk(fields: ChunkFields): Buffer {
  const { done = true, type, cookie = 1, payload = Buffer.alloc(0) } = fields;
  return Buffer.concat([
    u32(0x668e33ef),
    u16(done ? 1 : 0),
    u16(type),
    u64(cookie),
    u32(payload.length),
    payload,
  ]);
}

export function extendedChunk(fields: ChunkFields): Buffer {
  const { done = true, type, cookie = 1, offset = 0, payload = Buffer.alloc(0) } = fields;
  const flags = u16(done ? 1 : 0);
  return Buffer.concat([
    u32(0x6e8a278c),
    flags,
    u16(type),
    u64(cookie),
    u64(offset),
    u64(payload.length),
    payload,
  ]);
}

/** One end of a socket, raw. */
export class Peer {
  readonly socket: net.Socket;
  #chunks: Buffer[] = [];
  #length = 0;
  #ended = false;
  #wake: () => void = () => {};

  constructor(socket: net.Socket) {
    this.socket = socket;
    socket.on("data", (chunk: Buffer) => {
      this.#chunks.push(chunk);
      this.#length += chunk.length;
      this.#wake();
    });
    const over = () => {
      this.#ended = true;
      this.#wake();
    };
    socket.on("end", over).on("error", over).on("close", over);
  }

  static async connect(path: string): Promise<Peer> {
    const socket = net.connect({ path });
    const peer = new Peer(socket);
    await new Promise((resolve, reject) => socket.once("connect", resolve).once("error", reject));
    return peer;
  }

  send(...parts: Buffer[]): this {
    this.socket.write(Buffer.concat(parts));
    return this;
  }

  /** The next `bytes` bytes. */
  async read(bytes: number): Promise<Buffer> {
    while (this.#length < bytes) {
      if (this.#ended) throw new Error(`the server closed; ${this.#length} of ${bytes} bytes came`);
      await this.#change();
    }
    const all = this.#all();
    this.#chunks = [all.subarray(bytes)];
    this.#length -= bytes;
    return all.subarray(0, bytes);
  }

  /** Everything up to the server's close. */
  async rest(): Promise<Buffer> {
    while (!this.#ended) await this.#change();
    return this.#all();
  }

  destroy(): void {
    this.socket.destroy();
  }

  #all(): Buffer {
    return this.#chunks.length === 1 ? this.#chunks[0]! : Buffer.concat(this.#chunks);
  }

  #change(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }
}

const cleanups: (() => void | Promise<void>)[] = [];

/** Call after each test. */
export async function cleanUp(): Promise<void> {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
}

export function onCleanUp(cleanup: () => void | Promise<void>): void {
  cleanups.push(cleanup);
}

/** A server on a fresh unix socket, closed by {@link cleanUp}. */
export async function startServer(
  options: NbdServerOptions = {},
): Promise<{ server: NbdServer; path: string }> {
  const directory = mkdtempSync(join(tmpdir(), "nbd-test-"));
  const path = join(directory, "socket");
  const server = new NbdServer({ handshakeMs: 0, ...options });
  await server.listen({ path });
  onCleanUp(async () => {
    await server.close(0);
    rmSync(directory, { recursive: true, force: true });
  });
  return { server, path };
}

export const GREETING_BYTES = 18;

/** Connects, checks the greeting, answers with the flags. */
export async function greeted(
  path: string,
  flags: number = HandshakeFlags.FIXED_NEWSTYLE | HandshakeFlags.NO_ZEROES,
): Promise<Peer> {
  const peer = await Peer.connect(path);
  onCleanUp(() => peer.destroy());
  await peer.read(GREETING_BYTES);
  return peer.send(u32(flags));
}

/** Connects and enters an export; style 0 simple, 1 structured, 2 extended; contexts get ids 0, 1, ... */
export async function entered(path: string, style: 0 | 1 | 2 = 0, contexts: string[] = []): Promise<Peer> {
  const peer = await greeted(path);
  if (style > 0) {
    const code = style === 2 ? OPTS.EXTENDED : OPTS.STRUCTURED;
    peer.send(option(code));
    await peer.read(20);
  }
  if (contexts.length > 0) {
    peer.send(option(OPTS.SET_META, str(""), u32(contexts.length), ...contexts.map(str)));
    for (const context of contexts) await peer.read(20 + 4 + context.length);
    await peer.read(20);
  }
  peer.send(option(OPTS.GO, str(""), u16(0)));
  await peer.read(20 + 12 + 20);
  return peer;
}

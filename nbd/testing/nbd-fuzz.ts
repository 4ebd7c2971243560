// One hostile client after the other against a connection of the server, in this process and without sockets.
//
//   1. Each conversation follows from its seed alone: what is sent, in which pieces, how the client reads,
//      when it goes, and when the backend finishes.
//   2. Judged: every byte of the answers (`judged-conversation.ts`); that the backend sees only what it may;
//      that the connection ends, gives all buffers back and keeps no request; that unsent bytes stay bounded.

import { ManualClock } from "../../src/base/clock.ts";
import { silentLogger } from "../../src/base/logger.ts";
import { Prng } from "../../src/base/prng.ts";
import type { StatusSink } from "../backend.ts";
import { BusyPoll } from "../busy-poll.ts";
import { Connection, type ConnectionHost } from "../connection.ts";
import type { NbdExport } from "../export.ts";
import { FailureLog } from "../failure-log.ts";
import { heldBufferCount } from "../held-buffer.ts";
import { IN_FLIGHT_BYTES_MAX, UNSENT_BYTES_MAX } from "../session.ts";
import { hostileParts } from "./hostile-client.ts";
import { judge } from "./judged-conversation.ts";
import { MemoryBackend } from "./memory-backend.ts";
import { MemorySocket } from "./memory-socket.ts";

const SIZE = 1 << 20;
/** Turns of the loop within which an ended connection must be gone. */
const TURNS_MAX = 5000;

/** Refuses loudly what a session must never let through. */
class GuardedBackend extends MemoryBackend {
  readonly complaints: string[] = [];
  readonly #size: number;

  constructor(size: number) {
    // The disk is large, its memory is not: what is read beyond it is whatever the buffer held.
    super({ size: Math.min(size, SIZE) });
    this.#size = size;
  }

  override get size(): number {
    return this.#size ?? SIZE;
  }

  override read(offset: number, bytes: number, buffer: Buffer, at: number) {
    this.#check("read", offset, bytes);
    if (at + bytes > buffer.length) this.complaints.push(`read past the buffer: ${at}+${bytes}`);
    return super.read(offset % SIZE, Math.min(bytes, SIZE - (offset % SIZE)), buffer, at);
  }

  override write(offset: number, bytes: number, buffer: Buffer, at: number, fua: boolean) {
    this.#check("write", offset, bytes);
    if (at + bytes > buffer.length) this.complaints.push(`write past the buffer: ${at}+${bytes}`);
    return super.write(offset % SIZE, Math.min(bytes, SIZE - (offset % SIZE)), buffer, at, fua);
  }

  override trim(offset: number, bytes: number, fua: boolean) {
    this.#check("trim", offset, bytes);
    return super.trim(offset % SIZE, Math.min(bytes, SIZE - (offset % SIZE)), fua);
  }

  override writeZeroes(
    offset: number,
    bytes: number,
    options: { fua: boolean; mayUnmap: boolean; fastOnly: boolean },
  ) {
    this.#check("writeZeroes", offset, bytes);
    return super.writeZeroes(offset % SIZE, Math.min(bytes, SIZE - (offset % SIZE)), options);
  }

  override status(context: string, offset: number, bytes: number, sink: StatusSink) {
    this.#check("status", offset, bytes);
    return super.status(context, offset % SIZE, Math.min(bytes, SIZE - (offset % SIZE)), sink);
  }

  #check(what: string, offset: number, bytes: number): void {
    if (offset >= 0 && bytes > 0 && offset + bytes <= this.#size) return;
    this.complaints.push(`${what} of ${bytes} at ${offset} of ${this.#size}`);
  }
}

export class NbdFuzz {
  /** Conversations in which the client was let in. */
  entered = 0;
  requests = 0;
  readonly #exports: NbdExport[];
  readonly #backends: GuardedBackend[];
  #gone = false;
  #clock = new ManualClock();

  constructor() {
    this.#backends = [new GuardedBackend(SIZE), new GuardedBackend(2 ** 40)];
    this.#exports = ["", "wide"].map((name, index) => ({ name, backend: this.#backends[index]! }));
  }

  /** One conversation. @throws Error that says what the server did wrong */
  async run(seed: number): Promise<void> {
    const prng = new Prng(seed);
    const buffersBefore = heldBufferCount();
    this.#gone = false;
    this.#clock = new ManualClock();
    const pace = prng.below(3);
    for (const backend of this.#backends) {
      backend.pace = (operation) => {
        if (pace === 0 || (pace === 2 && prng.chance(0.5))) return operation();
        return prng.chance(0.5)
          ? Promise.resolve().then(operation)
          : new Promise<void>((resolve) => setImmediate(resolve)).then(operation);
      };
    }
    const socket = new MemorySocket();
    socket.on("error", () => {});
    const connection = new Connection(socket as never, this.#host());
    const sent = Buffer.concat(hostileParts(prng));
    const whole = await this.#converse(socket, sent, prng);
    await this.#untilGone(socket, connection);
    const wrong = judge({ sent, got: Buffer.concat(socket.received), whole: whole && socket.ended });
    if (wrong !== undefined) throw new Error(wrong);
    this.#checkLeftovers(socket, buffersBefore);
  }

  /** Sends and reads as the seed wants it. Whether the client did all that a well-behaved one does. */
  async #converse(socket: MemorySocket, sent: Buffer, prng: Prng): Promise<boolean> {
    const reads = prng.chance(0.8);
    if (!reads) socket.setReads(false);
    const end = prng.chance(0.8) ? sent.length : prng.below(sent.length + 1);
    for (let at = 0; at < end; ) {
      const next = prng.chance(0.5) ? end : Math.min(end, at + prng.between(1, 2000));
      socket.feed(sent.subarray(at, next));
      at = next;
      if (prng.chance(0.5)) await turn();
    }
    const leaves = prng.below(10);
    if (leaves === 0) {
      socket.destroy();
      return false;
    }
    if (leaves <= 2) {
      for (let turns = 0; turns < 3; turns++) await turn();
      socket.setReads(true);
      // Says nothing more: the time limits end it.
      this.#clock.advance(11_000);
      await turn();
      this.#clock.advance(11_000);
      socket.destroy();
      return false;
    }
    socket.finish();
    for (let turns = 0; turns < 3; turns++) await turn();
    socket.setReads(true);
    return end === sent.length;
  }

  async #untilGone(socket: MemorySocket, connection: Connection): Promise<void> {
    for (let turns = 0; !this.#gone || this.#underWay > 0; turns++) {
      if (turns === 200) this.#clock.advance(6000);
      if (turns > TURNS_MAX) {
        connection.destroy();
        throw new Error(`the connection does not end (socket closed: ${socket.destroyed})`);
      }
      await turn();
    }
  }

  get #underWay(): number {
    return this.#backends.reduce((sum, backend) => sum + backend.underWay, 0);
  }

  #checkLeftovers(socket: MemorySocket, buffersBefore: number): void {
    const complaint = this.#backends.flatMap((backend) => backend.complaints.splice(0))[0];
    if (complaint !== undefined)
      throw new Error(`the backend was asked for what it must not be: ${complaint}`);
    const held = heldBufferCount() - buffersBefore;
    if (held !== 0) throw new Error(`${held} buffers are not given back`);
    const most = UNSENT_BYTES_MAX + IN_FLIGHT_BYTES_MAX * 2;
    if (socket.writableLength > most) throw new Error(`${socket.writableLength} bytes wait for the client`);
  }

  #host(): ConnectionHost {
    const clock = this.#clock;
    return {
      clock,
      busyPoll: new BusyPoll(clock, () => {}, 1),
      failures: new FailureLog(silentLogger, clock),
      handshakeMs: 10_000,
      closing: false,
      find: (name) => this.#exports.find((offered) => offered.name === name),
      list: () => this.#exports,
      entered: () => {
        this.entered++;
      },
      left: () => {},
      gone: () => {
        if (this.#gone) throw new Error("told twice that the connection is gone");
        this.#gone = true;
      },
      note: () => {},
      watchLocalClient: () => undefined,
    };
  }
}

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

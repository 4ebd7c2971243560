// Replies on their way to one socket.
//
//   arena block (256 KiB):  | sent ... | queued segment | gap of a pending read | committed | free ...
//                                                                             start       end
//
// Small replies are built side by side in an arena block, so a batch of them is one piece of memory and one
// write; a backend fills the place behind a reply's header itself. A read that is still pending keeps its
// place as a gap (`detach`) and joins the queue when it ends. Large data is queued as a buffer of its own
// (`append`). Data that a backend lends stands in the kernel; it ends the batch that it is in (`appendLent`).
//   1. At most one batch is with the socket; what becomes ready meanwhile leaves together as the next batch.
//   2. Each queued segment holds its block once, and so does each detached place; the arena holds its block
//      once.
//   3. An idle connection owns no block: all connections share the pool's warm ones.
//   4. After `dispose` nothing is written and every hold of rule 2 but the detached ones is gone.

import { KiB } from "../src/base/units.ts";
import type { LentData } from "./backend.ts";
import { HeldBuffer } from "./held-buffer.ts";

/** Holds 32 replies of 4 KiB with room to spare; a unix socket takes about 200 KiB at once. */
const ARENA_BYTES = 256 * KiB;

/**
 * Writes the pieces, `bytes` in all, with one system call if it can, and the lent data behind them. True: the
 * system has them. False: it calls back once, later, when the socket has taken or dropped them.
 */
export type BatchWriter = (
  pieces: readonly Buffer[],
  bytes: number,
  written: () => void,
  lent: LentData | undefined,
) => boolean;

/**
 * Told of each batch that is with the system, in order: its bytes, and lent data in it, now the listener's.
 */
export type SentListener = (bytes: number, lent: LentData | undefined) => void;

/** Lent data, behind so many pieces of the queue. */
interface QueuedLoan {
  behind: number;
  readonly lent: LentData;
  readonly bytes: number;
}

export class Outgoing {
  readonly #write: BatchWriter;
  readonly #onWritten: () => void;
  readonly #onSent: SentListener;
  readonly #written = () => this.#batchWritten();
  #arena: HeldBuffer | undefined;
  #start = 0;
  #end = 0;
  #queue: HeldBuffer[] = [];
  #views: Buffer[] = [];
  #sending: HeldBuffer[] = [];
  #sendingBytes = 0;
  #queuedBytes = 0;
  readonly #loans: QueuedLoan[] = [];
  #sendingLent: LentData | undefined;
  #busy = false;
  #disposed = false;

  /** `onWritten` is called after each batch: room for more. */
  constructor(write: BatchWriter, onWritten: () => void, onSent: SentListener = () => {}) {
    this.#write = write;
    this.#onSent = onSent;
    this.#onWritten = onWritten;
  }

  /** Bytes that the socket has not taken yet. */
  get unsentBytes(): number {
    return this.#sendingBytes + this.#queuedBytes + (this.#end - this.#start);
  }

  get idle(): boolean {
    return !this.#busy && this.#queuedBytes === 0 && this.#end === this.#start;
  }

  /** Offset of the place that the last {@link reserve} gave. */
  get at(): number {
    return this.#end;
  }

  /** A block with `bytes` free bytes at {@link at}. Nothing is taken until `commit` or `detach`. */
  reserve(bytes: number): HeldBuffer {
    if (this.#arena !== undefined && this.#arena.buffer.length - this.#end >= bytes) return this.#arena;
    this.#dropArena();
    // What is full leaves early, and before there is a new block: a socket that takes all of it at once makes
    // this an idle connection, which owns no block (3).
    this.flush();
    this.#dropArena();
    this.#arena = HeldBuffer.take(Math.max(bytes, ARENA_BYTES));
    return this.#arena;
  }

  /** The reserved place holds a reply of `bytes` bytes. */
  commit(bytes: number): void {
    this.#end += bytes;
  }

  /**
   * The reserved place is left to a pending request, which now holds the block and queues it with
   * {@link append}.
   */
  detach(bytes: number): HeldBuffer {
    this.#closeSegment();
    this.#start = this.#end += bytes;
    return this.#arena!.hold();
  }

  /** Queues bytes behind everything committed so far; the caller's hold of the block passes to the queue. */
  append(block: HeldBuffer, at: number, bytes: number): void {
    if (this.#disposed) {
      block.release();
      return;
    }
    this.#closeSegment();
    this.#push(block, at, at + bytes);
  }

  /** Queues lent data behind everything committed so far. */
  appendLent(lent: LentData): void {
    if (this.#disposed) {
      lent.release();
      return;
    }
    this.#closeSegment();
    const { bytes } = lent;
    this.#loans.push({ behind: this.#queue.length, lent, bytes });
    this.#queuedBytes += bytes;
  }

  /** Copies a message that was built elsewhere. */
  copy(bytes: Buffer): void {
    const block = this.reserve(bytes.length);
    bytes.copy(block.buffer, this.#end);
    this.commit(bytes.length);
  }

  /** Hands everything that is ready to the socket, unless a batch is with it already. */
  flush(): void {
    if (this.#busy || this.#disposed) return;
    this.#closeSegment();
    if (this.#loans.length > 0) {
      this.#flushLoan(this.#loans.shift()!);
      return;
    }
    if (this.#queue.length === 0) return;
    const pieces = this.#views;
    const free = this.#sending;
    this.#sending = this.#queue;
    this.#queue = free;
    this.#views = [];
    this.#sendingBytes = this.#queuedBytes;
    this.#queuedBytes = 0;
    this.#send(pieces, this.#sendingBytes);
  }

  /** The batch up to the first lent data. */
  #flushLoan({ behind, lent, bytes }: QueuedLoan): void {
    const pieces = this.#views.splice(0, behind);
    this.#sending.push(...this.#queue.splice(0, behind));
    for (const later of this.#loans) later.behind -= behind;
    let pieceBytes = 0;
    for (const piece of pieces) pieceBytes += piece.length;
    this.#sendingBytes = pieceBytes + bytes;
    this.#queuedBytes -= this.#sendingBytes;
    this.#sendingLent = lent;
    this.#send(pieces, pieceBytes);
  }

  #send(pieces: readonly Buffer[], bytes: number): void {
    this.#busy = true;
    if (this.#write(pieces, bytes, this.#written, this.#sendingLent)) this.#batchWritten();
  }

  /** The socket is closed: whatever is not sent never will be. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#end = this.#start;
    this.#dropArena();
    releaseAll(this.#queue);
    releaseAll(this.#sending);
    for (const { lent } of this.#loans) lent.release();
    this.#loans.length = 0;
    this.#sendingLent?.release();
    this.#sendingLent = undefined;
    this.#views = [];
    this.#queuedBytes = this.#sendingBytes = 0;
    this.#busy = false;
  }

  #batchWritten(): void {
    if (this.#disposed) return;
    releaseAll(this.#sending);
    const bytes = this.#sendingBytes;
    const lent = this.#sendingLent;
    this.#sendingBytes = 0;
    this.#sendingLent = undefined;
    this.#busy = false;
    if (this.#start === this.#end && this.#arena !== undefined && !this.#arena.shared) this.#dropArena();
    this.#onSent(bytes, lent);
    this.flush();
    this.#onWritten();
  }

  #closeSegment(): void {
    if (this.#end === this.#start) return;
    this.#push(this.#arena!.hold(), this.#start, this.#end);
    this.#start = this.#end;
  }

  #push(block: HeldBuffer, start: number, end: number): void {
    this.#queue.push(block);
    this.#views.push(block.buffer.subarray(start, end));
    this.#queuedBytes += end - start;
  }

  #dropArena(): void {
    if (this.#arena === undefined) return;
    this.#closeSegment();
    this.#arena.release();
    this.#arena = undefined;
    this.#start = this.#end = 0;
  }
}

function releaseAll(blocks: HeldBuffer[]): void {
  for (const block of blocks) block.release();
  blocks.length = 0;
}

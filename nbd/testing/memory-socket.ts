import { Duplex } from "node:stream";

/**
 * A socket without a system behind it, for conversations by the million: what is fed arrives, what the server
 * writes is kept. Its peer can stop reading.
 */
export class MemorySocket extends Duplex {
  /** What the server has written, in order. */
  readonly received: Buffer[] = [];
  receivedBytes = 0;
  /** The server has ended its side. */
  ended = false;
  #stalled: (() => void) | undefined;
  #reads = true;

  constructor() {
    super({ allowHalfOpen: true });
  }

  setNoDelay(): this {
    return this;
  }

  override _read(): void {}

  override _write(bytes: Buffer, _encoding: string, done: () => void): void {
    this.received.push(Buffer.from(bytes));
    this.receivedBytes += bytes.length;
    if (this.#reads) done();
    else this.#stalled = done;
  }

  override _final(done: () => void): void {
    this.ended = true;
    done();
  }

  /** The peer sends. */
  feed(bytes: Buffer): void {
    if (!this.destroyed && !this.readableEnded) this.push(Buffer.from(bytes));
  }

  /** The peer ends its side. */
  finish(): void {
    if (!this.destroyed) this.push(null);
  }

  /** The peer takes nothing from now on, or goes on with it. */
  setReads(reads: boolean): void {
    this.#reads = reads;
    if (!reads) return;
    const stalled = this.#stalled;
    this.#stalled = undefined;
    stalled?.();
  }
}

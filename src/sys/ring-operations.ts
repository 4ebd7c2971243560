// Reads and writes that the event loop shall not wait for, all in one ring of the kernel (io_uring): no
// thread of ours waits for them.
//
//   operation --> place in the ring --microtask: all of this turn in one call--> kernel --> taken
//             \--> queue, while all places are taken; in order of arrival
//
//   1. Every operation settles once, with what the kernel said or with NOT_TAKEN.
//   2. A place holds its operation, and so the buffer, until the kernel has said that it is done.
//   3. What is done is taken when the kernel wakes the loop, and after each call that submits.
//   4. A call that fails loses nothing: what the kernel has not taken is taken back, and its operations
//      settle with NOT_TAKEN.
//   5. `ready` only when the kernel has woken the loop once. While nothing is under way the ring does not
//      keep the process alive.
//   6. When wakes can no longer come, those under way are waited for at once.

import { assert } from "../base/assert.ts";
import { errnoText } from "./host-error.ts";
import type { Ring } from "./ring-calls.ts";

/** The operation never got to the kernel: it can be done in another way. Not a result of any call. */
export const NOT_TAKEN = Number.NEGATIVE_INFINITY;

interface RingOperation {
  readonly writes: boolean;
  readonly fd: number;
  readonly offset: number;
  readonly bytes: number;
  readonly buffer: Buffer;
  readonly at: number;
  readonly settle: (result: number) => void;
}

const State = { UNPROVED: 0, READY: 1, LOST: 2 } as const;
type State = (typeof State)[keyof typeof State];

export class RingOperations {
  readonly #ring: Ring;
  /** By tag. */
  readonly #places: (RingOperation | undefined)[];
  readonly #free: number[] = [];
  /** The tag of the entry that proves the way. */
  readonly #proof: number;
  #queue: RingOperation[] = [];
  #state: State = State.UNPROVED;
  #inFlight = 0;
  #submitting = false;

  /** Takes the ring over. @throws Error when the kernel takes no entry */
  constructor(ring: Ring) {
    this.#ring = ring;
    this.#places = new Array(ring.places).fill(undefined);
    // The last one is given first: a few at a time use few of the places.
    for (let tag = ring.places - 1; tag >= 0; tag--) this.#free.push(tag);
    this.#proof = ring.places;
    ring.prepareNothing(this.#proof);
    const taken = ring.submit();
    if (taken === 1) return;
    ring.close();
    throw new Error(`io_uring_enter: ${taken === 0 ? "nothing was taken" : errnoText(-taken)}`);
  }

  /** Whether operations may come. */
  get ready(): boolean {
    return this.#state === State.READY;
  }

  /** Operations that have a place in the ring. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /**
   * Reads as pread does: bytes (0 at the end of the file), -errno, or NOT_TAKEN. `fd` stays open and the
   * buffer is the kernel's until then.
   */
  read(fd: number, offset: number, bytes: number, buffer: Buffer, at: number): Promise<number> {
    return this.#begin(false, fd, offset, bytes, buffer, at);
  }

  /** Writes as pwrite does; the rest as `read`. Writes of one regular file are done one after the other. */
  write(fd: number, offset: number, bytes: number, buffer: Buffer, at: number): Promise<number> {
    return this.#begin(true, fd, offset, bytes, buffer, at);
  }

  /** The kernel has woken the loop. */
  woken(): void {
    this.#ring.take(this.#proved);
    this.#goOn();
  }

  /** It will not do so any more. */
  lost(): void {
    this.#state = State.LOST;
    for (const operation of this.#queue.splice(0)) operation.settle(NOT_TAKEN);
    this.#withdraw();
    while (this.#inFlight > 0) {
      this.#ring.wait();
      this.#ring.take(this.#done);
    }
  }

  #begin(
    writes: boolean,
    fd: number,
    offset: number,
    bytes: number,
    buffer: Buffer,
    at: number,
  ): Promise<number> {
    return new Promise((settle) => {
      const operation = { writes, fd, offset, bytes, buffer, at, settle };
      if (this.#state !== State.READY) settle(NOT_TAKEN);
      else if (this.#free.length === 0) this.#queue.push(operation);
      else this.#place(operation);
    });
  }

  #place(operation: RingOperation): void {
    const tag = this.#free.at(-1)!;
    const { fd, offset, bytes, buffer, at } = operation;
    if (operation.writes) this.#ring.prepareWrite(tag, fd, offset, bytes, buffer, at);
    else this.#ring.prepareRead(tag, fd, offset, bytes, buffer, at);
    this.#free.pop();
    this.#places[tag] = operation;
    if (this.#inFlight++ === 0) this.#ring.hold();
    if (this.#submitting) return;
    this.#submitting = true;
    queueMicrotask(this.#submit);
  }

  readonly #submit = (): void => {
    this.#submitting = false;
    while (this.#ring.prepared > 0) {
      if (this.#ring.submit() <= 0) this.#withdraw();
    }
    this.#ring.take(this.#done);
    this.#goOn();
  };

  #withdraw(): void {
    this.#ring.withdraw((tag) => this.#done(tag, NOT_TAKEN));
    this.#goOn();
  }

  readonly #proved = (tag: number, result: number): void => {
    if (tag !== this.#proof) this.#done(tag, result);
    else if (this.#state === State.UNPROVED) this.#state = State.READY;
  };

  readonly #done = (tag: number, result: number): void => {
    if (tag === this.#proof) return;
    const operation = this.#places[tag];
    assert(operation !== undefined, "a completion of nothing");
    this.#places[tag] = undefined;
    this.#free.push(tag);
    if (--this.#inFlight === 0) this.#ring.release();
    operation.settle(result);
  };

  /** Free places for those that have waited longest. */
  #goOn(): void {
    if (this.#queue.length === 0) return;
    const next = this.#queue.splice(0, this.#free.length);
    for (const operation of next) this.#place(operation);
  }
}

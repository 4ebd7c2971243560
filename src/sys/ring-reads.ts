// Reads that wait for the host's disk, all in one ring of the kernel (io_uring): no thread waits for them.
//
//   read --> place in the ring --microtask: all of this turn in one call--> kernel --> taken
//        \--> queue, while all places are taken; in order of arrival
//
//   1. Every read settles once, with what the kernel said or with NOT_TAKEN.
//   2. A place holds its read, and so the buffer, until the kernel has said that it is done.
//   3. What is done is taken when the kernel wakes the loop, and after each call that submits.
//   4. A call that fails loses nothing: what the kernel has not taken is taken back, and its reads settle
//      with NOT_TAKEN.
//   5. `ready` only when the kernel has woken the loop once. While nothing is under way the ring does not
//      keep the process alive.
//   6. When wakes can no longer come, the reads under way are waited for at once.

import { assert } from "../base/assert.ts";
import { errnoText } from "./host-error.ts";
import type { Ring } from "./ring-calls.ts";

/** The read never got to the kernel: it can be done in another way. Not a result of any call. */
export const NOT_TAKEN = Number.NEGATIVE_INFINITY;

interface RingRead {
  readonly fd: number;
  readonly offset: number;
  readonly bytes: number;
  readonly buffer: Buffer;
  readonly at: number;
  readonly settle: (result: number) => void;
}

const State = { UNPROVED: 0, READY: 1, LOST: 2 } as const;
type State = (typeof State)[keyof typeof State];

export class RingReads {
  readonly #ring: Ring;
  /** By tag. */
  readonly #places: (RingRead | undefined)[];
  readonly #free: number[] = [];
  /** The tag of the entry that proves the way. */
  readonly #proof: number;
  #queue: RingRead[] = [];
  #state: State = State.UNPROVED;
  #inFlight = 0;
  #submitting = false;

  /** Takes the ring over. @throws Error when the kernel takes no entry */
  constructor(ring: Ring) {
    this.#ring = ring;
    this.#places = new Array(ring.places).fill(undefined);
    // The last one is given first: a few reads at a time use few of the places.
    for (let tag = ring.places - 1; tag >= 0; tag--) this.#free.push(tag);
    this.#proof = ring.places;
    ring.prepareNothing(this.#proof);
    const taken = ring.submit();
    if (taken === 1) return;
    ring.close();
    throw new Error(`io_uring_enter: ${taken === 0 ? "nothing was taken" : errnoText(-taken)}`);
  }

  /** Whether reads may come. */
  get ready(): boolean {
    return this.#state === State.READY;
  }

  /** Reads that have a place in the ring. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /**
   * Reads as pread does: bytes (0 at the end of the file), -errno, or NOT_TAKEN. `fd` stays open and the
   * buffer is the kernel's until then.
   */
  read(fd: number, offset: number, bytes: number, buffer: Buffer, at: number): Promise<number> {
    return new Promise((settle) => {
      const read = { fd, offset, bytes, buffer, at, settle };
      if (this.#state !== State.READY) settle(NOT_TAKEN);
      else if (this.#free.length === 0) this.#queue.push(read);
      else this.#place(read);
    });
  }

  /** The kernel has woken the loop. */
  woken(): void {
    this.#ring.take(this.#proved);
    this.#goOn();
  }

  /** It will not do so any more. */
  lost(): void {
    this.#state = State.LOST;
    for (const read of this.#queue.splice(0)) read.settle(NOT_TAKEN);
    this.#withdraw();
    while (this.#inFlight > 0) {
      this.#ring.wait();
      this.#ring.take(this.#done);
    }
  }

  #place(read: RingRead): void {
    const tag = this.#free.at(-1)!;
    this.#ring.prepareRead(tag, read.fd, read.offset, read.bytes, read.buffer, read.at);
    this.#free.pop();
    this.#places[tag] = read;
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
    const read = this.#places[tag];
    assert(read !== undefined, "a completion of nothing");
    this.#places[tag] = undefined;
    this.#free.push(tag);
    if (--this.#inFlight === 0) this.#ring.release();
    read.settle(result);
  };

  /** Free places for those that have waited longest. */
  #goOn(): void {
    if (this.#queue.length === 0) return;
    const next = this.#queue.splice(0, this.#free.length);
    for (const read of next) this.#place(read);
  }
}

import { assert } from "../src/base/assert.ts";
import { buffers } from "../src/base/buffer-pool.ts";

/**
 * A pooled buffer that several parties borrow at once: pieces of a reply on their way to the socket, requests
 * whose backend still reads or fills it. It goes back to the pool when the last one lets go, exactly once.
 */
export class HeldBuffer {
  readonly buffer: Buffer;
  readonly #pooled: boolean;
  #holders = 1;

  private constructor(buffer: Buffer, pooled: boolean) {
    this.buffer = buffer;
    this.#pooled = pooled;
  }

  /** From the pool, at least `bytes` long, held once by the caller. */
  static take(bytes: number): HeldBuffer {
    outstanding++;
    return new HeldBuffer(buffers.take(bytes), true);
  }

  /** Around bytes that somebody else allocated and the garbage collector frees. */
  static around(buffer: Buffer): HeldBuffer {
    return new HeldBuffer(buffer, false);
  }

  /** Whether somebody beside the one asking holds it. */
  get shared(): boolean {
    return this.#holders > 1;
  }

  hold(): this {
    assert(this.#holders > 0, "a released buffer was held again");
    this.#holders++;
    return this;
  }

  release(): void {
    assert(this.#holders > 0, "a buffer was released twice");
    if (--this.#holders > 0 || !this.#pooled) return;
    outstanding--;
    buffers.give(this.buffer);
  }
}

let outstanding = 0;

/** How many pooled buffers are held now; zero when every connection is gone and every request has ended. */
export function heldBufferCount(): number {
  return outstanding;
}

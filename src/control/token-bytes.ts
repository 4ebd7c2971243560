// What has come of one token so far, outside the heap.
//
//   1. The memory grows in place and is given back when the token is: nothing waits for a collection.
//   2. A token that lay in one piece never comes here.

import { KiB } from "../base/units.ts";

const STEP_BYTES = 64 * KiB;

export class TokenBytes {
  readonly #max: number;
  /** Made when first needed: only its addresses are reserved, for `#max` bytes. */
  #memory: ArrayBuffer | undefined;
  #length = 0;

  /** @param max Bytes that may come of one token. */
  constructor(max: number) {
    this.#max = max;
  }

  get length(): number {
    return this.#length;
  }

  /** @throws RangeError beyond the bytes that may come */
  add(bytes: Buffer): void {
    this.#memory ??= new ArrayBuffer(0, { maxByteLength: this.#max });
    const memory = this.#memory;
    const length = this.#length + bytes.length;
    if (length > memory.byteLength) memory.resize(Math.max(length, Math.min(length + STEP_BYTES, this.#max)));
    bytes.copy(Buffer.from(memory), this.#length);
    this.#length = length;
  }

  /** The whole token, one character per byte, with its last part; from here on there is none. */
  take(ending: string): string {
    if (this.#length === 0) return ending;
    const text = Buffer.from(this.#memory!, 0, this.#length).toString("latin1") + ending;
    this.drop();
    return text;
  }

  drop(): void {
    this.#length = 0;
    this.#memory?.resize(0);
  }
}

// Addresses of buffers for calls of the C library.
//
//   1. Memory safety is kept here: each range is checked against its buffer before an address leaves.
//   2. Addresses are numbers (below 2**47), taken once per ArrayBuffer: the memory of one never moves. When
//      it is detached its buffers have length 0, and rule 1 refuses them.
//   3. Who hands an address on keeps its buffer referenced until the system has done with it.

import { assert } from "../base/assert.ts";
import type { Koffi } from "./load-koffi.ts";

export class BufferAddresses {
  readonly #koffi: Koffi;
  readonly #known = new WeakMap<ArrayBufferLike, number>();

  constructor(koffi: Koffi) {
    this.#koffi = koffi;
  }

  /** The address of `buffer[at]`, which `bytes` bytes of the buffer follow. */
  of(buffer: Buffer, at: number, bytes: number): number {
    assert(at >= 0 && bytes >= 0 && at + bytes <= buffer.length, "a range outside of its buffer");
    const memory = buffer.buffer;
    let address = this.#known.get(memory);
    if (address === undefined) {
      // Through a Buffer over all of it: koffi takes no SharedArrayBuffer itself.
      address = Number(this.#koffi.address(Buffer.from(memory)));
      this.#known.set(memory, address);
    }
    return address + buffer.byteOffset + at;
  }
}

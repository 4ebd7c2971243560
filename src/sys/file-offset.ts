// A file offset as the C library takes it by address: a 64-bit little-endian integer.

const TWO_32 = 0x1_0000_0000;

/** Writes `offset`, 0 or more, at `words[at]`. */
export function setOffset(words: Uint32Array, at: number, offset: number): void {
  words[at] = offset >>> 0;
  words[at + 1] = Math.floor(offset / TWO_32);
}

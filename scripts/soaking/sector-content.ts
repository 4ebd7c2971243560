// What a write puts into each sector, so that any sector says which write it is from and where it belongs.
//
//   word 0      2           4                      127
//   [stamp][sector][stamp][sector + 1 * STEP] ... [sector + 63 * STEP]      stamp 0: the sector is zeros

export const SECTOR = 512;
const WORDS = SECTOR / 4;
/** Above any sector number, so that no part of a sector looks like a part of another. */
const STEP = 0x1000000;

/** What `stampAt` says of a sector that no write can have left. */
export const FOREIGN = -1;

/** The words of a buffer. @throws RangeError when it does not start at a multiple of four */
export function wordsOf(buffer: Buffer): Uint32Array {
  return new Uint32Array(buffer.buffer, buffer.byteOffset, buffer.length >> 2);
}

/** A buffer whose words can be reached. */
export function sectorBuffer(sectors: number): Buffer {
  return Buffer.from(new ArrayBuffer(sectors * SECTOR));
}

/** Fills all of `words` with write `stamp`, the first of whose sectors is `first`. */
export function fillSectors(words: Uint32Array, first: number, stamp: number): void {
  for (let at = 0, sector = first; at < words.length; at += WORDS, sector++) {
    for (let word = 0; word < WORDS; word += 2) {
      words[at + word] = stamp;
      words[at + word + 1] = stamp === 0 ? 0 : sector + (word >> 1) * STEP;
    }
  }
}

/** Which write the sector numbered `sector` is from, that stands at `index` (in sectors) of `words`. */
export function stampAt(words: Uint32Array, index: number, sector: number): number {
  const at = index * WORDS;
  const stamp = words[at]!;
  for (let word = 0; word < WORDS; word += 2) {
    if (words[at + word] !== stamp) return FOREIGN;
    const place = stamp === 0 ? 0 : (sector + (word >> 1) * STEP) >>> 0;
    if (words[at + word + 1] !== place) return FOREIGN;
  }
  return stamp;
}

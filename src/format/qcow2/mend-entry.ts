// What becomes of an L2 entry that cannot be. Pure: words in, words out.
//
//   reserved bits, COPIED of a compressed cluster     cleared
//   a host offset that is not aligned, or past the    one bit has flipped, if with another value of it the
//   end of the file                                   offset is that of a cluster that is in use and nobody
//                                                     names, the only such; otherwise the data is lost
//   a subcluster that is data and zero at once        data
//   lost data                                         reads as zeros, and never shows what is deeper

import {
  ClusterKind,
  COMPRESSED_HIGH,
  COPIED_HIGH,
  clusterKind,
  compressedBytes,
  compressedOffset,
  entryOffset,
  L2_RESERVED_HIGH,
  L2_RESERVED_LOW,
  OFFSET_MASK_HIGH,
  OFFSET_MASK_LOW,
  ZERO_LOW,
} from "./l2-entry.ts";

export interface EntryWorld {
  readonly clusterBits: number;
  readonly extended: boolean;
  /** Version 2 has no zero clusters: there lost data shows what is deeper. */
  readonly zeroAllowed: boolean;
  /** Whether a reference to these bytes of the file can be. */
  isInFile(offset: number, bytes: number): boolean;
  /** Clusters that are in use by their refcounts, and no entry names them. One that is found is taken out. */
  readonly orphans: Set<number>;
}

/** Bits of an entry that are offset. */
const OFFSET_BIT_FIRST = 9;
const OFFSET_BIT_END = 56;

/** The offset that differs by one bit and is that of an orphan; undefined when there is none, or a choice. */
export function findByOneBit(offset: number, clusterSize: number, orphans: Set<number>): number | undefined {
  let found: number | undefined;
  for (let bit = OFFSET_BIT_FIRST; bit < OFFSET_BIT_END; bit++) {
    const value = 2 ** bit;
    const candidate = Math.floor(offset / value) % 2 === 1 ? offset - value : offset + value;
    if (candidate % clusterSize !== 0 || !orphans.has(candidate / clusterSize)) continue;
    if (found !== undefined) return undefined;
    found = candidate;
  }
  if (found !== undefined) orphans.delete(found / clusterSize);
  return found;
}

export const Mended = { NOTHING: 0, FLAGS: 1, FOUND: 2, LOST: 3 } as const;
export type Mended = (typeof Mended)[keyof typeof Mended];

/** Mends the entry of 2 (extended: 4) words at `at`. */
export function mendEntry(words: Uint32Array, at: number, world: EntryWorld): Mended {
  const high = words[at]!;
  if ((high & COMPRESSED_HIGH) !== 0) return mendCompressed(words, at, world);
  const before = [words[at], words[at + 1], world.extended ? words[at + 2] : 0];
  words[at] = (high & ~L2_RESERVED_HIGH) >>> 0;
  words[at + 1] = (words[at + 1]! & ~L2_RESERVED_LOW) >>> 0;
  const kind = clusterKind(words[at]!, words[at + 1]!, world.extended);
  if (kind === ClusterKind.UNALLOCATED && world.extended && words[at + 3] !== 0) {
    return lose(words, at, world);
  }
  if (kind === ClusterKind.NORMAL || kind === ClusterKind.ZERO_ALLOCATED) {
    const clusterSize = 2 ** world.clusterBits;
    const offset = entryOffset(words[at]!, words[at + 1]!);
    if (offset % clusterSize !== 0 || !world.isInFile(offset, clusterSize)) {
      const found = findByOneBit(offset, clusterSize, world.orphans);
      if (found === undefined) return lose(words, at, world);
      setOffset(words, at, found);
      return Mended.FOUND;
    }
    if (world.extended) words[at + 2] = (words[at + 2]! & ~words[at + 3]!) >>> 0;
  }
  const same =
    before[0] === words[at] &&
    before[1] === words[at + 1] &&
    (!world.extended || before[2] === words[at + 2]);
  return same ? Mended.NOTHING : Mended.FLAGS;
}

function mendCompressed(words: Uint32Array, at: number, world: EntryWorld): Mended {
  const high = words[at]!;
  const low = words[at + 1]!;
  const offset = compressedOffset(high, low, world.clusterBits);
  if (!world.isInFile(offset, compressedBytes(high, low, world.clusterBits))) return lose(words, at, world);
  const bitmaps = world.extended && (words[at + 2]! | words[at + 3]!) !== 0;
  if ((high & COPIED_HIGH) === 0 && !bitmaps) return Mended.NOTHING;
  words[at] = (high & ~COPIED_HIGH) >>> 0;
  if (world.extended) words.fill(0, at + 2, at + 4);
  return Mended.FLAGS;
}

function setOffset(words: Uint32Array, at: number, offset: number): void {
  words[at] = ((words[at]! & ~OFFSET_MASK_HIGH) | Math.floor(offset / 2 ** 32)) >>> 0;
  words[at + 1] = ((words[at + 1]! & ~OFFSET_MASK_LOW) | (offset % 2 ** 32)) >>> 0;
}

function lose(words: Uint32Array, at: number, world: EntryWorld): Mended {
  const compressed = (words[at]! & COMPRESSED_HIGH) !== 0;
  words[at] = 0;
  words[at + 1] = !world.extended && world.zeroAllowed ? ZERO_LOW : 0;
  if (world.extended) {
    words[at + 2] = compressed ? 0xffff_ffff : (words[at + 2]! | words[at + 3]!) >>> 0;
    words[at + 3] = 0;
  }
  return Mended.LOST;
}

// The entries of the mapping tables, written down once. An entry is a pair of 32-bit halves [high, low], as a
// table cache holds them in a Uint32Array; no BigInt, and shifts only inside a half. (Specification: "Cluster
// mapping".)
//
//   L1 entry     63 COPIED | 62..56 reserved | 55..9 offset of the L2 table        | 8..0 reserved
//   L2 entry     63 COPIED | 62 COMPRESSED=0 | 61..56 reserved | 55..9 host cluster | 8..1 reserved | 0 ZERO
//   compressed   63 COPIED=0 | 62 COMPRESSED=1 | 61..x more sectors | x-1..0 host offset in bytes
//                x = 62 - (cluster_bits - 8), so 49 (2 MiB) to 61 (512 B): always inside the high half
//   subclusters  second 64-bit word of an extended entry: 63..32 reads-as-zero bits | 31..0 allocation bits
//                (bit n of each is subcluster n; the high half holds the zero bits, the low half the others)
//
// ZERO is reserved in version 2 and in extended entries. COPIED is right in active tables only.

const TWO_32 = 0x1_0000_0000;

/** In the high half of an L1 or L2 entry: the refcount of what it points to is exactly one. */
export const COPIED_HIGH = 0x8000_0000;
/** In the high half of an L2 entry: a compressed cluster. */
export const COMPRESSED_HIGH = 0x4000_0000;
/** In the low half of a standard L2 entry: reads as zeros. */
export const ZERO_LOW = 0x0000_0001;

/** Bits 55..9 of an entry: where it points to. */
export const OFFSET_MASK_HIGH = 0x00ff_ffff;
export const OFFSET_MASK_LOW = 0xffff_fe00;

/** Bits that must be clear. */
export const L1_RESERVED_HIGH = 0x7f00_0000;
export const L1_RESERVED_LOW = 0x0000_01ff;
export const L2_RESERVED_HIGH = 0x3f00_0000;
export const L2_RESERVED_LOW = 0x0000_01fe;
/** Bits of a refcount table entry that must be clear; all above are offset. */
export const REFTABLE_RESERVED_LOW = 0x0000_01ff;

/** Bytes of an entry, of an extended entry, and how many subclusters the latter describes. */
export const L1_ENTRY_BYTES = 8;
export const L2_ENTRY_BYTES = 8;
export const EXTENDED_L2_ENTRY_BYTES = 16;
export const SUBCLUSTERS = 32;
export const ALL_SUBCLUSTERS = 0xffff_ffff;

/** What a guest cluster is. */
export const ClusterKind = {
  /** Nothing here: the backing shows through. */
  UNALLOCATED: 0,
  /** Reads as zeros; no host cluster. */
  ZERO_PLAIN: 1,
  /** Reads as zeros; a host cluster is set aside for it. */
  ZERO_ALLOCATED: 2,
  NORMAL: 3,
  COMPRESSED: 4,
} as const;
export type ClusterKind = (typeof ClusterKind)[keyof typeof ClusterKind];

/** What a subcluster is; the first five as in {@link ClusterKind}. */
export const SubclusterKind = {
  UNALLOCATED_PLAIN: 0,
  ZERO_PLAIN: 1,
  ZERO_ALLOCATED: 2,
  NORMAL: 3,
  COMPRESSED: 4,
  /** The cluster has a host cluster, this subcluster shows the backing. */
  UNALLOCATED_ALLOCATED: 5,
  /** Allocated and zero at once, or allocated without a host cluster: the image is corrupt. */
  INVALID: 6,
} as const;
export type SubclusterKind = (typeof SubclusterKind)[keyof typeof SubclusterKind];

/**
 * Where an L1 or standard L2 entry points to, in bytes; 0 when nowhere. Up to 2**56: a multiple of 512, so it
 * is exact as a number, and always far past the end of a file when it is nonsense.
 */
export function entryOffset(high: number, low: number): number {
  return (high & OFFSET_MASK_HIGH) * TWO_32 + ((low & OFFSET_MASK_LOW) >>> 0);
}

/** The offset in a refcount table entry: bits 63..9. */
export function reftableOffset(high: number, low: number): number {
  return (high >>> 0) * TWO_32 + ((low & OFFSET_MASK_LOW) >>> 0);
}

export function isCopied(high: number): boolean {
  return (high & COPIED_HIGH) !== 0;
}

/** High half of an entry that points to `offset`. */
export function entryHigh(offset: number, copied: boolean): number {
  const high = Math.floor(offset / TWO_32);
  return copied ? (high | COPIED_HIGH) >>> 0 : high;
}

/** Low half of an entry that points to `offset`. */
export function entryLow(offset: number, zero = false): number {
  const low = offset % TWO_32;
  return zero ? (low | ZERO_LOW) >>> 0 : low;
}

/** The kind of an L2 entry. `extended`: the image has subclusters, so bit 0 means nothing. */
export function clusterKind(high: number, low: number, extended: boolean): ClusterKind {
  if ((high & COMPRESSED_HIGH) !== 0) return ClusterKind.COMPRESSED;
  const placed = (high & OFFSET_MASK_HIGH) !== 0 || (low & OFFSET_MASK_LOW) !== 0;
  if ((low & ZERO_LOW) !== 0 && !extended)
    return placed ? ClusterKind.ZERO_ALLOCATED : ClusterKind.ZERO_PLAIN;
  return placed ? ClusterKind.NORMAL : ClusterKind.UNALLOCATED;
}

/** The kind of subcluster `index` of an extended entry with the given bitmap halves. */
export function subclusterKind(
  high: number,
  low: number,
  zeroBits: number,
  allocatedBits: number,
  index: number,
): SubclusterKind {
  const bit = 1 << index;
  switch (clusterKind(high, low, true)) {
    case ClusterKind.COMPRESSED:
      return SubclusterKind.COMPRESSED;
    case ClusterKind.NORMAL:
      if ((zeroBits & allocatedBits) !== 0) return SubclusterKind.INVALID;
      if ((zeroBits & bit) !== 0) return SubclusterKind.ZERO_ALLOCATED;
      return (allocatedBits & bit) !== 0 ? SubclusterKind.NORMAL : SubclusterKind.UNALLOCATED_ALLOCATED;
    default:
      if (allocatedBits !== 0) return SubclusterKind.INVALID;
      return (zeroBits & bit) !== 0 ? SubclusterKind.ZERO_PLAIN : SubclusterKind.UNALLOCATED_PLAIN;
  }
}

/** How many bits of the high half of a compressed entry belong to the offset: x - 32. */
function compressedOffsetHighBits(clusterBits: number): number {
  return 30 - (clusterBits - 8);
}

/**
 * Where the compressed data begins, in bytes. Not aligned. Above 2**53 it is inexact, and nonsense anyway.
 */
export function compressedOffset(high: number, low: number, clusterBits: number): number {
  const mask = 2 ** compressedOffsetHighBits(clusterBits) - 1;
  return (high & mask) * TWO_32 + (low >>> 0);
}

/**
 * How many bytes the compressed data may take: to the end of the last 512-byte sector that the entry names.
 */
export function compressedBytes(high: number, low: number, clusterBits: number): number {
  const moreSectors = (high & 0x3fff_ffff) >>> compressedOffsetHighBits(clusterBits);
  return (moreSectors + 1) * 512 - (low & 511);
}

/**
 * High half of a compressed entry: data of `bytes` bytes at `offset`. Its low half is `offset % 2**32`.
 * The caller sees to it that the offset fits (below 2**49 for 2 MiB clusters).
 */
export function compressedHigh(offset: number, bytes: number, clusterBits: number): number {
  const moreSectors = Math.floor((offset + bytes - 1) / 512) - Math.floor(offset / 512);
  const sectors = (moreSectors << compressedOffsetHighBits(clusterBits)) >>> 0;
  return (COMPRESSED_HIGH | sectors | Math.floor(offset / TWO_32)) >>> 0;
}

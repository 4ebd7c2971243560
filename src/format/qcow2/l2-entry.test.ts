import { describe, expect, test } from "vitest";
import { GiB, TiB } from "../../base/units.ts";
import * as entry from "./l2-entry.ts";
import { ClusterKind, SubclusterKind } from "./l2-entry.ts";

/** The halves of a 64-bit value given by its bits, as the specification's tables name them. */
function halves(value: bigint): [number, number] {
  return [Number(value >> 32n), Number(value & 0xffff_ffffn)];
}

const bit = (n: number) => 1n << BigInt(n);
const bits = (from: number, to: number) => (1n << BigInt(to + 1)) - (1n << BigInt(from));

describe("standard entries, against the specification's table", () => {
  test("bits 9 to 55 are the offset, bit 63 is COPIED, bit 62 COMPRESSED, bit 0 ZERO", () => {
    expect([entry.OFFSET_MASK_HIGH, entry.OFFSET_MASK_LOW]).toEqual(halves(bits(9, 55)));
    expect([entry.COPIED_HIGH, 0]).toEqual(halves(bit(63)));
    expect([entry.COMPRESSED_HIGH, 0]).toEqual(halves(bit(62)));
    expect([0, entry.ZERO_LOW]).toEqual(halves(bit(0)));
  });

  test("reserved bits", () => {
    expect([entry.L1_RESERVED_HIGH, entry.L1_RESERVED_LOW]).toEqual(halves(bits(0, 8) | bits(56, 62)));
    expect([entry.L2_RESERVED_HIGH, entry.L2_RESERVED_LOW]).toEqual(halves(bits(1, 8) | bits(56, 61)));
    expect([0, entry.REFTABLE_RESERVED_LOW]).toEqual(halves(bits(0, 8)));
  });

  test.each([512, 0x8000_0000, 4 * GiB - 512, 4 * GiB, 16 * TiB + 512, 2 ** 56 - 512])(
    "offset %d",
    (offset) => {
      for (const copied of [false, true]) {
        for (const zero of [false, true]) {
          const [high, low] = halves(BigInt(offset) | (copied ? bit(63) : 0n) | (zero ? 1n : 0n));
          expect([entry.entryHigh(offset, copied), entry.entryLow(offset, zero)]).toEqual([high, low]);
          expect(entry.entryOffset(high, low)).toBe(offset);
          expect(entry.isCopied(high)).toBe(copied);
        }
      }
    },
  );

  test("a refcount table entry takes all of bits 9 to 63 as its offset", () => {
    const [high, low] = halves(bits(0, 63));
    expect(entry.reftableOffset(high, low)).toBe(Number(bits(9, 63)));
  });

  test.each([
    [0n, ClusterKind.UNALLOCATED, ClusterKind.UNALLOCATED],
    [bit(63), ClusterKind.UNALLOCATED, ClusterKind.UNALLOCATED],
    [bit(0), ClusterKind.ZERO_PLAIN, ClusterKind.UNALLOCATED],
    [bit(0) | bit(9), ClusterKind.ZERO_ALLOCATED, ClusterKind.NORMAL],
    [bit(55) | bit(0), ClusterKind.ZERO_ALLOCATED, ClusterKind.NORMAL],
    [bit(9), ClusterKind.NORMAL, ClusterKind.NORMAL],
    [bit(31), ClusterKind.NORMAL, ClusterKind.NORMAL],
    [bit(63) | bit(55), ClusterKind.NORMAL, ClusterKind.NORMAL],
    // In a compressed entry bit 0 belongs to the offset.
    [bit(62) | bit(0), ClusterKind.COMPRESSED, ClusterKind.COMPRESSED],
  ])("kind of %d", (value, standard, extended) => {
    const [high, low] = halves(value);
    expect(entry.clusterKind(high, low, false)).toBe(standard);
    expect(entry.clusterKind(high, low, true)).toBe(extended);
  });
});

describe("compressed entries", () => {
  test.each([9, 12, 16, 21])(
    "cluster_bits %d: bits x to 61 count sectors, the rest is the offset",
    (clusterBits) => {
      const x = 62 - (clusterBits - 8);
      const [high, low] = halves(bit(62) | bits(x, 61) | 512n);
      expect(entry.compressedBytes(high, low, clusterBits)).toBe(2 ** (clusterBits - 8) * 512);
      expect(entry.compressedOffset(high, low, clusterBits)).toBe(512);
      const [topHigh, topLow] = halves(bit(62) | bit(x - 1));
      expect(entry.compressedOffset(topHigh, topLow, clusterBits)).toBe(2 ** (x - 1));
      expect(entry.compressedBytes(topHigh, topLow, clusterBits)).toBe(512);
    },
  );

  test("data at 1000 of 600 bytes ends in the sector that begins at 1536", () => {
    const high = entry.compressedHigh(1000, 600, 16);
    expect(high).toBe(0x4000_0000 + (2 << 22));
    // From byte 1000 to the end of that sector.
    expect(entry.compressedBytes(high, 1000, 16)).toBe(2048 - 1000);
    expect(entry.compressedOffset(high, 1000, 16)).toBe(1000);
  });

  test("an offset above 2^31 and above 2^32 survives", () => {
    for (const offset of [2 ** 31 + 7, 2 ** 32 + 7, 2 ** 48 + 7]) {
      const high = entry.compressedHigh(offset, 512, 21);
      expect(entry.compressedOffset(high, offset % 2 ** 32, 21)).toBe(offset);
    }
  });
});

describe("subclusters", () => {
  const [placedHigh, placedLow] = halves(bit(63) | bit(20));

  test.each([
    [0, 0, SubclusterKind.UNALLOCATED_ALLOCATED],
    [0, 1, SubclusterKind.NORMAL],
    [1, 0, SubclusterKind.ZERO_ALLOCATED],
    [1, 1, SubclusterKind.INVALID],
    // Elsewhere in the same entry: the whole entry is not to be trusted.
    [2, 2, SubclusterKind.INVALID],
  ])("with a host cluster: zero bits %d, allocated bits %d", (zeroBits, allocatedBits, kind) => {
    expect(entry.subclusterKind(placedHigh, placedLow, zeroBits, allocatedBits, 0)).toBe(kind);
  });

  test.each([
    [0, 0, SubclusterKind.UNALLOCATED_PLAIN],
    [1, 0, SubclusterKind.ZERO_PLAIN],
    [0, 1, SubclusterKind.INVALID],
    [0, 2, SubclusterKind.INVALID],
  ])("without one: zero bits %d, allocated bits %d", (zeroBits, allocatedBits, kind) => {
    expect(entry.subclusterKind(0, 0, zeroBits, allocatedBits, 0)).toBe(kind);
  });

  test("subcluster 31 is the sign bit of its half", () => {
    expect(entry.subclusterKind(placedHigh, placedLow, 0, 0x8000_0000, 31)).toBe(SubclusterKind.NORMAL);
    expect(entry.subclusterKind(placedHigh, placedLow, 0x8000_0000, 0, 31)).toBe(
      SubclusterKind.ZERO_ALLOCATED,
    );
  });

  test("a compressed cluster has none", () => {
    const [high, low] = halves(bit(62) | 512n);
    expect(entry.subclusterKind(high, low, 5, 5, 3)).toBe(SubclusterKind.COMPRESSED);
  });
});

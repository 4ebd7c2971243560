// Refcounts of 1 to 64 bits in a buffer, as a refcount block holds them. (Specification: "Host cluster
// management".)
//
//   below 8 bits: packed, the first one in the lowest bits of its byte; from 8 bits on: big-endian

/** The refcount at `index`. One of 64 bits and 2**53 or more is inexact, and nonsense anyway. */
export function getRefcount(block: Buffer, order: number, index: number): number {
  switch (order) {
    case 6:
      return block.readUInt32BE(index * 8) * 0x1_0000_0000 + block.readUInt32BE(index * 8 + 4);
    case 5:
      return block.readUInt32BE(index * 4);
    case 4:
      return block.readUInt16BE(index * 2);
    case 3:
      return block[index]!;
    default: {
      const perByteShift = 3 - order;
      const bit = (index & ((1 << perByteShift) - 1)) << order;
      return (block[index >>> perByteShift]! >>> bit) & ((1 << (1 << order)) - 1);
    }
  }
}

/** Sets the refcount at `index`; the caller has compared it with {@link maxRefcount}. */
export function setRefcount(block: Buffer, order: number, index: number, value: number): void {
  switch (order) {
    case 6:
      block.writeUInt32BE(Math.floor(value / 0x1_0000_0000), index * 8);
      block.writeUInt32BE(value % 0x1_0000_0000, index * 8 + 4);
      return;
    case 5:
      block.writeUInt32BE(value, index * 4);
      return;
    case 4:
      block.writeUInt16BE(value, index * 2);
      return;
    case 3:
      block[index] = value;
      return;
    default: {
      const perByteShift = 3 - order;
      const bit = (index & ((1 << perByteShift) - 1)) << order;
      const mask = ((1 << (1 << order)) - 1) << bit;
      const at = index >>> perByteShift;
      block[at] = (block[at]! & ~mask) | (value << bit);
    }
  }
}

/** The largest refcount of this width; for 64 bits the largest that a number holds exactly. */
export function maxRefcount(order: number): number {
  return order === 6 ? Number.MAX_SAFE_INTEGER : 2 ** (2 ** order) - 1;
}

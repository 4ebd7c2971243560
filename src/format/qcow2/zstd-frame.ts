// Finds the end of a zstd frame and what it says of its size, without decoding it (RFC 8878, section 3.1.1).
// Decoders that take whole buffers treat what follows a frame as another one, and allocate what a frame asks
// for: both must be known before.
//
//   | magic 4 | descriptor 1 | window 0..1 | dictionary 0..4 | content size 0..8 |
//   | blocks (header 3, data) | checksum 0..4 |

import { BlockError } from "../../base/errors.ts";

const MAGIC = 0xfd2f_b528;
const BLOCK_RLE = 1;
const BLOCK_COMPRESSED = 2;
/** No block decodes to more, by the format. */
const BLOCK_BYTES_MAX = 128 * 1024;

export interface ZstdFrame {
  /** Length of the whole frame. */
  readonly bytes: number;
  /** What it decodes to, where it says so. */
  readonly contentBytes: number | undefined;
  /** Memory that decoding wants. */
  readonly windowBytes: number;
  readonly blocks: number;
}

/**
 * The frame at the start of `input`.
 * @throws BlockError IMAGE_CORRUPT when there is none, or it does not end inside `input`
 */
export function zstdFrame(input: Buffer): ZstdFrame {
  if (input.length < 6 || input.readUInt32LE(0) !== MAGIC) throw corrupt("no zstd frame");
  const descriptor = input[4]!;
  if ((descriptor & 0x08) !== 0) throw corrupt("reserved bit in the zstd frame header");
  const singleSegment = (descriptor & 0x20) !== 0;
  let at = 5;
  let windowBytes = 0;
  if (!singleSegment) {
    const base = 2 ** (10 + (input[at]! >> 3));
    windowBytes = base + (base / 8) * (input[at]! & 7);
    at += 1;
  }
  if ((descriptor & 3) !== 0) throw corrupt("zstd frame with a dictionary");
  const sizeBytes = [singleSegment ? 1 : 0, 2, 4, 8][descriptor >> 6]!;
  const contentBytes = contentSize(input, at, sizeBytes);
  at += sizeBytes;
  if (singleSegment) windowBytes = contentBytes ?? 0;
  const blocks = skipBlocks(input, at);
  const bytes = blocks.end + ((descriptor & 0x04) !== 0 ? 4 : 0);
  if (bytes > input.length) throw corrupt("zstd frame is cut off");
  return { bytes, contentBytes, windowBytes, blocks: blocks.count };
}

function contentSize(input: Buffer, at: number, bytes: number): number | undefined {
  if (at + bytes > input.length) throw corrupt("zstd frame is cut off");
  switch (bytes) {
    case 0:
      return undefined;
    case 1:
      return input[at]!;
    case 2:
      return input.readUInt16LE(at) + 256;
    case 4:
      return input.readUInt32LE(at);
    default:
      return Number(input.readBigUInt64LE(at));
  }
}

function skipBlocks(input: Buffer, start: number): { end: number; count: number } {
  let at = start;
  for (let count = 1; ; count++) {
    if (at + 3 > input.length) throw corrupt("zstd frame is cut off");
    const header = input.readUIntLE(at, 3);
    const type = (header >> 1) & 3;
    const size = header >> 3;
    if (type > BLOCK_COMPRESSED || size > BLOCK_BYTES_MAX)
      throw corrupt("zstd block of a reserved type or size");
    at += 3 + (type === BLOCK_RLE ? 1 : size);
    if (at > input.length) throw corrupt("zstd frame is cut off");
    if ((header & 1) !== 0) return { end: at, count };
  }
}

function corrupt(message: string): BlockError {
  return new BlockError("IMAGE_CORRUPT", message);
}

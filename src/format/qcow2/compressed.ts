// Decodes one compressed cluster. (Specification: "Compressed Clusters Descriptor".)
//
//   1. Output is exactly one cluster: what decodes to less or more is corrupt. Nothing larger is ever
//      allocated, so an image cannot be a bomb.
//   2. Input ends at a sector, behind the end of the data: what follows the data is not looked at.
//   3. A small cluster is decoded at once (a promise and the thread pool cost more); a large one in the
//      thread pool, so that it does not stop the loop.

import { promisify } from "node:util";
import zlib from "node:zlib";
import { decompress as decompressZstdPortable } from "fzstd";
import type { Completion } from "../../base/completion.ts";
import { BlockError } from "../../base/errors.ts";
import { KiB, MiB } from "../../base/units.ts";
import { CompressionType } from "./header.ts";
import { zstdFrame } from "./zstd-frame.ts";

/** Clusters up to this size are decoded inline: about half a millisecond. */
const INLINE_BYTES_MAX = 128 * KiB;
/** Window that a frame of unstated length may ask for; QEMU writes frames that state their length. */
const ZSTD_WINDOW_BYTES_MAX = 8 * MiB;

type Decode = (input: Buffer, options: zlib.ZlibOptions) => Buffer;
type DecodeLater = (input: Buffer, options: zlib.ZlibOptions) => Promise<Buffer>;

// Node has zstd from 22.15 on; the types are those of Node 20.
const native = zlib as unknown as {
  zstdDecompressSync?: Decode;
  zstdDecompress?: Parameters<typeof promisify>[0];
};
const zstdSync = native.zstdDecompressSync;
const zstdLater =
  native.zstdDecompress === undefined
    ? undefined
    : (promisify(native.zstdDecompress) as unknown as DecodeLater);
const inflateLater = promisify(zlib.inflateRaw) as DecodeLater;

/**
 * Decodes one cluster.
 * @param input the bytes that the L2 entry names; borrowed until the completion settles
 * @param output filled whole; its length is the cluster size
 * @throws BlockError IMAGE_CORRUPT
 */
export function decompressCluster(type: CompressionType, input: Buffer, output: Buffer): Completion {
  try {
    return type === CompressionType.ZLIB ? inflate(input, output) : decompressZstd(input, output);
  } catch (error) {
    throw undecodable(error);
  }
}

function inflate(input: Buffer, output: Buffer): Completion {
  // The last sector may lie past the end of a file that was cut there: take what there is, then look at the
  // length.
  const options = { maxOutputLength: output.length, finishFlush: zlib.constants.Z_SYNC_FLUSH };
  if (output.length <= INLINE_BYTES_MAX) return take(zlib.inflateRawSync(input, options), output);
  return later(inflateLater(input, options), output);
}

function decompressZstd(input: Buffer, output: Buffer): Completion {
  const frame = zstdFrame(input);
  if (frame.contentBytes !== undefined && frame.contentBytes !== output.length) {
    throw new BlockError("IMAGE_CORRUPT", `the zstd frame holds ${frame.contentBytes} bytes`);
  }
  const data = input.subarray(0, frame.bytes);
  const options = { maxOutputLength: output.length };
  if (zstdSync !== undefined && zstdLater !== undefined) {
    if (output.length <= INLINE_BYTES_MAX) return take(zstdSync(data, options), output);
    return later(zstdLater(data, options), output);
  }
  if (frame.contentBytes !== undefined) {
    // This decoder does not tell how much it wrote; a pooled buffer must not show what it held before.
    output.fill(0);
    decompressZstdPortable(data, output);
    return;
  }
  if (frame.windowBytes > ZSTD_WINDOW_BYTES_MAX) {
    throw new BlockError("IMAGE_CORRUPT", `the zstd frame wants a window of ${frame.windowBytes} bytes`);
  }
  if (frame.blocks * 128 * KiB > output.length + ZSTD_WINDOW_BYTES_MAX) {
    throw new BlockError("IMAGE_CORRUPT", `the zstd frame has ${frame.blocks} blocks`);
  }
  take(Buffer.from(decompressZstdPortable(data)), output);
}

function take(decoded: Buffer, output: Buffer): void {
  if (decoded.length !== output.length) {
    throw new BlockError(
      "IMAGE_CORRUPT",
      `it decodes to ${decoded.length} bytes instead of ${output.length}`,
    );
  }
  decoded.copy(output);
}

async function later(decoding: Promise<Buffer>, output: Buffer): Promise<void> {
  try {
    take(await decoding, output);
  } catch (error) {
    throw undecodable(error);
  }
}

function undecodable(error: unknown): BlockError {
  const why = error instanceof Error ? error.message : String(error);
  return new BlockError("IMAGE_CORRUPT", `a compressed cluster cannot be decoded: ${why}`, error);
}

// Header extensions: optional sections between the header's fields and the backing file name.
//
//   | type u32 | length u32 | data, padded to a multiple of 8 | ... | type 0 = END |

import { readU64OrInfinity, writeU64 } from "../../base/bytes.ts";
import { BlockError } from "../../base/errors.ts";
import { alignUp } from "../../base/units.ts";

export const ExtensionMagic = {
  END: 0,
  BACKING_FORMAT: 0xe2792aca,
  FEATURE_NAMES: 0x6803f857,
  BITMAPS: 0x23852875,
  CRYPTO_HEADER: 0x0537be77,
  DATA_FILE: 0x44415441,
} as const;

export interface HeaderExtension {
  readonly magic: number;
  readonly data: Buffer;
}

/** Where the bitmap directory is. Bytes. */
export interface BitmapsExtension {
  readonly bitmapCount: number;
  readonly directoryBytes: number;
  readonly directoryOffset: number;
}

export const MAX_BITMAPS = 65535;
/** QEMU's bound. */
export const MAX_BITMAP_DIRECTORY_BYTES = MAX_BITMAPS * 1024;
const BITMAPS_EXTENSION_BYTES = 24;
/** QEMU keeps the format name in 16 bytes, its NUL among them. */
const BACKING_FORMAT_BYTES_MAX = 15;
/** Copies of one type cost memory: more than a header of 2 MiB can sensibly hold are refused. */
const EXTENSIONS_MAX = 4096;

const FEATURE_ENTRY_BYTES = 48;
const FEATURE_NAME_BYTES = 46;

/** [kind of mask (0 incompatible, 1 compatible, 2 autoclear), bit, name] as QEMU writes them. */
const FEATURE_NAMES: readonly (readonly [number, number, string])[] = [
  [0, 0, "dirty bit"],
  [0, 1, "corrupt bit"],
  [0, 2, "external data file"],
  [0, 3, "compression type"],
  [0, 4, "extended L2 entries"],
  [1, 0, "lazy refcounts"],
  [2, 0, "bitmaps"],
  [2, 1, "raw external data"],
];

/**
 * The extensions in [start, end) of the header area, without END.
 * @throws BlockError IMAGE_CORRUPT when one does not fit
 */
export function parseExtensions(area: Buffer, start: number, end: number): HeaderExtension[] {
  const found: HeaderExtension[] = [];
  let at = start;
  while (at < end) {
    if (at + 8 > end) throw corrupt("Header extension too large");
    const magic = area.readUInt32BE(at);
    const bytes = area.readUInt32BE(at + 4);
    if (bytes > end - at - 8) throw corrupt("Header extension too large");
    if (magic === ExtensionMagic.END) break;
    if (magic === ExtensionMagic.BACKING_FORMAT && bytes > BACKING_FORMAT_BYTES_MAX) {
      throw corrupt(`ERROR: ext_backing_format: len=${bytes} too large (>=${BACKING_FORMAT_BYTES_MAX + 1})`);
    }
    if (found.length >= EXTENSIONS_MAX) throw corrupt(`More than ${EXTENSIONS_MAX} header extensions`);
    found.push({ magic, data: Buffer.from(area.subarray(at + 8, at + 8 + bytes)) });
    at += 8 + alignUp(bytes, 8);
  }
  return found;
}

/** The extensions as bytes, END included. */
export function serializeExtensions(extensions: readonly HeaderExtension[]): Buffer {
  const parts: Buffer[] = [];
  for (const { magic, data } of [...extensions, { magic: ExtensionMagic.END, data: Buffer.alloc(0) }]) {
    const part = Buffer.alloc(8 + alignUp(data.length, 8));
    part.writeUInt32BE(magic, 0);
    part.writeUInt32BE(data.length, 4);
    data.copy(part, 8);
    parts.push(part);
  }
  return Buffer.concat(parts);
}

/** @throws BlockError IMAGE_CORRUPT with QEMU's words */
export function parseBitmapsExtension(data: Buffer, clusterSize: number): BitmapsExtension {
  if (data.length !== BITMAPS_EXTENSION_BYTES) throw corrupt("bitmaps_ext: Invalid extension length");
  if (data.readUInt32BE(4) !== 0) throw corrupt("bitmaps_ext: Reserved field is not zero");
  const bitmapCount = data.readUInt32BE(0);
  const directoryBytes = readU64OrInfinity(data, 8);
  const directoryOffset = readU64OrInfinity(data, 16);
  if (bitmapCount > MAX_BITMAPS) {
    throw corrupt(
      `bitmaps_ext: Image has ${bitmapCount} bitmaps, exceeding the QEMU supported maximum of ${MAX_BITMAPS}`,
    );
  }
  if (bitmapCount === 0) throw corrupt("found bitmaps extension with zero bitmaps");
  if (!Number.isFinite(directoryOffset) || directoryOffset % clusterSize !== 0) {
    throw corrupt("bitmaps_ext: invalid bitmap directory offset");
  }
  if (directoryBytes > MAX_BITMAP_DIRECTORY_BYTES) {
    throw corrupt(
      `bitmaps_ext: bitmap directory size (${data.readBigUInt64BE(8)}) exceeds ` +
        `the maximum supported size (${MAX_BITMAP_DIRECTORY_BYTES})`,
    );
  }
  return { bitmapCount, directoryBytes, directoryOffset };
}

export function serializeBitmapsExtension(bitmaps: BitmapsExtension): HeaderExtension {
  const data = Buffer.alloc(BITMAPS_EXTENSION_BYTES);
  data.writeUInt32BE(bitmaps.bitmapCount, 0);
  writeU64(data, bitmaps.directoryBytes, 8);
  writeU64(data, bitmaps.directoryOffset, 16);
  return { magic: ExtensionMagic.BITMAPS, data };
}

/** The feature name table that new images get. */
export function featureNameTable(): HeaderExtension {
  const data = Buffer.alloc(FEATURE_NAMES.length * FEATURE_ENTRY_BYTES);
  for (const [index, [kind, bit, name]] of FEATURE_NAMES.entries()) {
    data[index * FEATURE_ENTRY_BYTES] = kind;
    data[index * FEATURE_ENTRY_BYTES + 1] = bit;
    data.write(name, index * FEATURE_ENTRY_BYTES + 2, FEATURE_NAME_BYTES, "latin1");
  }
  return { magic: ExtensionMagic.FEATURE_NAMES, data };
}

/** Names the incompatible features `unknown` by the image's own table, as QEMU words it. */
export function unsupportedFeatures(area: Buffer, start: number, end: number, unknown: bigint): string {
  let rest = unknown;
  const names: string[] = [];
  for (const { magic, data } of extensionsOrNone(area, start, end)) {
    if (magic !== ExtensionMagic.FEATURE_NAMES) continue;
    for (let at = 0; at + FEATURE_ENTRY_BYTES <= data.length; at += FEATURE_ENTRY_BYTES) {
      const mask = 1n << BigInt(data[at + 1]! & 63);
      if (data[at] !== 0 || (rest & mask) === 0n) continue;
      const name = printable(data.subarray(at + 2, at + FEATURE_ENTRY_BYTES));
      if (name === "") continue;
      names.push(name);
      rest &= ~mask;
    }
  }
  if (rest !== 0n) names.push(`Unknown incompatible feature: ${rest.toString(16)}`);
  return names.join(", ");
}

function extensionsOrNone(area: Buffer, start: number, end: number): HeaderExtension[] {
  try {
    return parseExtensions(area, start, end);
  } catch {
    return [];
  }
}

/** The name up to its NUL; an image must not put control characters on a terminal. */
function printable(bytes: Buffer): string {
  const end = bytes.indexOf(0);
  return bytes.toString("latin1", 0, end < 0 ? bytes.length : end).replace(/[^\x20-\x7e]/g, "?");
}

function corrupt(message: string): BlockError {
  return new BlockError("IMAGE_CORRUPT", message);
}

// Persistent bitmaps: which parts of the disk were written. (Specification: "Bitmaps".) We keep them, we do
// not keep them up to date, and we say so in the image.
//
//   directory entry: | table offset 8 | table entries 4 | flags 4 | type 1 | granularity 1 | name length 2 |
//                    | extra length 4 | extra | name | padding to 8 |
//   table entry:     55..9 host cluster; where that is 0: bit 0 says all ones
//
// An enabled bitmap must know of every write. Before our first one each enabled bitmap is marked in_use,
// durably: QEMU then treats it as inconsistent, and the image stays clean. A disabled bitmap is right
// whatever is written.

import { readU64OrInfinity } from "../../base/bytes.ts";
import { BlockError } from "../../base/errors.ts";
import { alignUp } from "../../base/units.ts";
import type { Qcow2Header } from "./header.ts";
import type { ImageFile } from "./image-file.ts";
import { OFFSET_MASK_HIGH, OFFSET_MASK_LOW } from "./l2-entry.ts";

const ENTRY_BYTES = 24;
const FLAGS_AT = 12;
/** QEMU's bounds. */
const NAME_BYTES_MAX = 1023;
const TABLE_ENTRIES_MAX = 0x800_0000;
const GRANULARITY_BITS_MIN = 9;
const GRANULARITY_BITS_MAX = 31;
const TYPE_DIRTY_TRACKING = 1;

export const BitmapFlags = { IN_USE: 1, AUTO: 2, EXTRA_DATA_COMPATIBLE: 4 } as const;
/** Bits 63..56 and 8..1 of a table entry; bit 0 too where it names a cluster. */
const TABLE_RESERVED_HIGH = 0xff00_0000;
const TABLE_RESERVED_LOW = 0x0000_01fe;
const FLAGS_RESERVED = 0xffff_fff8;

export interface Bitmap {
  readonly name: string;
  /** Where its entry begins in the directory. */
  readonly entryAt: number;
  /** Infinity from 2**53 on. */
  readonly tableOffset: number;
  readonly tableEntries: number;
  readonly flags: number;
  readonly granularityBits: number;
}

/**
 * The bitmaps of an image.
 * @throws BlockError IMAGE_CORRUPT when the directory is broken; what the host says
 */
export async function readBitmaps(file: ImageFile, header: Qcow2Header): Promise<Bitmap[]> {
  return header.bitmaps === undefined ? [] : parseDirectory(await readDirectory(file, header), header);
}

/** The bitmaps in the members of QMP's Qcow2BitmapInfo. */
export function bitmapInfo(bitmap: Bitmap): Record<string, unknown> {
  const flags: string[] = [];
  if ((bitmap.flags & BitmapFlags.IN_USE) !== 0) flags.push("in-use");
  if ((bitmap.flags & BitmapFlags.AUTO) !== 0) flags.push("auto");
  return { flags, name: bitmap.name, granularity: 2 ** bitmap.granularityBits };
}

/**
 * Marks every enabled bitmap as in use, durably; to be called before the first write to the image. Each mark
 * is one bit of its own, so that a write torn between two of them leaves a right directory.
 * @throws BlockError IMAGE_CORRUPT when the directory is broken; what the host says
 */
export async function markBitmapsInUse(file: ImageFile, header: Qcow2Header): Promise<void> {
  if (header.bitmaps === undefined) return;
  const directory = await readDirectory(file, header);
  let enabled = false;
  for (const bitmap of parseDirectory(directory, header)) {
    if ((bitmap.flags & BitmapFlags.AUTO) === 0) continue;
    enabled = true;
    if ((bitmap.flags & BitmapFlags.IN_USE) !== 0) continue;
    const at = bitmap.entryAt + FLAGS_AT;
    directory.writeUInt32BE(bitmap.flags | BitmapFlags.IN_USE, at);
    await file.write(header.bitmaps.directoryOffset + at, 4, directory, at);
  }
  // Also where the mark was there: who wrote it may have failed to make it durable.
  if (enabled) await file.flush();
}

/** What a bitmap's table entry says. */
export type BitmapTableEntry = { readonly valid: boolean; readonly offset: number };

/** Decodes an entry of a bitmap table; offset 0 where it has no host cluster. */
export function bitmapTableEntry(high: number, low: number, clusterSize: number): BitmapTableEntry {
  const offset = (high & OFFSET_MASK_HIGH) * 0x1_0000_0000 + ((low & OFFSET_MASK_LOW) >>> 0);
  const reserved = (high & TABLE_RESERVED_HIGH) !== 0 || (low & TABLE_RESERVED_LOW) !== 0;
  const valid = !reserved && (offset === 0 || ((low & 1) === 0 && offset % clusterSize === 0));
  return { valid, offset };
}

async function readDirectory(file: ImageFile, header: Qcow2Header): Promise<Buffer> {
  const { directoryBytes, directoryOffset } = header.bitmaps!;
  if (directoryOffset + directoryBytes > alignUp(file.size, 2 ** header.clusterBits)) {
    throw corrupt("the bitmap directory ends past the end of the file");
  }
  const directory = Buffer.alloc(directoryBytes);
  await file.read(directoryOffset, directoryBytes, directory, 0);
  return directory;
}

function parseDirectory(directory: Buffer, header: Qcow2Header): Bitmap[] {
  const bitmaps: Bitmap[] = [];
  let at = 0;
  while (at < directory.length) {
    if (at + ENTRY_BYTES > directory.length) throw corrupt("Broken bitmap directory");
    const nameBytes = directory.readUInt16BE(at + 18);
    const extraBytes = directory.readUInt32BE(at + 20);
    const entryBytes = alignUp(ENTRY_BYTES + extraBytes + nameBytes, 8);
    if (at + entryBytes > directory.length) throw corrupt("Broken bitmap directory");
    const nameAt = at + ENTRY_BYTES + extraBytes;
    const bitmap: Bitmap = {
      name: directory.toString("utf8", nameAt, nameAt + nameBytes),
      entryAt: at,
      tableOffset: readU64OrInfinity(directory, at),
      tableEntries: directory.readUInt32BE(at + 8),
      flags: directory.readUInt32BE(at + FLAGS_AT),
      granularityBits: directory[at + 17]!,
    };
    const type = directory[at + 16]!;
    // Nonsense beyond 2**53 is inexact: its low half tells whether it is aligned.
    const tableOffsetLow = directory.readUInt32BE(at + 4);
    checkEntry(bitmap, { tableOffsetLow, type, nameBytes, extraBytes, clusterSize: 2 ** header.clusterBits });
    if (bitmaps.length === header.bitmaps!.bitmapCount) throw corrupt("More bitmaps found than specified");
    bitmaps.push(bitmap);
    at += entryBytes;
  }
  if (bitmaps.length !== header.bitmaps!.bitmapCount) throw corrupt("Less bitmaps found than specified");
  return bitmaps;
}

function checkEntry(
  bitmap: Bitmap,
  more: {
    tableOffsetLow: number;
    type: number;
    nameBytes: number;
    extraBytes: number;
    clusterSize: number;
  },
): void {
  const bad =
    bitmap.tableEntries === 0 ||
    bitmap.tableEntries > TABLE_ENTRIES_MAX ||
    bitmap.tableOffset === 0 ||
    more.tableOffsetLow % more.clusterSize !== 0 ||
    bitmap.granularityBits < GRANULARITY_BITS_MIN ||
    bitmap.granularityBits > GRANULARITY_BITS_MAX ||
    (bitmap.flags & FLAGS_RESERVED) !== 0 ||
    more.nameBytes === 0 ||
    more.nameBytes > NAME_BYTES_MAX ||
    more.extraBytes !== 0 ||
    more.type !== TYPE_DIRTY_TRACKING;
  if (bad) throw corrupt(`Bitmap '${bitmap.name}' doesn't satisfy the constraints`);
}

function corrupt(message: string): BlockError {
  return new BlockError("IMAGE_CORRUPT", message);
}

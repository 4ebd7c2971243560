// Repairs what the header says of the places of the two tables that everything hangs on.
//
//   36 entries of L1 (4) | 40 its offset (8) | 48 offset of the refcount table (8) | 56 its clusters (4)
//
//   1. A refcount table that cannot be is given up: refcounts are counted anew afterwards.
//   2. An L1 table that cannot be where the header says is looked for (lost-l1.ts). All data hangs on it: if
//      it is not found, or several are, the image stays as it is.
//   3. With too few entries of L1, but some, the length of the disk or of a cluster may be what is wrong.
//      More are taken only where the table goes on with data; otherwise the image stays as it is.
//   4. The fields are written at once, in one sector.

import { writeU64 } from "../../base/bytes.ts";
import { BlockError } from "../../base/errors.ts";
import { type CheckedImage, openChecked, readHeaderArea } from "./checked-image.ts";
import {
  geometryOf,
  MAX_L1_BYTES,
  MAX_REFTABLE_BYTES,
  OUTSIDE_OF_FILES,
  parseHeader,
  type Qcow2Header,
} from "./header.ts";
import type { ImageFile } from "./image-file.ts";
import { L1_ENTRY_BYTES } from "./l2-entry.ts";
import { LostL1 } from "./lost-l1.ts";

const L1_SIZE_AT = 36;
const L1_OFFSET_AT = 40;
const REFTABLE_OFFSET_AT = 48;
const REFTABLE_CLUSTERS_AT = 56;
const FIELDS_END = 60;
const L1_ENTRIES_MAX = MAX_L1_BYTES / L1_ENTRY_BYTES;

/**
 * Puts the fields right. Settles to how many were not.
 * @throws BlockError IMAGE_CORRUPT when the L1 table is lost, with what that means; nothing was changed then.
 * As parseHeader where the header has other faults
 */
export async function mendPlaces(
  file: ImageFile,
  windowClusters: number,
  tell: (line: string) => void,
): Promise<number> {
  const area = await readHeaderArea(file);
  const clusterSize = 2 ** area.readUInt32BE(20);
  const before = Buffer.from(area.subarray(L1_SIZE_AT, FIELDS_END));
  const reftableBytes = area.readUInt32BE(REFTABLE_CLUSTERS_AT) * clusterSize;
  const lines: string[] = [];
  if (!isPlace(area, REFTABLE_OFFSET_AT, clusterSize) || reftableBytes > MAX_REFTABLE_BYTES) {
    lines.push("Repairing refcount table: it cannot be where the header says; refcounts are counted anew");
    area.fill(0, REFTABLE_OFFSET_AT, FIELDS_END);
  }
  const l1Fits = isPlace(area, L1_OFFSET_AT, clusterSize);
  const l1Size = area.readUInt32BE(L1_SIZE_AT);
  // Any L1 table that is none of the parser's business.
  area.writeUInt32BE(L1_ENTRIES_MAX, L1_SIZE_AT);
  if (!l1Fits) writeU64(area, OUTSIDE_OF_FILES, L1_OFFSET_AT);
  const header = parseHeader(area, file.size, { check: true });
  const entriesMin = Math.ceil(header.size / geometryOf(header).l2Span);
  const entries = l1Size < entriesMin || l1Size > L1_ENTRIES_MAX ? entriesMin : l1Size;
  if (entries !== l1Size) lines.push(`Repairing L1 table: it has ${entries} entries, not ${l1Size}`);
  if (entries > 0) {
    const offset = await placeOfL1(file, header, { entries, said: l1Size, windowClusters });
    if (offset !== header.l1TableOffset) lines.push(`Repairing L1 table: it was found at offset ${offset}`);
    writeU64(area, offset, L1_OFFSET_AT);
  }
  area.writeUInt32BE(entries, L1_SIZE_AT);
  const after = area.subarray(L1_SIZE_AT, FIELDS_END);
  if (after.equals(before)) return 0;
  await file.write(L1_SIZE_AT, after.length, after, 0);
  await file.flush();
  for (const line of lines) tell(line);
  return lines.length;
}

/** Whether the offset at `at` is one that the format allows, in the file or not. */
function isPlace(area: Buffer, at: number, clusterSize: number): boolean {
  return area.readUInt32BE(at) < 2 ** 31 && area.readUInt32BE(at + 4) % clusterSize === 0;
}

interface Wanted {
  readonly entries: number;
  /** Entries by the header. */
  readonly said: number;
  readonly windowClusters: number;
}

async function placeOfL1(file: ImageFile, header: Qcow2Header, wanted: Wanted): Promise<number> {
  const { image, isComplete } = await openWithoutL1(file, header);
  const { entries, said, windowClusters } = wanted;
  const lost = new LostL1(image, entries);
  const offset = await searchedPlace(
    lost,
    file,
    header.l1TableOffset,
    isComplete ? windowClusters : undefined,
  );
  if (said === 0 || said >= entries || (await lost.goesOn(offset, said))) return offset;
  const clusterSize = 2 ** header.clusterBits;
  throw new BlockError(
    "IMAGE_CORRUPT",
    `by the header the L1 table has ${said} entries, and a disk of ${header.size} bytes in clusters of ` +
      `${clusterSize} bytes needs ${entries}: one of the three is wrong, the table does not show which, and nothing ` +
      "was changed. Take a backup, or try other values in a copy (bytes 20 to 23: the cluster size as a power of 2; " +
      "24 to 31: the length of the disk; 36 to 39: the entries)",
  );
}

/** Settles to where the L1 table is. `windowClusters` unless it must not be searched for. */
async function searchedPlace(
  lost: LostL1,
  file: ImageFile,
  named: number,
  windowClusters: number | undefined,
): Promise<number> {
  if (await lost.believes(named)) return named;
  const found = windowClusters === undefined ? [] : await lost.find(windowClusters);
  if (found.length > 0 && (await lost.couldBeEmpty(named))) {
    throw new BlockError(
      "IMAGE_CORRUPT",
      `the L1 table at offset ${named}, where the header says, is that of an empty disk, and there is another one ` +
        `in the file, at offset ${found.join(", ")}: the disk was emptied, or the place is wrong; nothing was ` +
        `changed. Write one of them into the header (8 bytes at ${L1_OFFSET_AT}) of a copy and check what it shows; ` +
        "a repair of leaks alone gives up the other one",
    );
  }
  if (found.length === 1) return found[0]!;
  if (found.length > 1) {
    throw new BlockError(
      "IMAGE_CORRUPT",
      `the L1 table is not at offset ${named}, where the header says, and it could be any of those at offsets ` +
        `${found.join(", ")}: nothing was changed. Take a backup, or write one of them into the header ` +
        `(8 bytes at ${L1_OFFSET_AT}) of a copy and check what it shows`,
    );
  }
  if (named < file.size) {
    // An empty disk; or one whose table is damaged: its entries are mended, or given up, one by one.
    if (!(await lost.isSomethingElse(named))) return named;
    throw new BlockError(
      "IMAGE_CORRUPT",
      `the header says that the L1 table is at offset ${named}, where no entry could be one of it, and nothing ` +
        "else in the file looks like it: nothing of the disk can be found, and nothing was changed. Get a backup",
    );
  }
  throw new BlockError(
    "IMAGE_CORRUPT",
    `the header names no place in the file (${file.size} bytes) for the L1 table, and nothing there looks like ` +
      "it: nothing of the disk can be found, and nothing was changed. Get a longer copy of the file, or a backup",
  );
}

/** Not complete: without its lists of snapshots and bitmaps, which are broken too. */
async function openWithoutL1(
  file: ImageFile,
  header: Qcow2Header,
): Promise<{ image: CheckedImage; isComplete: boolean }> {
  const without = { ...header, l1Size: 0 };
  try {
    return { image: await openChecked(file, without), isComplete: true };
  } catch (error) {
    if (!(error instanceof BlockError) || error.code !== "IMAGE_CORRUPT") throw error;
    const bare = { ...without, snapshotCount: 0, bitmaps: undefined };
    return { image: await openChecked(file, bare), isComplete: false };
  }
}

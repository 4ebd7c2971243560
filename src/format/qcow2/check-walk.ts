// Walks everything in an image that refers to host clusters, counts the references, and reports entries that
// cannot be right. What counts as a corruption is what QEMU counts.

import { bitmapTableEntry } from "./bitmaps.ts";
import type { CheckTally } from "./check-report.ts";
import type { CheckedImage } from "./checked-image.ts";
import { MAX_L1_BYTES } from "./header.ts";
import {
  ClusterKind,
  COPIED_HIGH,
  clusterKind,
  compressedBytes,
  compressedOffset,
  entryOffset,
  L1_ENTRY_BYTES,
  L1_RESERVED_HIGH,
  L1_RESERVED_LOW,
  L2_RESERVED_HIGH,
  L2_RESERVED_LOW,
} from "./l2-entry.ts";
import type { ReferenceCounts } from "./reference-counts.ts";
import { SNAPSHOT_EXTRA_BYTES_MIN } from "./snapshots.ts";

/** Entries of an L1 or bitmap table that are read at once. */
const CHUNK_ENTRIES = 8192;

/** More visits of one table than L1 tables explain; a hostile image would have it read millions of times. */
const L2_VISITS_SPARE = 64;

/** One walk: the image, where to count, where to report. */
interface Walk {
  readonly image: CheckedImage;
  readonly counts: ReferenceCounts;
  /** What does not depend on the window is reported in the first walk only. */
  readonly tally: CheckTally | undefined;
  /** An L2 table that many more L1 entries point to than there are L1 tables is read no further time. */
  readonly l2VisitsMax: number;
  /** An offset that is not aligned counts for nothing, instead of for both clusters that it lies over. */
  readonly alignedOnly: boolean;
  readonly table: Buffer;
}

/**
 * Counts all references but those to the refcount blocks.
 * @throws BlockError what the host says of a read
 */
export async function countReferences(
  image: CheckedImage,
  counts: ReferenceCounts,
  tally: CheckTally,
  alignedOnly = false,
): Promise<void> {
  const { header, geometry, snapshots } = image;
  const first = counts.window.isFirst;
  const walk: Walk = {
    image,
    counts,
    tally: first ? tally : undefined,
    l2VisitsMax: snapshots.snapshots.length + L2_VISITS_SPARE,
    alignedOnly,
    table: Buffer.alloc(geometry.clusterSize),
  };
  if (first) checkSnapshotEntries(image, tally);
  counts.add(0, geometry.clusterSize);
  await walkL1(walk, header.l1TableOffset, header.l1Size, true);
  for (const snapshot of snapshots.snapshots) {
    const name = `snapshot ${snapshot.id} (${snapshot.name})`;
    if (snapshot.l1TableOffsetLow % geometry.clusterSize !== 0) {
      walk.tally?.corruption(
        `${name} l1_offset: L1 table is not cluster aligned; snapshot table entry corrupted`,
      );
    } else if (snapshot.l1Size > MAX_L1_BYTES / L1_ENTRY_BYTES) {
      walk.tally?.corruption(`${name} l1_size: L1 table is too large; snapshot table entry corrupted`);
    } else {
      await walkL1(walk, snapshot.l1TableOffset, snapshot.l1Size, false);
    }
  }
  counts.add(header.snapshotsOffset, snapshots.bytes);
}

/** Version 3 wants the size of the disk in each entry. */
function checkSnapshotEntries(image: CheckedImage, tally: CheckTally): void {
  if (image.header.version < 3) return;
  for (const [index, snapshot] of image.snapshots.snapshots.entries()) {
    if (snapshot.extraBytes < SNAPSHOT_EXTRA_BYTES_MIN) {
      tally.corruption(`snapshot table entry ${index} is incomplete`);
    }
  }
}

/** The refcount table itself; a rebuild counts all but this. */
export function countRefcountTable(image: CheckedImage, counts: ReferenceCounts): void {
  const { header, geometry } = image;
  counts.add(header.refcountTableOffset, header.refcountTableClusters * geometry.clusterSize);
}

/** Bitmap directory, tables and data. */
export async function countBitmaps(image: CheckedImage, counts: ReferenceCounts, tally: CheckTally) {
  const { header, geometry, file } = image;
  if (header.bitmaps === undefined) return;
  counts.add(header.bitmaps.directoryOffset, header.bitmaps.directoryBytes);
  for (const bitmap of image.bitmaps) {
    counts.add(bitmap.tableOffset, bitmap.tableEntries * 8);
    // Past the end of the file there are only zeros.
    const inFile = Math.max(0, Math.ceil((file.size - bitmap.tableOffset) / 8));
    await eachEntry(file, bitmap.tableOffset, Math.min(bitmap.tableEntries, inFile), (high, low) => {
      const entry = bitmapTableEntry(high, low, geometry.clusterSize);
      if (!entry.valid) {
        if (counts.window.isFirst) tally.corruption(`bitmap '${bitmap.name}' has a corrupted table entry`);
      } else if (entry.offset !== 0) counts.add(entry.offset, geometry.clusterSize);
    });
  }
}

/**
 * The refcount blocks, which must have been counted last: nothing else may refer to them.
 * Returns whether the refcounts have to be rebuilt from nothing.
 */
export function countRefcountBlocks(
  image: CheckedImage,
  counts: ReferenceCounts,
  tally: CheckTally,
): boolean {
  const { refcounts, geometry } = image;
  const clusterCount = Math.ceil(image.file.size / geometry.clusterSize);
  let rebuild = false;
  const report = (line: string) => {
    rebuild = true;
    if (counts.window.isFirst) tally.corruption(line);
  };
  for (let index = 0; index < refcounts.entryCount; index++) {
    const offset = refcounts.blockOffset(index);
    if (refcounts.hasReservedBits(index)) {
      report(`refcount table entry ${index} has reserved bits set`);
    } else if (offset === 0) {
      // Most of a long table, which is walked once for each window.
    } else if (offset % geometry.clusterSize !== 0) {
      report(`refcount block ${index} is not cluster aligned; refcount table entry corrupted`);
    } else if (offset / geometry.clusterSize >= clusterCount) {
      report(`refcount block ${index} is outside image`);
    } else {
      const cluster = offset / geometry.clusterSize;
      counts.add(offset, geometry.clusterSize);
      if (counts.covers(cluster) && counts.get(cluster) !== 1) {
        tally.corruption(`refcount block ${index} refcount=${counts.get(cluster)}`);
        rebuild = true;
      }
    }
  }
  return rebuild;
}

// --- mapping tables --------------------------------------------------------------------------------------

async function walkL1(walk: Walk, offset: number, entries: number, active: boolean): Promise<void> {
  const { counts, tally, image } = walk;
  const { clusterSize } = image.geometry;
  counts.add(offset, entries * L1_ENTRY_BYTES);
  // Past the end of the file there are only zeros.
  const inFile = Math.max(0, Math.ceil((image.file.size - offset) / L1_ENTRY_BYTES));
  await eachEntry(image.file, offset, Math.min(entries, inFile), (high, low) => {
    if ((high & L1_RESERVED_HIGH) !== 0 || (low & L1_RESERVED_LOW) !== 0) {
      tally?.corruption(`found L1 entry with reserved bits set: ${hex(high, low)}`);
    }
    if (high === 0 && low === 0) return;
    const l2Offset = entryOffset(high, low);
    if (walk.alignedOnly && l2Offset % clusterSize !== 0) return;
    counts.add(l2Offset, clusterSize);
    if (l2Offset % clusterSize !== 0) {
      tally?.corruption(
        `l2_offset=${l2Offset.toString(16)}: Table is not cluster aligned; L1 entry corrupted`,
      );
    }
    const cluster = Math.floor(l2Offset / clusterSize);
    if (l2Offset >= image.file.size) return;
    if (counts.covers(cluster) && counts.get(cluster) > walk.l2VisitsMax) return;
    return walkL2(walk, l2Offset, active);
  });
}

async function walkL2(walk: Walk, l2Offset: number, active: boolean): Promise<void> {
  const { geometry, file } = walk.image;
  const table = walk.table;
  await file.read(l2Offset, geometry.clusterSize, table, 0);
  let nextContiguous = 0;
  for (let at = 0; at < geometry.clusterSize; at += geometry.l2EntryBytes) {
    const high = table.readUInt32BE(at);
    const low = table.readUInt32BE(at + 4);
    const zeroBits = geometry.extended ? table.readUInt32BE(at + 8) : 0;
    const allocatedBits = geometry.extended ? table.readUInt32BE(at + 12) : 0;
    if (high === 0 && low === 0 && allocatedBits === 0) continue;
    const kind = clusterKind(high, low, geometry.extended);
    if (kind === ClusterKind.COMPRESSED) {
      walkCompressed(walk, high, low, active, (zeroBits | allocatedBits) !== 0);
      continue;
    }
    checkStandardEntry(walk, high, low, kind, zeroBits, allocatedBits);
    if (kind !== ClusterKind.NORMAL && kind !== ClusterKind.ZERO_ALLOCATED) continue;
    const offset = entryOffset(high, low);
    if (walk.alignedOnly && offset % geometry.clusterSize !== 0) continue;
    if (active && walk.tally !== undefined) {
      walk.tally.allocatedClusters++;
      if (nextContiguous !== 0 && offset !== nextContiguous) walk.tally.fragmentedClusters++;
    }
    nextContiguous = offset + geometry.clusterSize;
    walk.counts.add(offset, geometry.clusterSize);
  }
}

function checkStandardEntry(
  walk: Walk,
  high: number,
  low: number,
  kind: ClusterKind,
  zeroBits: number,
  allocatedBits: number,
): void {
  const { tally, image } = walk;
  if (tally === undefined) return;
  if ((high & L2_RESERVED_HIGH) !== 0 || (low & L2_RESERVED_LOW) !== 0) {
    tally.corruption(`found l2 entry with reserved bits set: ${hex(high, low)}`);
  }
  if (kind === ClusterKind.UNALLOCATED) {
    if (allocatedBits !== 0) {
      tally.corruption("Unallocated cluster has non-zero subcluster allocation map");
    }
  } else if (kind !== ClusterKind.ZERO_PLAIN) {
    const offset = entryOffset(high, low);
    if ((zeroBits & allocatedBits) !== 0) {
      tally.corruption(`offset=${offset.toString(16)}: Allocated cluster with corrupted subcluster bitmap`);
    }
    if (offset % image.geometry.clusterSize !== 0) {
      tally.corruption(`offset=${offset.toString(16)}: Cluster is not properly aligned; L2 entry corrupted.`);
    }
  }
}

function walkCompressed(walk: Walk, high: number, low: number, active: boolean, hasBitmap: boolean): void {
  const { tally, image, counts } = walk;
  const { clusterBits } = image.geometry;
  const offset = compressedOffset(high, low, clusterBits);
  if ((high & COPIED_HIGH) !== 0) {
    tally?.corruption(
      `coffset=0x${offset.toString(16)}: copied flag must never be set for compressed clusters`,
    );
  }
  if (hasBitmap) {
    tally?.corruption(
      `compressed cluster with non-zero subcluster allocation bitmap, entry=${hex(high, low)}`,
    );
    return;
  }
  counts.add(offset, compressedBytes(high, low, clusterBits));
  if (!active || tally === undefined) return;
  tally.allocatedClusters++;
  tally.compressedClusters++;
  tally.fragmentedClusters++;
}

async function eachEntry(
  file: CheckedImage["file"],
  offset: number,
  entries: number,
  visit: (high: number, low: number) => Promise<void> | void,
): Promise<void> {
  const chunk = Buffer.alloc(Math.min(entries, CHUNK_ENTRIES) * 8);
  for (let first = 0; first < entries; first += CHUNK_ENTRIES) {
    const count = Math.min(CHUNK_ENTRIES, entries - first);
    await file.read(offset + first * 8, count * 8, chunk, 0);
    for (let i = 0; i < count; i++) {
      const high = chunk.readUInt32BE(i * 8);
      const low = chunk.readUInt32BE(i * 8 + 4);
      if (high === 0 && low === 0) continue;
      const done = visit(high, low);
      if (done !== undefined) await done;
    }
  }
}

function hex(high: number, low: number): string {
  return ((BigInt(high) << 32n) | BigInt(low)).toString(16);
}

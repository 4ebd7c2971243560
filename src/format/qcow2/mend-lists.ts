// Repairs the lists of snapshots and of bitmaps, where a repair is told to mend errors.
//
//   snapshots   those whose entry can be read and whose L1 table can be, are kept, in a new table behind
//               everything else; the header is switched to it in one sector. The old table is not touched.
//   bitmaps     they only tell what has changed since a backup: where one is broken, all are dropped, by
//               their feature bit. The next backup is a full one.

import { writeU64 } from "../../base/bytes.ts";
import { BlockError, errorMessage } from "../../base/errors.ts";
import { alignUp, divideUp, MiB } from "../../base/units.ts";
import { bitmapTableEntry, readBitmaps } from "./bitmaps.ts";
import {
  AUTOCLEAR_BITMAPS,
  FEATURES_OFFSET,
  MAX_L1_BYTES,
  MAX_SNAPSHOTS,
  type Qcow2Header,
  SNAPSHOT_ENTRY_BYTES,
  serializeFeatures,
} from "./header.ts";
import type { ImageFile } from "./image-file.ts";
import { L1_ENTRY_BYTES } from "./l2-entry.ts";
import { parseSnapshots, SNAPSHOT_EXTRA_BYTES_MIN, type Snapshot } from "./snapshots.ts";

/** In the header: snapshots (4 bytes), offset of their table (8). */
const SNAPSHOT_FIELDS_AT = 60;
/** The longest entry that can be read: fixed part, extra data, id and name. */
const ENTRY_BYTES_MAX = SNAPSHOT_ENTRY_BYTES + 1024 + 2 * 65535;
/** QEMU's bound on the table. */
const TABLE_BYTES_MAX = 64 * MiB;
const BITMAP_CHUNK_ENTRIES = 8192;

type Tell = (line: string) => void;

/**
 * Mends both lists. The header tells of them afterwards.
 * @throws BlockError what the host says
 */
export async function mendLists(file: ImageFile, header: Qcow2Header, tell: Tell): Promise<void> {
  await mendBitmaps(file, header, tell);
  await mendSnapshots(file, header, () => true, tell);
}

/** Keeps the snapshots that `keep` wants and whose tables can be, in a table that is right. */
export async function mendSnapshots(
  file: ImageFile,
  header: Qcow2Header,
  keep: (snapshot: Snapshot) => boolean,
  tell: Tell,
): Promise<void> {
  const count = header.snapshotCount;
  if (count === 0) return;
  const entries = await readEntries(file, header);
  const kept = entries.filter(({ snapshot }) => keep(snapshot) && isPossible(file, header, snapshot));
  const complete =
    header.version < 3 || entries.every(({ snapshot }) => snapshot.extraBytes >= SNAPSHOT_EXTRA_BYTES_MIN);
  if (kept.length === count && complete) return;
  for (const { snapshot } of entries) {
    if (!kept.some((entry) => entry.snapshot === snapshot)) {
      tell(`Repairing snapshot ${snapshot.id} (${snapshot.name}): its L1 table cannot be; it is dropped`);
    }
  }
  if (entries.length < count) {
    tell(`Repairing snapshot table: ${count - entries.length} of ${count} entries cannot be read; dropped`);
  }
  if (!complete) tell("Repairing snapshot table: entries are incomplete");
  await writeSnapshots(file, header, kept);
}

interface Entry {
  readonly snapshot: Snapshot;
  readonly bytes: Buffer;
}

/** The entries up to the first one that cannot be read: where the next one begins is not known then. */
async function readEntries(file: ImageFile, header: Qcow2Header): Promise<Entry[]> {
  const entries: Entry[] = [];
  const { snapshotsOffset } = header;
  if (!Number.isSafeInteger(snapshotsOffset) || snapshotsOffset % 2 ** header.clusterBits !== 0) return [];
  const area = Buffer.alloc(ENTRY_BYTES_MAX);
  let at = snapshotsOffset;
  for (let i = 0; i < Math.min(header.snapshotCount, MAX_SNAPSHOTS); i++) {
    at = alignUp(at, 8);
    if (at >= file.size || at - snapshotsOffset > TABLE_BYTES_MAX) break;
    await file.read(at, area.length, area, 0);
    const entry = parseOne(area);
    if (entry === undefined) break;
    entries.push(entry);
    at += entry.bytes.length;
  }
  return entries;
}

function parseOne(area: Buffer): Entry | undefined {
  try {
    const table = parseSnapshots(area, 1);
    if (table === undefined) return undefined;
    return { snapshot: table.snapshots[0]!, bytes: Buffer.from(area.subarray(0, table.bytes)) };
  } catch (error) {
    if (error instanceof BlockError) return undefined;
    throw error;
  }
}

function isPossible(file: ImageFile, header: Qcow2Header, { l1TableOffset, l1Size }: Snapshot): boolean {
  const clusterSize = 2 ** header.clusterBits;
  if (l1TableOffset % clusterSize !== 0 || l1TableOffset < clusterSize) return false;
  if (l1Size > MAX_L1_BYTES / L1_ENTRY_BYTES) return false;
  return l1TableOffset + l1Size * L1_ENTRY_BYTES <= alignUp(file.size, clusterSize);
}

async function writeSnapshots(file: ImageFile, header: Qcow2Header, kept: readonly Entry[]): Promise<void> {
  const clusterSize = 2 ** header.clusterBits;
  const parts = kept.flatMap((entry) => {
    const bytes = header.version < 3 ? entry.bytes : completed(entry, header.size);
    return [bytes, Buffer.alloc(alignUp(bytes.length, 8) - bytes.length)];
  });
  const table = Buffer.concat(parts);
  const offset = table.length === 0 ? 0 : alignUp(file.size, clusterSize);
  if (table.length > 0) {
    await file.write(offset, table.length, table, 0);
    await file.truncate(offset + alignUp(table.length, clusterSize));
    await file.flush();
  }
  const fields = Buffer.alloc(12);
  fields.writeUInt32BE(kept.length, 0);
  writeU64(fields, offset, 4);
  await file.write(SNAPSHOT_FIELDS_AT, fields.length, fields, 0);
  await file.flush();
  header.snapshotCount = kept.length;
  header.snapshotsOffset = offset;
}

/** The entry with the extra data that version 3 demands. */
function completed({ snapshot, bytes }: Entry, diskSize: number): Buffer {
  if (snapshot.extraBytes >= SNAPSHOT_EXTRA_BYTES_MIN) return bytes;
  const extra = Buffer.alloc(SNAPSHOT_EXTRA_BYTES_MIN);
  writeU64(extra, Number.isFinite(snapshot.vmStateBytes) ? snapshot.vmStateBytes : 0, 0);
  writeU64(extra, diskSize, 8);
  const head = Buffer.from(bytes.subarray(0, SNAPSHOT_ENTRY_BYTES));
  head.writeUInt32BE(extra.length, 36);
  return Buffer.concat([head, extra, bytes.subarray(SNAPSHOT_ENTRY_BYTES + snapshot.extraBytes)]);
}

// --- bitmaps ---------------------------------------------------------------------------------------------

async function mendBitmaps(file: ImageFile, header: Qcow2Header, tell: Tell): Promise<void> {
  if (header.bitmaps === undefined) return;
  const problem = await findBitmapProblem(file, header);
  if (problem === undefined) return;
  tell(`Repairing bitmaps: ${problem}; all of them are dropped`);
  header.autoclear &= ~AUTOCLEAR_BITMAPS;
  delete header.bitmaps;
  const features = serializeFeatures(header);
  await file.write(FEATURES_OFFSET, features.length, features, 0);
  await file.flush();
}

async function findBitmapProblem(file: ImageFile, header: Qcow2Header): Promise<string | undefined> {
  const clusterSize = 2 ** header.clusterBits;
  const end = divideUp(file.size, clusterSize) * clusterSize;
  const { directoryOffset, directoryBytes } = header.bitmaps!;
  if (directoryOffset + directoryBytes > end) return "their directory ends past the end of the file";
  try {
    for (const { name, tableOffset, tableEntries } of await readBitmaps(file, header)) {
      if (tableOffset + tableEntries * 8 > end) return `the table of '${name}' ends past the end of the file`;
      if (!(await isTableRight(file, tableOffset, tableEntries, { clusterSize, end }))) {
        return `'${name}' has a corrupted table entry`;
      }
    }
  } catch (error) {
    if (!(error instanceof BlockError) || error.code !== "IMAGE_CORRUPT") throw error;
    return errorMessage(error);
  }
  return undefined;
}

async function isTableRight(
  file: ImageFile,
  offset: number,
  entries: number,
  { clusterSize, end }: { clusterSize: number; end: number },
): Promise<boolean> {
  const chunk = Buffer.alloc(Math.min(entries, BITMAP_CHUNK_ENTRIES) * 8);
  for (let first = 0; first < entries; first += BITMAP_CHUNK_ENTRIES) {
    const count = Math.min(BITMAP_CHUNK_ENTRIES, entries - first);
    await file.read(offset + first * 8, count * 8, chunk, 0);
    for (let i = 0; i < count; i++) {
      const entry = bitmapTableEntry(chunk.readUInt32BE(i * 8), chunk.readUInt32BE(i * 8 + 4), clusterSize);
      if (!entry.valid || (entry.offset !== 0 && entry.offset + clusterSize > end)) return false;
    }
  }
  return true;
}

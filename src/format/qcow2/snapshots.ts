// The table of internal snapshots. (Specification: "Snapshots".) Entries have variable length, so the table
// ends where its last entry does:
//
//   | L1 offset 8 | L1 entries 4 | id length 2 | name length 2 | date 8 | VM clock 8 | VM state 4 |
//   | extra length 4 | extra: VM state 8, disk size 8, icount 8, more | id | name | padding to 8 |

import { readU64OrInfinity } from "../../base/bytes.ts";
import { BlockError } from "../../base/errors.ts";
import { alignUp, KiB, MiB } from "../../base/units.ts";
import { MAX_SNAPSHOTS, type Qcow2Header, SNAPSHOT_ENTRY_BYTES } from "./header.ts";
import type { ImageFile } from "./image-file.ts";

/** QEMU's bounds: extra data of one entry, and the whole table. */
const EXTRA_DATA_BYTES_MAX = 1024;
const TABLE_BYTES_MAX = 64 * MiB;
const FIRST_READ_BYTES = 64 * KiB;
/** What a version 3 entry must have: VM state and disk size. */
export const SNAPSHOT_EXTRA_BYTES_MIN = 16;

export interface Snapshot {
  readonly id: string;
  readonly name: string;
  readonly l1TableOffset: number;
  /** Its low half, for an offset that is nonsense: whether it is aligned is told by it alone. */
  readonly l1TableOffsetLow: number;
  /** Entries. */
  readonly l1Size: number;
  readonly dateSeconds: number;
  readonly dateNanoseconds: number;
  readonly vmClockNanoseconds: bigint;
  readonly vmStateBytes: number;
  /** Length of the virtual disk when it was taken, in bytes; undefined where the entry does not say. */
  readonly diskSize: number | undefined;
  /** Guest instructions until then; undefined where not recorded. */
  readonly instructionCount: bigint | undefined;
  readonly extraBytes: number;
}

export interface SnapshotTable {
  readonly snapshots: readonly Snapshot[];
  /** Length of the table in the file. */
  readonly bytes: number;
}

/**
 * Reads the snapshot table.
 * @throws BlockError IMAGE_CORRUPT when it is out of bounds; what the host says
 */
export async function readSnapshots(file: ImageFile, header: Qcow2Header): Promise<SnapshotTable> {
  if (header.snapshotCount === 0) return { snapshots: [], bytes: 0 };
  if (header.snapshotCount > MAX_SNAPSHOTS) throw corrupt("Snapshot table too large");
  if (!Number.isFinite(header.snapshotsOffset) || header.snapshotsOffset % 2 ** header.clusterBits !== 0) {
    throw corrupt("Snapshot table offset invalid");
  }
  // How long the table is shows while it is parsed; most are a few hundred bytes.
  for (let bytes = FIRST_READ_BYTES; ; bytes *= 8) {
    const area = Buffer.alloc(Math.min(bytes, TABLE_BYTES_MAX));
    await file.read(header.snapshotsOffset, area.length, area, 0);
    const table = parseSnapshots(area, header.snapshotCount);
    if (table !== undefined) return table;
    if (area.length === TABLE_BYTES_MAX) throw corrupt("Snapshot table is too big");
  }
}

/**
 * Parses `count` entries; undefined when they do not end inside `area`.
 * @throws BlockError IMAGE_CORRUPT
 */
export function parseSnapshots(area: Buffer, count: number): SnapshotTable | undefined {
  const snapshots: Snapshot[] = [];
  let at = 0;
  for (let index = 0; index < count; index++) {
    at = alignUp(at, 8);
    if (at + SNAPSHOT_ENTRY_BYTES > area.length) return undefined;
    const extraBytes = area.readUInt32BE(at + 36);
    if (extraBytes > EXTRA_DATA_BYTES_MAX) {
      throw corrupt(`Too much extra metadata in snapshot table entry ${index}`);
    }
    const idBytes = area.readUInt16BE(at + 12);
    const nameBytes = area.readUInt16BE(at + 14);
    const end = at + SNAPSHOT_ENTRY_BYTES + extraBytes + idBytes + nameBytes;
    if (end > area.length) return undefined;
    snapshots.push(parseEntry(area, at, { extraBytes, idBytes, nameBytes }));
    at = end;
  }
  return { snapshots, bytes: at };
}

function parseEntry(
  area: Buffer,
  at: number,
  lengths: { extraBytes: number; idBytes: number; nameBytes: number },
): Snapshot {
  const { extraBytes, idBytes, nameBytes } = lengths;
  const extraAt = at + SNAPSHOT_ENTRY_BYTES;
  const idAt = extraAt + extraBytes;
  return {
    l1TableOffset: readU64OrInfinity(area, at),
    l1TableOffsetLow: area.readUInt32BE(at + 4),
    l1Size: area.readUInt32BE(at + 8),
    dateSeconds: area.readUInt32BE(at + 16),
    dateNanoseconds: area.readUInt32BE(at + 20),
    vmClockNanoseconds: area.readBigUInt64BE(at + 24),
    vmStateBytes: extraBytes >= 8 ? readU64OrInfinity(area, extraAt) : area.readUInt32BE(at + 32),
    diskSize: extraBytes >= 16 ? readU64OrInfinity(area, extraAt + 8) : undefined,
    instructionCount: extraBytes >= 24 ? knownCount(area.readBigUInt64BE(extraAt + 16)) : undefined,
    extraBytes,
    id: area.toString("utf8", idAt, idAt + idBytes),
    name: area.toString("utf8", idAt + idBytes, idAt + idBytes + nameBytes),
  };
}

/** All ones: not recorded. */
function knownCount(value: bigint): bigint | undefined {
  return value === 0xffff_ffff_ffff_ffffn ? undefined : value;
}

/** A snapshot in the members of QMP's SnapshotInfo. */
export function snapshotInfo(snapshot: Snapshot): Record<string, unknown> {
  const clock = snapshot.vmClockNanoseconds;
  return {
    id: snapshot.id,
    name: snapshot.name,
    "vm-state-size": snapshot.vmStateBytes,
    "date-sec": snapshot.dateSeconds,
    "date-nsec": snapshot.dateNanoseconds,
    "vm-clock-sec": Number(clock / 1_000_000_000n),
    "vm-clock-nsec": Number(clock % 1_000_000_000n),
    ...(snapshot.instructionCount === undefined ? {} : { icount: Number(snapshot.instructionCount) }),
  };
}

function corrupt(message: string): BlockError {
  return new BlockError("IMAGE_CORRUPT", message);
}

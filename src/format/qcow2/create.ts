// Makes a new image.
//
//   | header | refcount table | refcount blocks | L1 table | preallocation: L2 tables | guest clusters |
//
//   1. Options are checked before the file is touched, with QEMU's limits and words.
//   2. The header is written last: what a crash leaves behind is not a qcow2 image, never half of one.
//   3. Tables are made a cluster at a time: memory does not grow with the size of the disk.

import { BlockError } from "../../base/errors.ts";
import { alignUp, divideUp, isPowerOfTwo, KiB, MiB } from "../../base/units.ts";
import {
  COMPATIBLE_LAZY_REFCOUNTS,
  CompressionType,
  type Geometry,
  geometryOf,
  Incompatible,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MAX_REFTABLE_BYTES,
  MIN_CLUSTER_BITS,
  type Qcow2Header,
} from "./header.ts";
import { featureNameTable } from "./header-extensions.ts";
import type { ImageFile } from "./image-file.ts";
import { entryHigh, entryLow, L1_ENTRY_BYTES, SUBCLUSTERS } from "./l2-entry.ts";
import { setRefcount } from "./refcount-width.ts";
import { serializeWithMark } from "./use-marker.ts";

export type Preallocation = "off" | "metadata" | "falloc" | "full";

/** What a new image is to be. Sizes in bytes. */
export interface CreateOptions {
  /** Rounded up to a multiple of 512. */
  readonly size: number;
  /** Default 64 KiB. */
  readonly clusterSize?: number;
  /** Default 3. */
  readonly version?: 2 | 3;
  /** Default 16. */
  readonly refcountBits?: number;
  readonly lazyRefcounts?: boolean;
  readonly extendedL2?: boolean;
  readonly compressionType?: "zlib" | "zstd";
  /** The name as it is to stand in the image. */
  readonly backingFile?: string;
  readonly backingFormat?: string;
  readonly preallocation?: Preallocation;
}

const DEFAULT_CLUSTER_SIZE = 64 * KiB;
/** QEMU leaves the feature names away where clusters are too small for them. */
const FEATURE_NAMES_CLUSTER_MIN = 4 * KiB;
const WRITE_BYTES_MAX = 2 * MiB;

/** Clusters of a new image, by kind, in the order of the file. */
interface Layout {
  readonly refcountTableClusters: number;
  readonly refcountBlocks: number;
  readonly l1Clusters: number;
  readonly l2Tables: number;
  readonly dataClusters: number;
  readonly total: number;
}

/**
 * Writes a new image into `file`, whose content is lost.
 * @throws BlockError EINVAL for options that QEMU would refuse; what the host says
 */
export async function createQcow2(file: ImageFile, options: CreateOptions): Promise<void> {
  const header = newHeader(options);
  const geometry = geometryOf(header);
  const preallocation = options.preallocation ?? "off";
  const layout = planLayout(header, geometry, preallocation !== "off");
  header.refcountTableOffset = geometry.clusterSize;
  header.refcountTableClusters = layout.refcountTableClusters;
  const l1Cluster = 1 + layout.refcountTableClusters + layout.refcountBlocks;
  header.l1TableOffset = header.l1Size === 0 ? 0 : l1Cluster * geometry.clusterSize;
  const headerArea = serializeWithMark(header);

  await file.truncate(0);
  await file.truncate(layout.total * geometry.clusterSize);
  await writeRefcounts(file, geometry, header.refcountOrder, layout);
  if (layout.l2Tables > 0) await preallocate(file, geometry, layout, preallocation);
  await file.flush();
  await file.write(0, headerArea.length, headerArea, 0);
  await file.flush();
}

/**
 * The header that these options ask for, without its tables.
 * @throws BlockError EINVAL with QEMU's words
 */
export function newHeader(options: CreateOptions): Qcow2Header {
  checkOptions(options);
  const clusterSize = options.clusterSize ?? DEFAULT_CLUSTER_SIZE;
  const version = options.version ?? 3;
  const compressionType = options.compressionType === "zstd" ? CompressionType.ZSTD : CompressionType.ZLIB;
  const incompatible =
    (compressionType === CompressionType.ZLIB ? 0 : Incompatible.COMPRESSION) |
    (options.extendedL2 === true ? Incompatible.EXTENDED_L2 : 0);
  const clusterBits = Math.log2(clusterSize);
  const refcountOrder = Math.log2(options.refcountBits ?? 16);
  const size = alignUp(options.size, 512);
  const l1Size = divideUp(size, geometryOf({ clusterBits, incompatible, refcountOrder }).l2Span);
  if (l1Size * L1_ENTRY_BYTES > MAX_L1_BYTES || !Number.isSafeInteger(size)) {
    throw refused("The image size is too large for file format 'qcow2' (try using a larger cluster size)");
  }
  return {
    version,
    clusterBits,
    size,
    l1TableOffset: 0,
    l1Size,
    refcountTableOffset: 0,
    refcountTableClusters: 0,
    snapshotsOffset: 0,
    snapshotCount: 0,
    incompatible,
    compatible: options.lazyRefcounts === true ? COMPATIBLE_LAZY_REFCOUNTS : 0n,
    autoclear: 0n,
    refcountOrder,
    compressionType,
    unknownFields: Buffer.alloc(0),
    backingFile: options.backingFile,
    backingFormat: options.backingFormat,
    bitmaps: undefined,
    extensions: version === 3 && clusterSize >= FEATURE_NAMES_CLUSTER_MIN ? [featureNameTable()] : [],
  };
}

function checkOptions(options: CreateOptions): void {
  if (!(options.size >= 0)) throw refused("Invalid image size specified");
  checkVersionNeeds(options);
  checkClusterSize(options.clusterSize ?? DEFAULT_CLUSTER_SIZE, options.extendedL2 === true);
  const preallocation = options.preallocation ?? "off";
  if (!["off", "metadata", "falloc", "full"].includes(preallocation)) {
    throw refused(`Parameter 'preallocation' does not accept value '${preallocation}'`);
  }
  if (options.backingFile !== undefined && preallocation !== "off" && options.extendedL2 !== true) {
    throw refused("Backing file and preallocation can only be used at the same time if extended_l2 is on");
  }
  if (options.backingFormat !== undefined && options.backingFile === undefined) {
    throw refused("Backing format cannot be used without backing file");
  }
  const refcountBits = options.refcountBits ?? 16;
  if (refcountBits > 64 || !isPowerOfTwo(refcountBits)) {
    throw refused("Refcount width must be a power of two and may not exceed 64 bits");
  }
  if (options.version === 2 && refcountBits !== 16) {
    throw refused(
      "Different refcount widths than 16 bits require compatibility level 1.1 or above " +
        "(use version=v3 or greater)",
    );
  }
}

function checkVersionNeeds(options: CreateOptions): void {
  const version: number = options.version ?? 3;
  if (version === 3) return;
  if (version !== 2) throw refused(`Parameter 'version' does not accept value 'v${version}'`);
  const needs =
    options.extendedL2 === true
      ? "Extended L2 entries are only supported"
      : options.lazyRefcounts === true
        ? "Lazy refcounts only supported"
        : options.compressionType === "zstd"
          ? "Non-zlib compression type is only supported"
          : undefined;
  if (needs !== undefined) {
    throw refused(`${needs} with compatibility level 1.1 and above (use version=v3 or greater)`);
  }
}

function checkClusterSize(clusterSize: number, extendedL2: boolean): void {
  const min = 2 ** MIN_CLUSTER_BITS;
  const max = 2 ** MAX_CLUSTER_BITS;
  if (clusterSize < min || clusterSize > max || !isPowerOfTwo(clusterSize)) {
    throw refused(`Cluster size must be a power of two between ${min} and ${max / KiB}k`);
  }
  if (extendedL2 && clusterSize < min * SUBCLUSTERS) {
    throw refused(
      `Extended L2 entries are only supported with cluster sizes of at least ${min * SUBCLUSTERS} bytes`,
    );
  }
}

/**
 * The refcount blocks cover themselves too, so the plan is repeated until it holds all of its own clusters.
 */
function planLayout(header: Qcow2Header, geometry: Geometry, preallocated: boolean): Layout {
  const l1Clusters = divideUp(header.l1Size * L1_ENTRY_BYTES, geometry.clusterSize);
  const l2Tables = preallocated ? header.l1Size : 0;
  const dataClusters = preallocated ? divideUp(header.size, geometry.clusterSize) : 0;
  const rest = 1 + l1Clusters + l2Tables + dataClusters;
  let refcountBlocks = 1;
  let refcountTableClusters = 1;
  for (;;) {
    const total = rest + refcountBlocks + refcountTableClusters;
    const blocks = divideUp(total, geometry.refcountBlockEntries);
    const tableClusters = divideUp(blocks * 8, geometry.clusterSize);
    if (blocks === refcountBlocks && tableClusters === refcountTableClusters) {
      if (tableClusters * geometry.clusterSize > MAX_REFTABLE_BYTES) {
        throw refused("The image is too large for its refcounts; use larger clusters or narrower refcounts");
      }
      return { refcountTableClusters, refcountBlocks, l1Clusters, l2Tables, dataClusters, total };
    }
    refcountBlocks = Math.max(blocks, refcountBlocks);
    refcountTableClusters = Math.max(tableClusters, refcountTableClusters);
  }
}

async function writeRefcounts(file: ImageFile, geometry: Geometry, order: number, layout: Layout) {
  const { clusterSize, refcountBlockEntries } = geometry;
  const firstBlock = 1 + layout.refcountTableClusters;
  await writeTable(file, clusterSize, clusterSize, layout.refcountBlocks, 8, (table, at, index) => {
    writeEntry(table, at, (firstBlock + index) * clusterSize, false);
  });
  const block = Buffer.alloc(clusterSize);
  for (let index = 0; index < layout.refcountBlocks; index++) {
    const used = Math.min(layout.total - index * refcountBlockEntries, refcountBlockEntries);
    block.fill(0);
    for (let entry = 0; entry < used; entry++) setRefcount(block, order, entry, 1);
    await file.write((firstBlock + index) * clusterSize, clusterSize, block, 0);
  }
}

/** L1 and L2 tables that give every guest cluster its place. Subclusters stay unallocated, as in QEMU. */
async function preallocate(file: ImageFile, geometry: Geometry, layout: Layout, mode: Preallocation) {
  const { clusterSize, l2EntryBytes } = geometry;
  const l1Offset = (1 + layout.refcountTableClusters + layout.refcountBlocks) * clusterSize;
  const l2Offset = l1Offset + layout.l1Clusters * clusterSize;
  const dataOffset = l2Offset + layout.l2Tables * clusterSize;
  await writeTable(file, clusterSize, l1Offset, layout.l2Tables, L1_ENTRY_BYTES, (table, at, index) => {
    writeEntry(table, at, l2Offset + index * clusterSize, true);
  });
  await writeTable(file, clusterSize, l2Offset, layout.dataClusters, l2EntryBytes, (table, at, index) => {
    writeEntry(table, at, dataOffset + index * clusterSize, true);
  });
  const dataBytes = layout.dataClusters * clusterSize;
  if (mode === "falloc") await file.writeZeroes(dataOffset, dataBytes, 0);
  if (mode === "full") await writeZeros(file, dataOffset, dataBytes);
}

function writeEntry(table: Buffer, at: number, offset: number, copied: boolean): void {
  table.writeUInt32BE(entryHigh(offset, copied), at);
  table.writeUInt32BE(entryLow(offset), at + 4);
}

async function writeTable(
  file: ImageFile,
  clusterSize: number,
  offset: number,
  entries: number,
  entryBytes: number,
  fill: (table: Buffer, at: number, index: number) => void,
): Promise<void> {
  const perCluster = clusterSize / entryBytes;
  const table = Buffer.alloc(clusterSize);
  for (let first = 0; first < entries; first += perCluster) {
    table.fill(0);
    const count = Math.min(perCluster, entries - first);
    for (let i = 0; i < count; i++) fill(table, i * entryBytes, first + i);
    await file.write(offset + (first / perCluster) * clusterSize, clusterSize, table, 0);
  }
}

async function writeZeros(file: ImageFile, offset: number, bytes: number): Promise<void> {
  const zeros = Buffer.alloc(Math.min(bytes, WRITE_BYTES_MAX));
  for (let done = 0; done < bytes; done += zeros.length) {
    await file.write(offset + done, Math.min(zeros.length, bytes - done), zeros, 0);
  }
}

function refused(message: string): BlockError {
  return new BlockError("EINVAL", message);
}

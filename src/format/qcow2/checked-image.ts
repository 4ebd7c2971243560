// What a check knows of an image before it begins to count, and its way to the refcounts on disk.

import { BlockError, errorMessage } from "../../base/errors.ts";
import { MiB } from "../../base/units.ts";
import { type Bitmap, readBitmaps } from "./bitmaps.ts";
import { type Geometry, geometryOf, headerAreaBytes, parseHeader, type Qcow2Header } from "./header.ts";
import type { ImageFile } from "./image-file.ts";
import { REFTABLE_RESERVED_LOW, reftableOffset } from "./l2-entry.ts";
import { getRefcount } from "./refcount-width.ts";
import { readSnapshots, type SnapshotTable } from "./snapshots.ts";

/** Refcount blocks that are kept for look-ups out of order. */
const BLOCK_CACHE_BYTES = 8 * MiB;

export interface CheckedImage {
  readonly file: ImageFile;
  readonly header: Qcow2Header;
  readonly geometry: Geometry;
  readonly snapshots: SnapshotTable;
  readonly bitmaps: readonly Bitmap[];
  readonly refcounts: RefcountsOnDisk;
}

/**
 * Reads the header for a check.
 * @throws BlockError as parseHeader; what the host says
 */
export async function readCheckedHeader(file: ImageFile): Promise<Qcow2Header> {
  return parseHeader(await readHeaderArea(file), file.size, { check: true });
}

/** The bytes that it is parsed from. @throws BlockError when it is no qcow2 header of a known version */
export async function readHeaderArea(file: ImageFile): Promise<Buffer> {
  const start = Buffer.alloc(512);
  await file.read(0, 512, start, 0);
  const area = Buffer.alloc(headerAreaBytes(start));
  await file.read(0, area.length, area, 0);
  return area;
}

/**
 * Reads everything that a check needs at hand.
 * @throws BlockError IMAGE_CORRUPT when the snapshot table or the bitmap directory is broken; what the host
 * says
 */
export async function openChecked(file: ImageFile, header: Qcow2Header): Promise<CheckedImage> {
  const geometry = geometryOf(header);
  const refcounts = await RefcountsOnDisk.open(file, header, geometry);
  const bitmaps = await readBitmaps(file, header);
  let snapshots: SnapshotTable;
  try {
    snapshots = await readSnapshots(file, header);
  } catch (error) {
    throw new BlockError("IMAGE_CORRUPT", `failed to read the snapshot table: ${errorMessage(error)}`, error);
  }
  return { file, header, geometry, snapshots, bitmaps, refcounts };
}

/** The refcount table and, a few at a time, its blocks. */
export class RefcountsOnDisk {
  /** The table's entries as pairs of halves. */
  readonly table: Uint32Array;
  readonly entryCount: number;
  readonly #file: ImageFile;
  readonly #geometry: Geometry;
  readonly #order: number;
  readonly #cache = new Map<number, Buffer>();
  readonly #cachedMax: number;

  static async open(file: ImageFile, header: Qcow2Header, geometry: Geometry): Promise<RefcountsOnDisk> {
    const bytes = header.refcountTableClusters * geometry.clusterSize;
    const table = Buffer.alloc(bytes);
    // An offset past the end of the file may be more than the host takes.
    if (header.refcountTableOffset < file.size) await file.read(header.refcountTableOffset, bytes, table, 0);
    return new RefcountsOnDisk(file, geometry, header.refcountOrder, table);
  }

  private constructor(file: ImageFile, geometry: Geometry, order: number, table: Buffer) {
    this.#file = file;
    this.#geometry = geometry;
    this.#order = order;
    this.#cachedMax = Math.max(2, BLOCK_CACHE_BYTES / geometry.clusterSize);
    this.entryCount = table.length / 8;
    this.table = new Uint32Array(this.entryCount * 2);
    for (let i = 0; i < this.table.length; i++) this.table[i] = table.readUInt32BE(i * 4);
  }

  /** Offset of refcount block `index`, 0 where there is none. */
  blockOffset(index: number): number {
    if (index >= this.entryCount) return 0;
    return reftableOffset(this.table[index * 2]!, this.table[index * 2 + 1]!);
  }

  hasReservedBits(index: number): boolean {
    return (this.table[index * 2 + 1]! & REFTABLE_RESERVED_LOW) !== 0;
  }

  /** Whether a block can be read at its place at all: inside the file or not. */
  isUsable(index: number): boolean {
    const offset = this.blockOffset(index);
    return offset % this.#geometry.clusterSize === 0 && offset < 2 ** 63;
  }

  /** Refcount block `index`; undefined where there is none. Valid until the next call. */
  async block(index: number): Promise<Buffer | undefined> {
    const offset = this.blockOffset(index);
    if (offset === 0) return undefined;
    let block = this.#cache.get(index);
    if (block !== undefined) return block;
    block = Buffer.alloc(this.#geometry.clusterSize);
    // Past the end of the file there are only zeros; an offset there may be more than the host takes.
    if (offset < this.#file.size) await this.#file.read(offset, block.length, block, 0);
    if (this.#cache.size >= this.#cachedMax) this.#cache.delete(this.#cache.keys().next().value!);
    this.#cache.set(index, block);
    return block;
  }

  /** Refcount of a cluster; undefined where its block's place cannot be right. */
  async get(cluster: number): Promise<number | undefined> {
    const index = Math.floor(cluster / this.#geometry.refcountBlockEntries);
    if (index >= this.entryCount) return 0;
    if (!this.isUsable(index)) return undefined;
    const block = await this.block(index);
    return block === undefined ? 0 : this.entry(block, cluster);
  }

  /** As `get`, when its block is cached; so that a walk over a table needs no promise for each entry. */
  atHand(cluster: number): number | undefined {
    const block = this.#cache.get(Math.floor(cluster / this.#geometry.refcountBlockEntries));
    return block === undefined ? undefined : this.entry(block, cluster);
  }

  /** The refcount of `cluster` in its block. */
  entry(block: Buffer, cluster: number): number {
    return getRefcount(block, this.#order, cluster % this.#geometry.refcountBlockEntries);
  }

  /** Writes block `index` back; it was changed in place. */
  async writeBlock(index: number, block: Buffer): Promise<void> {
    await this.#file.write(this.blockOffset(index), block.length, block, 0);
  }
}

// New refcount blocks, a larger refcount table, and contiguous areas for large tables.
//
// A new block describes clusters of which nobody has one, itself among them:
//
//   clusters of block i:  | block i | free ................................... |
//
// A new refcount table stands behind everything that the old one could describe, with the blocks that
// describe it:
//
//   | all that the old table describes | block | block ... | new table ........ | free ...
//
//   1. A block is zeroed in the file before the table points at it in memory; on disk the table points at it
//      only after the block's content is durable (flusher.ts, step 2).
//   2. The old table is in force until the new one, with its blocks, is durable; then the header changes,
//      inside one sector; then that is made durable; then the old table is freed. An error before leaves the
//      old one in force.
//   3. One at a time; others wait and look again.
//   4. While the table grows no write-back runs: it could write into the old table, after that is free.

import type { Completion } from "../../base/completion.ts";
import { BlockError, errorMessage } from "../../base/errors.ts";
import { divideUp } from "../../base/units.ts";
import { MAX_REFTABLE_BYTES } from "./header.ts";
import type { Image } from "./image.ts";
import { entryLow } from "./l2-entry.ts";
import { MetadataKind } from "./metadata-places.ts";
import { setRefcount } from "./refcount-width.ts";

const TWO_32 = 0x1_0000_0000;
/** Where the header tells of the refcount table: offset (8 bytes), clusters (4 bytes). */
const HEADER_REFTABLE_AT = 48;

export class RefcountGrowth {
  readonly #image: Image;
  #busy: Promise<void> | undefined;

  constructor(image: Image) {
    this.#image = image;
  }

  /**
   * Makes block `block`; `tail` is the first cluster behind all claims. The caller claims again afterwards.
   */
  makeBlock(block: number, tail: number): Completion {
    if (this.#busy !== undefined) return this.#busy;
    const { refcounts } = this.#image;
    this.#image.debug?.("refblock_alloc");
    if (block >= refcounts.table.entries) return this.#alone(() => this.#growTable(block));
    let first = Math.max(tail, block * refcounts.blockEntries, 1);
    // Metadata that no refcount block describes: the image is damaged there, and we do not make it worse.
    this.#image.refuseOverlap(first * refcounts.clusterSize, refcounts.clusterSize);
    while (this.#image.places.kindsIn(first) !== 0) first++;
    this.#refuseTableWrite(block);
    this.#image.allocator.refuseBeyond(first + 1);
    return this.#makeOne(refcounts.blockIndex(first), first);
  }

  /** Claims `count` clusters that stand one after the other. Settles to the first. */
  async takeArea(count: number): Promise<number> {
    for (;;) {
      if (this.#busy !== undefined) {
        await this.#busy.catch(() => undefined);
        continue;
      }
      let first = -1;
      await this.#alone(async () => {
        first = await this.#takeArea(count);
      });
      if (first >= 0) return first;
    }
  }

  #alone(work: () => Promise<void>): Promise<void> {
    this.#busy = work().finally(() => {
      this.#busy = undefined;
    });
    return this.#busy;
  }

  // --- one block -------------------------------------------------------------------------------------------

  #makeOne(block: number, first: number): Completion {
    const { file, clusterSize } = this.#image;
    this.#image.debug?.("refblock_alloc_write");
    const zeroed = file.writeZeroes(first * clusterSize, clusterSize);
    if (zeroed === undefined && this.#enterBlock(block, first)) return;
    return this.#alone(async () => {
      await zeroed;
      while (!this.#enterBlock(block, first)) await this.#image.flusher.writeBack();
    });
  }

  /**
   * The block, zeroed in the file, counts itself and is in the table, in memory. False when the cache has no
   * room.
   */
  #enterBlock(block: number, first: number): boolean {
    const { refcounts, allocator } = this.#image;
    const slice = refcounts.cache.insertZero(refcounts.sliceIndex(first));
    if (slice === undefined) return false;
    refcounts.set(slice, first % refcounts.sliceEntries, 1);
    this.#enter(block, first);
    this.#image.places.add(MetadataKind.REFCOUNT_BLOCK, first, 1);
    allocator.skipTo(first + 1);
    return true;
  }

  #enter(block: number, cluster: number): void {
    const { refcounts, clusterSize } = this.#image;
    const offset = cluster * clusterSize;
    refcounts.table.set(block, Math.floor(offset / TWO_32), entryLow(offset));
  }

  // --- the table -------------------------------------------------------------------------------------------

  async #growTable(block: number): Promise<void> {
    const image = this.#image;
    const { refcounts, clusterSize, header } = image;
    image.debug?.("reftable_grow");
    const entriesPerCluster = clusterSize / 8;
    const base = refcounts.table.entries;
    const oldClusters = header.refcountTableClusters;
    const oldFirst = header.refcountTableOffset / clusterSize;
    // By half, so that growing costs little in the long run; and at least so far that the new blocks are in
    // it.
    let tableClusters = Math.max(
      oldClusters + divideUp(oldClusters, 2),
      divideUp(block + 1, entriesPerCluster),
    );
    let blocks = 0;
    for (;;) {
      blocks = blocksFor(tableClusters, refcounts.blockEntries);
      if (base + blocks <= tableClusters * entriesPerCluster) break;
      tableClusters++;
    }
    if (tableClusters * clusterSize > MAX_REFTABLE_BYTES) {
      throw new BlockError(
        "EFBIG",
        `The refcount table of the image would exceed ${MAX_REFTABLE_BYTES} bytes`,
      );
    }
    const first = base * refcounts.blockEntries;
    const clusters = blocks + tableClusters;
    this.#refuseMetadata(first, clusters);
    image.allocator.refuseBeyond(first + clusters);
    await image.flusher.exclusive(() => this.#moveTable(base, first, blocks, tableClusters));
    image.places.remove(MetadataKind.REFCOUNT_TABLE, oldFirst, oldClusters);
    image.places.add(MetadataKind.REFCOUNT_BLOCK, first, blocks);
    image.places.add(MetadataKind.REFCOUNT_TABLE, first + blocks, tableClusters);
    image.allocator.skipTo(first + clusters);
    image.frees.release([{ first: oldFirst, count: oldClusters, punch: false }]);
  }

  /**
   * Writes blocks and table at cluster `first`, then the header; in memory the table has moved when this is
   * done.
   */
  async #moveTable(base: number, first: number, blocks: number, tableClusters: number): Promise<void> {
    const { refcounts, clusterSize, file, flusher, header } = this.#image;
    const table = refcounts.table;
    const entries = (tableClusters * clusterSize) / 8;
    const offset = (first + blocks) * clusterSize;
    // The new table points at all blocks: those that are not durable yet must be, before it is in force.
    await flusher.writeRefcounts();
    await this.#writeBlocks(base, first, blocks, blocks + tableClusters);
    const image = Buffer.alloc(tableClusters * clusterSize);
    table.image(table.entries * 8).copy(image);
    for (let i = 0; i < blocks; i++) {
      const block = (first + i) * clusterSize;
      image.writeUInt32BE(Math.floor(block / TWO_32), (base + i) * 8);
      image.writeUInt32BE(entryLow(block), (base + i) * 8 + 4);
    }
    this.#image.debug?.("refblock_alloc_write_table");
    await file.write(offset, image.length, image, 0);
    await file.flush();
    await this.#pointHeader(offset, tableClusters);
    header.refcountTableOffset = offset;
    header.refcountTableClusters = tableClusters;
    table.moved(offset, entries);
    for (let i = 0; i < blocks; i++) this.#enter(base + i, first + i);
    table.clean();
  }

  /** Blocks whose first `used` clusters, from `first` on, are in use. */
  async #writeBlocks(base: number, first: number, blocks: number, used: number): Promise<void> {
    const { refcounts, clusterSize, file, header } = this.#image;
    const end = first + used;
    this.#image.debug?.("refblock_alloc_write_blocks");
    this.#image.debug?.("refblock_update");
    for (let i = 0; i < blocks; i++) {
      const content = Buffer.alloc(clusterSize);
      const blockFirst = (base + i) * refcounts.blockEntries;
      const from = Math.max(first, blockFirst);
      const to = Math.min(end, blockFirst + refcounts.blockEntries);
      for (let cluster = from; cluster < to; cluster++) {
        setRefcount(content, header.refcountOrder, cluster - blockFirst, 1);
      }
      await file.write((first + i) * clusterSize, clusterSize, content, 0);
    }
  }

  /** The commit point. When it is not known which table is in force, nothing may be written any more. */
  async #pointHeader(offset: number, clusters: number): Promise<void> {
    const { file, header } = this.#image;
    const fields = (tableOffset: number, tableClusters: number) => {
      const buffer = Buffer.alloc(12);
      buffer.writeUInt32BE(Math.floor(tableOffset / TWO_32), 0);
      buffer.writeUInt32BE(tableOffset % TWO_32, 4);
      buffer.writeUInt32BE(tableClusters, 8);
      return buffer;
    };
    try {
      this.#image.debug?.("refblock_alloc_switch_table");
      await file.write(HEADER_REFTABLE_AT, 12, fields(offset, clusters), 0);
      await file.flush();
    } catch (error) {
      try {
        const old = fields(header.refcountTableOffset, header.refcountTableClusters);
        await file.write(HEADER_REFTABLE_AT, 12, old, 0);
        await file.flush();
      } catch {
        this.#image.stopUnsure(`the header could not be written: ${errorMessage(error)}`);
      }
      throw error;
    }
  }

  // --- areas -----------------------------------------------------------------------------------------------

  /**
   * Claims an area behind the tail: in the block there if it has the room, else in blocks of its own, which
   * stand right before it. -1 when the refcount table had to grow first.
   */
  async #takeArea(count: number): Promise<number> {
    const { refcounts, allocator, clusterSize, file } = this.#image;
    const { blockEntries } = refcounts;
    const tail = Math.max(allocator.tail, 1);
    const inBlock = blockEntries - (tail % blockEntries);
    allocator.refuseBeyond(tail + count);
    if (refcounts.blockOffset(refcounts.blockIndex(tail)) !== 0 && inBlock >= count) {
      allocator.skipTo(tail + count);
      if (await this.#claimFree(tail, count)) return tail;
      return -1;
    }
    let base = refcounts.table.entries;
    while (base > refcounts.blockIndex(tail) && refcounts.blockOffset(base - 1) === 0) base--;
    const first = Math.max(base * blockEntries, tail);
    const blocks = blocksFor(count + (first - base * blockEntries), blockEntries);
    if (base + blocks > refcounts.table.entries) {
      await this.#growTable(base + blocks);
      return -1;
    }
    this.#refuseMetadata(first, blocks + count);
    this.#refuseTableWrite(base, blocks);
    allocator.refuseBeyond(first + blocks + count);
    allocator.skipTo(first + blocks + count);
    await file.writeZeroes(first * clusterSize, blocks * clusterSize);
    await this.#writeBlocks(base, first, blocks, blocks + count);
    for (let i = 0; i < blocks; i++) {
      this.#image.places.add(MetadataKind.REFCOUNT_BLOCK, first + i, 1);
      this.#enter(base + i, first + i);
    }
    return first + blocks;
  }

  #refuseMetadata(first: number, count: number): void {
    const { clusterSize, places } = this.#image;
    this.#image.refuseOverlap(first * clusterSize, count * clusterSize);
    for (let cluster = first; cluster < first + count; cluster++) {
      if (places.kindsIn(cluster) === 0) continue;
      throw this.#image.damaged(`metadata stands where no refcounts are, behind cluster ${first}`);
    }
  }

  /** Stands before entries of the refcount table are set. */
  #refuseTableWrite(block: number, count = 1): void {
    const offset = this.#image.refcounts.table.offset + block * 8;
    this.#image.refuseOverlap(offset, count * 8, MetadataKind.REFCOUNT_TABLE);
  }

  /**
   * Raises the refcounts of [first, first + count) from 0 to 1; false when one is in use. Then, and on an
   * error, nothing is claimed.
   */
  async #claimFree(first: number, count: number): Promise<boolean> {
    const { refcounts, frees } = this.#image;
    let cluster = first;
    try {
      while (cluster < first + count) {
        const slice = refcounts.cache.find(refcounts.sliceIndex(cluster));
        if (slice === undefined) {
          await refcounts.cache.load(refcounts.sliceIndex(cluster));
          continue;
        }
        if (refcounts.get(slice, cluster % refcounts.sliceEntries) !== 0) break;
        refcounts.set(slice, cluster % refcounts.sliceEntries, 1);
        cluster++;
      }
    } finally {
      const claimed = cluster - first;
      if (claimed > 0 && claimed < count) frees.release([{ first, count: claimed, punch: false }]);
    }
    return cluster === first + count;
  }
}

/** How many blocks describe `clusters` clusters and themselves. */
function blocksFor(clusters: number, blockEntries: number): number {
  // Each block describes itself too. (Counting up took minutes for a sparse file of a hostile size.)
  return divideUp(clusters, blockEntries - 1);
}

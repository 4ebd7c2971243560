// Refcounts of host clusters: a two-level table. The refcount table is held whole, its blocks as slices in a
// cache. (Specification: "Host cluster management".)
//
//   cluster c -> refcount table entry floor(c / entries of a block) -> block -> entry c mod entries of a
//   block
//
//   1. Raising a refcount may be written at any time: at worst a cluster leaks.
//   2. A refcount is lowered only after the entry that pointed to the cluster is durably gone
//      (deferred-frees.ts).
//   3. A refcount table entry is written only after the block that it points to is durable (flusher.ts).

import { assert } from "../../base/assert.ts";
import type { Completion } from "../../base/completion.ts";
import { BlockError } from "../../base/errors.ts";
import { type DebugHook, debugHookOf } from "../../block/debug-event.ts";
import type { BlockNode } from "../../block/node.ts";
import { reftableOffset } from "./l2-entry.ts";
import { getRefcount, setRefcount } from "./refcount-width.ts";
import { SLICE_BYTES_MAX, type Slice, TableCache } from "./table-cache.ts";
import type { WholeTable } from "./whole-table.ts";

export interface RefcountsOptions {
  readonly file: BlockNode;
  readonly table: WholeTable;
  readonly clusterSize: number;
  readonly refcountOrder: number;
  readonly cacheBytes: number;
  /** Throws when a block is not to be believed. */
  readonly refuseBlock: (offset: number) => void;
  readonly onPressure: () => Promise<void>;
}

export class Refcounts {
  readonly table: WholeTable;
  readonly cache: TableCache;
  readonly clusterSize: number;
  /** Refcounts in a block, and in a slice of one. */
  readonly blockEntries: number;
  readonly sliceEntries: number;
  readonly #order: number;
  readonly #file: BlockNode;
  readonly #refuseBlock: (offset: number) => void;
  readonly #debug: DebugHook | undefined;

  constructor(options: RefcountsOptions) {
    this.table = options.table;
    this.clusterSize = options.clusterSize;
    this.#order = options.refcountOrder;
    this.#file = options.file;
    this.#refuseBlock = options.refuseBlock;
    this.#debug = debugHookOf(options.file);
    const sliceBytes = Math.min(options.clusterSize, SLICE_BYTES_MAX);
    this.blockEntries = (options.clusterSize * 8) / 2 ** this.#order;
    this.sliceEntries = (sliceBytes * 8) / 2 ** this.#order;
    this.cache = new TableCache({
      sliceBytes,
      capacityBytes: options.cacheBytes,
      fetch: (index, bytes) => this.#fetch(index, bytes),
      decodeWords: false,
      onPressure: options.onPressure,
    });
  }

  sliceIndex(cluster: number): number {
    return Math.floor(cluster / this.sliceEntries);
  }

  blockIndex(cluster: number): number {
    return Math.floor(cluster / this.blockEntries);
  }

  /** Offset of the block with this index; 0 when there is none: all its refcounts are 0. */
  blockOffset(block: number): number {
    if (block >= this.table.entries) return 0;
    return reftableOffset(this.table.words[block * 2]!, this.table.words[block * 2 + 1]!);
  }

  /** Where slice `index` stands in the file. Its block must exist. */
  sliceOffset(index: number): number {
    const first = index * this.sliceEntries;
    const block = this.blockOffset(this.blockIndex(first));
    assert(block > 0, `refcount slice ${index} has no block`);
    return block + ((first % this.blockEntries) / this.sliceEntries) * this.cache.sliceBytes;
  }

  /** The refcount at `entry` of a slice; those of 2**53 and more are not exact. */
  get(slice: Slice, entry: number): number {
    return getRefcount(slice.bytes, this.#order, entry);
  }

  /**
   * Sets the refcount at `entry`; the slice is dirty then. `value` fits: it is 0, 1, or one less than before.
   */
  set(slice: Slice, entry: number, value: number): void {
    setRefcount(slice.bytes, this.#order, entry, value);
    this.cache.markDirty(slice);
  }

  /** First entry from `from` on, below `to`, whose refcount is 0; -1 when there is none. */
  findFree(slice: Slice, from: number, to: number): number {
    for (let entry = from; entry < to; entry++) if (this.get(slice, entry) === 0) return entry;
    return -1;
  }

  /** How many entries from `from` on, below `to`, have refcount 0. */
  countFree(slice: Slice, from: number, to: number): number {
    let entry = from;
    while (entry < to && this.get(slice, entry) === 0) entry++;
    return entry - from;
  }

  #fetch(index: number, bytes: Buffer): Completion {
    const block = this.blockOffset(this.blockIndex(index * this.sliceEntries));
    if (block === 0 || block % this.clusterSize !== 0 || !Number.isSafeInteger(block + this.clusterSize)) {
      throw new BlockError("IMAGE_CORRUPT", `Refcount block offset ${block} is not aligned to a cluster`);
    }
    this.#refuseBlock(block);
    const offset = this.sliceOffset(index);
    // Zeros from behind the end of the file would say that every cluster is free, those in use too.
    if (offset >= this.#file.size) {
      throw new BlockError(
        "IMAGE_CORRUPT",
        `Refcount block at offset ${block} stands past the end of the file: the image was truncated`,
      );
    }
    this.#debug?.("refblock_load");
    return this.#file.read(offset, this.cache.sliceBytes, bytes, 0);
  }
}

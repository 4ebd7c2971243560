// L2 tables that we may change: a missing one is made, one that a snapshot shares is copied first.
//
//   1. The place of a new table is filled (zeros, or the copy) before the L1 entry points at it in memory; so
//      both the table and its refcount are in the file's cache before the flush that precedes the write of
//      the L1 entry.
//   2. Slices in memory stay: they are named by guest clusters, and the copy has the same content.
//   3. Slices of a shared table are never dirty: nothing is changed before the copy.
//   4. One maker per table; others wait for it and look again.
//   5. A table is neither written nor copied where its place is that of other metadata too.

import { buffers } from "../../base/buffer-pool.ts";
import type { Completion } from "../../base/completion.ts";
import type { Image } from "./image.ts";
import { COPIED_HIGH, entryHigh, entryLow, entryOffset } from "./l2-entry.ts";
import { MetadataKind } from "./metadata-places.ts";

export class L2Tables {
  readonly #image: Image;
  readonly #making = new Map<number, Promise<void>>();

  constructor(image: Image) {
    this.#image = image;
  }

  /** Whether the table exists and belongs to the active image alone. */
  isOwn(l1Index: number): boolean {
    const { words } = this.#image.l1;
    const high = words[l1Index * 2]!;
    // A broken image may say of a table that is not there that it is its own.
    return (high & COPIED_HIGH) !== 0 && entryOffset(high, words[l1Index * 2 + 1]!) !== 0;
  }

  /** Sees to it that it does. */
  makeOwn(l1Index: number): Completion {
    if (this.isOwn(l1Index)) return;
    const making = this.#making.get(l1Index);
    if (making !== undefined) return making;
    const made = this.#make(l1Index).finally(() => this.#making.delete(l1Index));
    this.#making.set(l1Index, made);
    return made;
  }

  async #make(l1Index: number): Promise<void> {
    const image = this.#image;
    const { l1, clusterSize, file } = image;
    image.refuseDoubtfulTable(l1Index);
    image.refuseOverlap(l1.offset + l1Index * 8, 8, MetadataKind.ACTIVE_L1);
    const cluster = await image.takeCluster();
    const offset = cluster * clusterSize;
    const old = entryOffset(l1.words[l1Index * 2]!, l1.words[l1Index * 2 + 1]!);
    try {
      if (old === 0) {
        image.debug?.("l2_alloc_write");
        await file.writeZeroes(offset, clusterSize);
      } else await this.#copy(old, offset, l1Index);
    } catch (error) {
      image.frees.release([{ first: cluster, count: 1, punch: false }]);
      throw error;
    }
    image.places.add(MetadataKind.ACTIVE_L2, cluster, 1);
    l1.set(l1Index, entryHigh(offset, true), entryLow(offset));
    if (old === 0) return;
    image.places.remove(MetadataKind.ACTIVE_L2, old / clusterSize, 1);
    image.frees.defer(old / clusterSize, 1, false);
  }

  async #copy(from: number, to: number, l1Index: number): Promise<void> {
    const { clusterSize, file, debug } = this.#image;
    if (from % clusterSize !== 0 || !Number.isSafeInteger(from + clusterSize)) {
      throw this.#image.damaged(`L2 table offset 0x${from.toString(16)} unaligned (L1 index: ${l1Index})`);
    }
    const table = buffers.take(clusterSize);
    try {
      debug?.("l2_alloc_cow_read");
      await file.read(from, clusterSize, table, 0);
      debug?.("l2_alloc_write");
      await file.write(to, clusterSize, table, 0);
    } finally {
      buffers.give(table);
    }
  }
}

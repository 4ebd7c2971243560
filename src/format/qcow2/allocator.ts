// Finds free host clusters and claims them. Pure: it asks for what it lacks, the caller fetches it and asks
// again.
//
//   while ((first = allocator.take(wanted)) < 0) await allocator.prepare();
//
//   1. A claim raises the refcounts in memory, at once: nobody else gets the clusters, and no write of the
//      refcounts is needed before the flush that makes the first reference to them durable.
//   2. First what was freed, then gaps (the refcounts are scanned once after opening, one slice per claim at
//      the most), then the end of the file. So a first write costs no scan of a large image, and gaps are
//      used again.
//   3. A cluster behind everything that the file ever held is `fresh`: it reads as zeros without being
//      written.
//   4. Cluster 0 is never given: corrupt refcounts do not make us write over the header. Neither is a cluster
//      in which metadata stands. Refcounts that call a table free are not believed at all: nothing of the
//      slice is given, since what they say of guest data is as wrong.
//   5. An error leaves everything as it was.

import type { Completion } from "../../base/completion.ts";
import { BlockError } from "../../base/errors.ts";
import { FreeRuns } from "./free-runs.ts";
import type { Refcounts } from "./refcounts.ts";
import type { Slice } from "./table-cache.ts";

/** From `take`: call `prepare` and try again. */
export const NOT_READY = -1;
/** Nothing there; the next place is tried. Inside only. */
const NONE = -2;

/** What `take` lacks. */
const Lack = { SLICE: 0, BLOCK: 1 } as const;

export interface AllocatorOptions {
  readonly refcounts: Refcounts;
  /** Clusters that the file has, the last one perhaps in part. */
  readonly fileClusters: number;
  /** Clusters that a file of fixed length (a block device) has room for; undefined where it grows. */
  readonly clustersMax: number | undefined;
  /** Whether a cluster that refcounts call free holds metadata; throws where the image is damaged then. */
  readonly isTable: (cluster: number) => boolean;
  /**
   * Makes the refcount block with this index, which describes `firstFree` and stands there. Grows the table
   * if needed.
   */
  readonly makeBlock: (block: number, firstFree: number) => Completion;
}

export class Allocator {
  readonly counters = { claims: 0, claimedClusters: 0 };
  /** Of the last successful `take`, until the next one: how many clusters, and whether they read as zeros. */
  takenCount = 0;
  takenFresh = false;
  readonly #options: AllocatorOptions;
  readonly #refcounts: Refcounts;
  readonly #free = new FreeRuns();
  /** Gaps are looked for in slices [#scan, #scanEnd), below #tail. */
  #scan = 0;
  #scanEnd: number;
  /** First cluster of which nothing is known: claims at the end of the file begin here. */
  #tail: number;
  #freshFrom: number;
  #lack: number = Lack.SLICE;
  #lackIndex = 0;

  constructor(options: AllocatorOptions) {
    this.#options = options;
    this.#refcounts = options.refcounts;
    if (options.clustersMax !== undefined) {
      // What a device holds behind the image is anybody's guess: all of it is looked at, nothing is fresh.
      this.#tail = 1;
      this.#freshFrom = Number.POSITIVE_INFINITY;
      this.#scanEnd = 0;
      return;
    }
    this.#tail = Math.max(1, options.fileClusters);
    this.#freshFrom = options.fileClusters;
    this.#scanEnd = Math.ceil(options.fileClusters / options.refcounts.sliceEntries);
  }

  /** First cluster behind everything that was ever claimed. */
  get tail(): number {
    return this.#tail;
  }

  /**
   * Claims up to `wanted` clusters that stand one after the other; `takenCount` says how many.
   * @returns the first cluster, or NOT_READY
   */
  take(wanted: number): number {
    let first = this.#takeFreed(wanted);
    if (first === NONE) first = this.#scanGaps(wanted);
    if (first === NONE) first = this.#takeTail(wanted);
    if (first < 0) return first;
    this.counters.claims++;
    this.counters.claimedClusters += this.takenCount;
    this.takenFresh = first >= this.#freshFrom;
    this.#freshFrom = Math.max(this.#freshFrom, first + this.takenCount);
    return first;
  }

  /** Fetches what the last `take` lacked. To be called in the same turn. */
  prepare(): Completion {
    return this.#lack === Lack.SLICE
      ? this.#refcounts.cache.load(this.#lackIndex)
      : this.#options.makeBlock(this.#lackIndex, this.#tail);
  }

  /** These clusters have refcount 0 now. */
  freed(first: number, count: number): void {
    this.#free.add(first, count);
  }

  /** Clusters up to `end` were claimed by other means, or are: claims go on behind them. */
  skipTo(end: number): void {
    this.#tail = Math.max(this.#tail, end);
    this.#freshFrom = Math.max(this.#freshFrom, end);
  }

  /** @throws BlockError ENOSPC when clusters up to `end` do not fit a file of fixed length */
  refuseBeyond(end: number): void {
    const { clustersMax } = this.#options;
    if (clustersMax === undefined || end <= clustersMax) return;
    throw new BlockError(
      "ENOSPC",
      `No space left: the image fills all ${clustersMax} clusters of its device`,
    );
  }

  #takeFreed(wanted: number): number {
    const { sliceEntries } = this.#refcounts;
    while (this.#free.length > 0) {
      const first = this.#free.topFirst;
      const slice = this.#refcounts.cache.find(this.#refcounts.sliceIndex(first));
      if (slice === undefined) return this.#lacks(Lack.SLICE, this.#refcounts.sliceIndex(first));
      const entry = first % sliceEntries;
      const limit = Math.min(sliceEntries, entry + Math.min(wanted, this.#free.topCount));
      const count = this.#claim(slice, first, entry, limit);
      this.#free.shrinkTop(Math.max(1, count));
      if (count > 0) return first;
    }
    if (this.#free.forgotten) {
      this.#free.forgotten = false;
      this.#scan = 0;
      this.#scanEnd = Math.ceil(this.#tail / sliceEntries);
    }
    return NONE;
  }

  /** Looks at one more slice of the part that was there when the image was opened. */
  #scanGaps(wanted: number): number {
    const { sliceEntries, blockEntries, cache } = this.#refcounts;
    while (this.#scan < this.#scanEnd) {
      const first = this.#scan * sliceEntries;
      const block = this.#refcounts.blockIndex(first);
      if (this.#refcounts.blockOffset(block) === 0) {
        // A sparse file may have any length: behind the last block there is nothing to look at.
        const isLast = block >= this.#refcounts.table.entries;
        this.#scan = isLast ? this.#scanEnd : ((block + 1) * blockEntries) / sliceEntries;
        continue;
      }
      const slice = cache.find(this.#scan);
      if (slice === undefined) return this.#lacks(Lack.SLICE, this.#scan);
      this.#scan++;
      this.#addGaps(slice, first);
      return this.#takeFreed(wanted);
    }
    return NONE;
  }

  #addGaps(slice: Slice, first: number): void {
    const refcounts = this.#refcounts;
    const end = Math.min(refcounts.sliceEntries, this.#tail - first);
    for (let entry = 0; entry < end; entry++) {
      if (refcounts.get(slice, entry) === 0) this.#options.isTable(first + entry);
    }
    for (let entry = 0; entry < end; ) {
      const free = refcounts.findFree(slice, entry, end);
      if (free < 0) return;
      const count = refcounts.countFree(slice, free, end);
      this.#free.add(first + free, count);
      entry = free + count;
    }
  }

  #takeTail(wanted: number): number {
    const refcounts = this.#refcounts;
    const { sliceEntries } = refcounts;
    for (;;) {
      this.refuseBeyond(this.#tail + 1);
      const slice = this.#slice(this.#tail);
      if (slice === undefined) return NOT_READY;
      const sliceFirst = this.#tail - (this.#tail % sliceEntries);
      const entry = refcounts.findFree(slice, this.#tail - sliceFirst, sliceEntries);
      if (entry < 0) {
        this.#tail = sliceFirst + sliceEntries;
        continue;
      }
      const first = sliceFirst + entry;
      const room = (this.#options.clustersMax ?? Number.POSITIVE_INFINITY) - first;
      const count = this.#claim(slice, first, entry, Math.min(sliceEntries, entry + Math.min(wanted, room)));
      this.#tail = first + Math.max(1, count);
      if (count > 0) return first;
    }
  }

  /** Raises the refcounts of the free clusters from `entry` on, below `limit`; how many these are. */
  #claim(slice: Slice, first: number, entry: number, limit: number): number {
    const { isTable } = this.#options;
    let count = this.#refcounts.countFree(slice, entry, limit);
    for (let i = 0; i < count; i++) if (first + i === 0 || isTable(first + i)) count = i;
    for (let i = 0; i < count; i++) this.#refcounts.set(slice, entry + i, 1);
    this.takenCount = count;
    return count;
  }

  #slice(cluster: number): Slice | undefined {
    const refcounts = this.#refcounts;
    const index = refcounts.sliceIndex(cluster);
    const slice = refcounts.cache.find(index);
    if (slice !== undefined) return slice;
    const block = refcounts.blockIndex(cluster);
    if (refcounts.blockOffset(block) === 0) this.#lacks(Lack.BLOCK, block);
    else this.#lacks(Lack.SLICE, index);
    return undefined;
  }

  #lacks(lack: number, index: number): number {
    this.#lack = lack;
    this.#lackIndex = index;
    return NOT_READY;
  }
}

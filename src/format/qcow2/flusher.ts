// Writes back what is dirty in memory, in an order that a crash at any point survives.
//
//   R1  data before the L2 entry that points at it
//   R2  a refcount before the L2 or L1 entry that it counts
//   R3  an entry is durably gone before the refcount falls (deferred-frees.ts)
//   R4  where two are not both durable yet, a flush of the host file stands between them
//   R6  so one write-back is
//
//         take copies of everything dirty, in one turn of the loop
//         1. mark of use (once, durably; also where refcounts fall only later), refcount slices
//         2. file.flush, refcount table               only when there are new refcount blocks
//         3. file.flush                               makes data, refcounts and new, zeroed L2 tables durable
//         4. L2 slices and L1 entries
//         5. file.flush
//         6. what was to be freed is released         in the background
//
//       An L1 entry may reach the disk before the slices of its new table: the table was zeroed before 3, so
//       it reads as unallocated until they are there; nothing that was flushed is in it.
//       What changes while a write-back runs waits for the next one: the copies are consistent among
//       themselves.
//   R7  caches ask for a write-back when half of their slices are dirty; no slice is written out alone
//
// A failed write-back marks all that it took as dirty again and fails the flush; the next one tries again.
// Flushes are committed in groups: callers that come while one runs share the next one.

import { buffers } from "../../base/buffer-pool.ts";
import type { Completion } from "../../base/completion.ts";
import { type DebugHook, debugHookOf } from "../../block/debug-event.ts";
import type { BlockNode } from "../../block/node.ts";
import type { DeferredFrees, FreedRun } from "./deferred-frees.ts";
import { MetadataKind } from "./metadata-places.ts";
import type { Refcounts } from "./refcounts.ts";
import type { Slice, TableCache } from "./table-cache.ts";
import { type TableWrite, writeTables } from "./table-writes.ts";
import type { WholeTable } from "./whole-table.ts";

/** What is written back; parts that come to be after the flusher are given by the image. */
export interface FlushedParts {
  readonly file: BlockNode;
  readonly refcounts: Refcounts;
  readonly l2: TableCache;
  readonly l1: WholeTable;
  readonly frees: DeferredFrees;
  /** Where slice `index` of the L2 tables stands in the file. */
  l2SliceOffset(index: number): number;
  /** Before anything reaches the file after which refcounts may count leaked clusters. */
  beforeRefcounts(): Completion;
  /** Throws when it is not known which tables are in force. */
  refuseIfUnsure(): void;
  /** Throws when a write of metadata of the kind `own` would go over other metadata. */
  refuseOverlap(offset: number, bytes: number, own: number): void;
}

interface SliceWrite extends TableWrite {
  readonly cache: TableCache;
  readonly slice: Slice;
}

interface WriteBack {
  readonly refcounts: SliceWrite[];
  readonly reftable: TableWrite[];
  readonly l2: SliceWrite[];
  readonly l1: TableWrite[];
  readonly frees: FreedRun[];
}

export class Flusher {
  readonly counters = { flushes: 0, writeBacks: 0, slicesWritten: 0 };
  readonly #parts: FlushedParts;
  readonly #debug: DebugHook | undefined;
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;

  constructor(parts: FlushedParts) {
    this.#parts = parts;
    this.#debug = debugHookOf(parts.file);
  }

  get isDirty(): boolean {
    const { refcounts, l2, l1, frees } = this.#parts;
    return (
      refcounts.cache.dirtyCount > 0 ||
      refcounts.table.isDirty ||
      l2.dirtyCount > 0 ||
      l1.isDirty ||
      !frees.isEmpty
    );
  }

  /** All that settled before the call is durable when it is done. */
  flush(): Completion {
    this.counters.flushes++;
    if (this.#next !== undefined) return this.#next;
    if (this.#running === undefined) return this.#start();
    this.#next = this.#afterRunning();
    return this.#next;
  }

  /** A write-back because too much is dirty. */
  async writeBack(): Promise<void> {
    await this.flush();
  }

  /**
   * Runs `work` while no write-back runs, and holds new ones off: for moving tables. It must not flush or
   * load slices.
   */
  async exclusive<T>(work: () => Promise<T>): Promise<T> {
    while (this.#running !== undefined) await this.#running.catch(() => undefined);
    let result: T | undefined;
    await this.#run(async () => {
      result = await work();
    });
    return result as T;
  }

  /** Inside `exclusive`: writes the refcount slices that are dirty, without a flush of the file. */
  async writeRefcounts(): Promise<void> {
    await this.#parts.beforeRefcounts();
    this.#debug?.("refblock_update_part");
    await this.#writeSlices(this.#takeRefcounts());
  }

  /** Inside `exclusive`: all refcounts, and the table with them, durable in order. */
  async writeRefcountsDurably(): Promise<void> {
    const { file, refcounts } = this.#parts;
    await this.writeRefcounts();
    const reftable = refcounts.table.take();
    if (reftable.length === 0) return;
    let done = false;
    try {
      await file.flush();
      this.#tellReftable();
      await writeTables(file, reftable);
      done = true;
    } finally {
      if (!done) refcounts.table.putBack(reftable);
    }
  }

  async #afterRunning(): Promise<void> {
    while (this.#running !== undefined) await this.#running.catch(() => undefined);
    this.#next = undefined;
    await this.#start();
  }

  #start(): Completion {
    if (this.isDirty) return this.#run(() => this.#writeBackAll());
    this.#debug?.("flush_to_disk");
    const flushed = this.#parts.file.flush();
    return flushed === undefined ? undefined : this.#run(() => flushed);
  }

  #run(work: () => Promise<void>): Promise<void> {
    const running = work().finally(() => {
      if (this.#running === running) this.#running = undefined;
    });
    this.#running = running;
    return running;
  }

  async #writeBackAll(): Promise<void> {
    const { file, frees } = this.#parts;
    // Also one that was asked for before that came to be so.
    this.#parts.refuseIfUnsure();
    this.counters.writeBacks++;
    const taken = this.#take();
    let refcountsDone = false;
    let reftableDone = false;
    let l2Done = false;
    try {
      const counts = taken.refcounts.length + taken.reftable.length + taken.frees.length;
      if (counts > 0) await this.#parts.beforeRefcounts();
      if (taken.refcounts.length > 0) this.#debug?.("refblock_update_part");
      await writeTables(file, taken.refcounts);
      if (taken.reftable.length > 0) {
        await file.flush();
        this.#tellReftable();
        await writeTables(file, taken.reftable);
      }
      const hasEntries = taken.l2.length + taken.l1.length > 0;
      if (!hasEntries) this.#debug?.("flush_to_disk");
      await file.flush();
      refcountsDone = true;
      reftableDone = true;
      if (hasEntries) {
        if (taken.l2.length > 0) this.#debug?.("l2_update");
        await writeTables(file, taken.l2);
        if (taken.l1.length > 0) this.#debug?.("l1_update");
        await writeTables(file, taken.l1);
        this.#debug?.("flush_to_disk");
        await file.flush();
      }
      l2Done = true;
    } finally {
      this.#settle(taken.refcounts, refcountsDone);
      this.#settle(taken.l2, l2Done);
      if (!reftableDone) this.#parts.refcounts.table.putBack(taken.reftable);
      if (!l2Done) {
        this.#parts.l1.putBack(taken.l1);
        frees.putBack(taken.frees);
      }
    }
    frees.release(taken.frees);
  }

  #tellReftable(): void {
    this.#debug?.("refblock_alloc_hookup");
    this.#debug?.("reftable_update");
  }

  #take(): WriteBack {
    const { refcounts, l1, l2, frees } = this.#parts;
    this.#refuseOverlaps(refcounts.cache, MetadataKind.REFCOUNT_BLOCK, (i) => refcounts.sliceOffset(i));
    this.#refuseOverlaps(l2, MetadataKind.ACTIVE_L2, (i) => this.#parts.l2SliceOffset(i));
    return {
      refcounts: this.#takeRefcounts(),
      reftable: refcounts.table.take(),
      l2: this.#takeSlices(this.#parts.l2, (index) => this.#parts.l2SliceOffset(index)),
      l1: l1.take(),
      frees: frees.take(),
    };
  }

  /** The last look before tables go to the file; before anything is taken. */
  #refuseOverlaps(cache: TableCache, kind: number, offsetOf: (index: number) => number): void {
    for (const slice of cache.dirtySlices) {
      this.#parts.refuseOverlap(offsetOf(slice.index), cache.sliceBytes, kind);
    }
  }

  #takeRefcounts(): SliceWrite[] {
    const { refcounts } = this.#parts;
    return this.#takeSlices(refcounts.cache, (index) => refcounts.sliceOffset(index));
  }

  #takeSlices(cache: TableCache, offsetOf: (index: number) => number): SliceWrite[] {
    const writes: SliceWrite[] = [];
    for (const slice of [...cache.dirtySlices]) {
      const buffer = buffers.take(cache.sliceBytes);
      cache.encode(slice, buffer);
      cache.taken(slice);
      writes.push({ offset: offsetOf(slice.index), bytes: cache.sliceBytes, buffer, cache, slice });
    }
    this.counters.slicesWritten += writes.length;
    return writes;
  }

  async #writeSlices(writes: SliceWrite[]): Promise<void> {
    let done = false;
    try {
      await writeTables(this.#parts.file, writes);
      done = true;
    } finally {
      this.#settle(writes, done);
    }
  }

  #settle(writes: readonly SliceWrite[], written: boolean): void {
    for (const { cache, slice, buffer } of writes) {
      if (written) cache.written(slice);
      else cache.failed(slice);
      buffers.give(buffer);
    }
  }
}

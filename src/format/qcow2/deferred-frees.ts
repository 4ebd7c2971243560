// Freeing host clusters, in an order that a crash at any point survives.
//
//   defer      the entry that pointed to the cluster is gone in memory                    (writer, zeroer)
//   take       a write-back takes the list along with the tables that it writes           (flusher)
//   release    the entry is durably gone; now, in the background:
//                1. wait for the reads that began earlier, and for clients that were lent
//                   what stands there                                                      (rule R8)
//                2. give the space back to the host, where the guest gave it back
//                3. only then lower the refcount, in memory; the allocator may use it      (rule R3)
//
// A crash in between leaves a leaked cluster. The lowered refcounts reach the file with the next flush or at
// close.

import type { Clock } from "../../base/clock.ts";
import { errorMessage } from "../../base/errors.ts";
import type { Logger } from "../../base/logger.ts";
import { type DebugHook, debugHookOf } from "../../block/debug-event.ts";
import type { LentRange } from "../../block/loan.ts";
import type { BlockNode } from "../../block/node.ts";
import { type LentRanges, meets } from "./lent-ranges.ts";
import type { ReadEpochs } from "./read-epochs.ts";
import type { Refcounts } from "./refcounts.ts";

/** Host clusters [first, first + count) that lose one reference each. */
export interface FreedRun {
  readonly first: number;
  count: number;
  /** Whether the host gets the space back. */
  readonly punch: boolean;
}

/**
 * Bytes that may wait for a flush; beyond, a write-back is asked for, so that the file does not grow without
 * bound.
 */
const DEFERRED_BYTES_MAX = 64 * 1024 * 1024;
const DEFERRED_RUNS_MAX = 16384;

/** How long an image that is to be settled waits for a client to read what it was sent. */
const LOAN_PATIENCE_MS = 1000;

export interface DeferredFreesOptions {
  readonly file: BlockNode;
  readonly refcounts: Refcounts;
  readonly epochs: ReadEpochs;
  readonly lentRanges: LentRanges;
  readonly clock: Clock;
  readonly logger: Logger;
  /** Whether metadata stands in a cluster that would be free now; throws where the image is damaged then. */
  readonly isTable: (cluster: number) => boolean;
  /** Clusters whose refcount is 0 now. */
  readonly onFree: (first: number, count: number) => void;
  readonly onPressure: () => Promise<void>;
}

export class DeferredFrees {
  readonly counters = { freedClusters: 0, punchedClusters: 0, leakedClusters: 0 };
  readonly #options: DeferredFreesOptions;
  readonly #debug: DebugHook | undefined;
  #deferred: FreedRun[] = [];
  #deferredClusters = 0;
  #released: FreedRun[] = [];
  /** Released, but lent. */
  #lent: FreedRun[] = [];
  #lentChanged = () => {};
  #running: Promise<void> | undefined;

  constructor(options: DeferredFreesOptions) {
    this.#options = options;
    this.#debug = debugHookOf(options.file);
  }

  get isEmpty(): boolean {
    return this.#deferred.length === 0;
  }

  /** To be freed once the tables as they are in memory now are durable. */
  defer(first: number, count: number, punch: boolean): void {
    const last = this.#deferred[this.#deferred.length - 1];
    if (last !== undefined && last.punch === punch && last.first + last.count === first) last.count += count;
    else this.#deferred.push({ first, count, punch });
    const before = this.#deferredClusters;
    this.#deferredClusters += count;
    const bytes = this.#options.refcounts.clusterSize;
    const crossed =
      before * bytes < DEFERRED_BYTES_MAX && this.#deferredClusters * bytes >= DEFERRED_BYTES_MAX;
    if (crossed || this.#deferred.length === DEFERRED_RUNS_MAX)
      this.#options.onPressure().catch(() => undefined);
  }

  take(): FreedRun[] {
    const taken = this.#deferred;
    this.#deferred = [];
    this.#deferredClusters = 0;
    return taken;
  }

  putBack(runs: readonly FreedRun[]): void {
    this.#deferred = [...runs, ...this.#deferred];
    for (const run of runs) this.#deferredClusters += run.count;
  }

  /** Frees clusters that nothing durable points to, in the background. */
  release(runs: readonly FreedRun[]): void {
    if (runs.length === 0) return;
    for (const run of runs) this.#released.push(run);
    this.#running ??= this.#run();
  }

  /** A client has read what it was lent, or never will. */
  returned(range: LentRange): void {
    if (this.#lent.length === 0) return;
    const { clusterSize } = this.#options.refcounts;
    const [met, others]: [FreedRun[], FreedRun[]] = [[], []];
    for (const run of this.#lent) {
      (meets(range, run.first * clusterSize, run.count * clusterSize) ? met : others).push(run);
    }
    this.#lent = others;
    this.release(met);
    this.#lentChanged();
  }

  /**
   * Done when nothing is being freed any more; one call at a time. The node is drained: what waits yet are
   * clusters that are lent, and a client that does not read for so long holds nobody up.
   */
  async settled(): Promise<void> {
    let patient = true;
    const cancel = this.#options.clock.after(LOAN_PATIENCE_MS, () => {
      patient = false;
      this.#lentChanged();
    });
    try {
      for (;;) {
        if (this.#running !== undefined) await this.#running;
        else if (this.#lent.length === 0) return;
        else if (!patient) this.leakLent();
        else {
          await new Promise<void>((resolve) => {
            this.#lentChanged = resolve;
          });
        }
      }
    } finally {
      cancel();
    }
  }

  /**
   * Ends in the turn in which nothing is left: what is released later begins anew, and is never overlooked.
   */
  async #run(): Promise<void> {
    try {
      while (this.#released.length > 0) {
        const batch = this.#released;
        this.#released = [];
        await this.#options.epochs.drained();
        for (const run of batch) await this.#freeUnlent(run);
      }
    } finally {
      this.#running = undefined;
    }
  }

  /** Clusters that are lent are not freed any more: nobody writes this image from now on. */
  leakLent(): void {
    if (this.#lent.length === 0) return;
    let clusters = 0;
    for (const { count } of this.#lent) clusters += count;
    this.#lent = [];
    this.counters.leakedClusters += clusters;
    this.#options.logger.warn(
      `qcow2: ${clusters} clusters are leaked: a client was sent what stood there and has not read it`,
    );
  }

  /** Frees what of the run is not lent. Nobody is lent any more of it: no entry points to it. */
  async #freeUnlent(run: FreedRun): Promise<void> {
    const lent = this.#lentClusters(run);
    if (lent.size === 0) return this.#free(run);
    const free: FreedRun[] = [];
    const end = run.first + run.count;
    for (let first = run.first; first < end; ) {
      const isLent = lent.has(first);
      let count = 1;
      while (first + count < end && lent.has(first + count) === isLent) count++;
      (isLent ? this.#lent : free).push({ first, count, punch: run.punch });
      first += count;
    }
    for (const part of free) await this.#free(part);
  }

  #lentClusters({ first, count }: FreedRun): Set<number> {
    const { lentRanges, refcounts } = this.#options;
    const { clusterSize } = refcounts;
    const clusters = new Set<number>();
    for (const { offset, bytes } of lentRanges.meeting(first * clusterSize, count * clusterSize)) {
      const from = Math.max(first, Math.floor(offset / clusterSize));
      const to = Math.min(first + count, Math.ceil((offset + bytes) / clusterSize));
      for (let cluster = from; cluster < to; cluster++) clusters.add(cluster);
    }
    return clusters;
  }

  async #free({ first, count, punch }: FreedRun): Promise<void> {
    const { refcounts, logger } = this.#options;
    const end = first + count;
    this.#debug?.("cluster_free");
    for (let cluster = first; cluster < end; ) {
      const sliceEnd = (refcounts.sliceIndex(cluster) + 1) * refcounts.sliceEntries;
      const to = Math.min(end, sliceEnd);
      try {
        await this.#freeInSlice(cluster, to, punch);
      } catch (error) {
        this.counters.leakedClusters += to - cluster;
        logger.warn(`qcow2: clusters ${cluster} to ${to - 1} are leaked: ${errorMessage(error)}`);
      }
      cluster = to;
    }
  }

  /** Lowers the refcounts of [from, to), which are in one slice. */
  async #freeInSlice(from: number, to: number, punch: boolean): Promise<void> {
    const { refcounts, logger, isTable } = this.#options;
    for (let cluster = from; cluster < to; ) {
      const slice = refcounts.cache.find(refcounts.sliceIndex(cluster));
      if (slice === undefined) {
        await refcounts.cache.load(refcounts.sliceIndex(cluster));
        continue;
      }
      const entry = cluster % refcounts.sliceEntries;
      const refcount = refcounts.get(slice, entry);
      if (refcount === 0) {
        logger.error(`qcow2: cluster ${cluster} is freed but its refcount is 0; check the image`);
        cluster++;
      } else if (refcount > 1) {
        // Nobody else may hold more than 2**53 references; such a count is nonsense and stays as it is.
        if (Number.isSafeInteger(refcount)) refcounts.set(slice, entry, refcount - 1);
        cluster++;
      } else if (isTable(cluster)) {
        // An entry that was wrong: what it pointed at is not ours to free.
        cluster++;
      } else {
        let count = 1;
        while (
          cluster + count < to &&
          refcounts.get(slice, entry + count) === 1 &&
          !isTable(cluster + count)
        ) {
          count++;
        }
        await this.#freeLast(cluster, count, punch);
        cluster += count;
      }
    }
  }

  /**
   * Gives up the last reference of clusters in one slice. Until the punch has settled their refcount protects
   * them.
   */
  async #freeLast(first: number, count: number, punch: boolean): Promise<void> {
    const { refcounts, file, logger, onFree } = this.#options;
    if (punch) {
      try {
        await file.discard(first * refcounts.clusterSize, count * refcounts.clusterSize);
        this.counters.punchedClusters += count;
      } catch (error) {
        logger.warn(`qcow2: the host keeps the space of ${count} freed clusters: ${errorMessage(error)}`);
      }
    }
    const index = refcounts.sliceIndex(first);
    let slice = refcounts.cache.find(index);
    while (slice === undefined) {
      await refcounts.cache.load(index);
      slice = refcounts.cache.find(index);
    }
    const entry = first % refcounts.sliceEntries;
    for (let i = 0; i < count; i++) refcounts.set(slice, entry + i, 0);
    this.counters.freedClusters += count;
    onFree(first, count);
  }
}

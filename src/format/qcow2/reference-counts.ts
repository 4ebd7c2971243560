// How often each host cluster is referred to, counted for a window of the file at a time, so that a check
// takes the same memory for a file of any length: a file with more clusters than the window is walked several
// times.

import type { CheckTally } from "./check-report.ts";
import { type Geometry, MAX_CLUSTER_BITS } from "./header.ts";
import { maxRefcount } from "./refcount-width.ts";

/** Clusters that are counted in one walk: 64 MiB of memory; 4 TiB of file with clusters of 64 KiB. */
export const WINDOW_CLUSTERS = 64 * 1024 * 1024;
/** Clusters of which is known together whether any is referred to. */
const GROUP_CLUSTERS = 4096;
/**
 * Counts from here on stand in wide counts, 16 KiB for a group of clusters: with more snapshots than that all
 * clusters may have them, 256 MiB for a window.
 */
const LARGE = 255;
/** More references than anybody waits for. */
const COUNTED_MAX = 0xffff_ffff;

/** Where an image file is cut into windows. */
export interface Window {
  /** First cluster, and the one behind the last. */
  readonly first: number;
  readonly end: number;
  /** Findings that do not depend on counts are told in the first walk only. */
  readonly isFirst: boolean;
}

export class ReferenceCounts {
  readonly window: Window;
  readonly #clusterSize: number;
  readonly #fileBytes: number;
  readonly #max: number;
  readonly #small: Uint8Array;
  readonly #large: (Uint32Array | undefined)[] = [];
  /** A byte per group: not 0 where it has counts. Most of a sparse file has none. */
  readonly #groups: Uint8Array;
  readonly #tally: CheckTally;
  /** Highest cluster that was referred to; -1 for none. */
  highest = -1;

  constructor(window: Window, geometry: Geometry, fileBytes: number, tally: CheckTally) {
    this.window = window;
    this.#clusterSize = geometry.clusterSize;
    this.#fileBytes = fileBytes;
    this.#max = Math.min(COUNTED_MAX, maxRefcount(Math.log2(geometry.refcountBits)));
    this.#small = new Uint8Array(window.end - window.first);
    this.#groups = new Uint8Array(Math.ceil((window.end - window.first) / GROUP_CLUSTERS));
    this.#tally = tally;
  }

  covers(cluster: number): boolean {
    return cluster >= this.window.first && cluster < this.window.end;
  }

  get(cluster: number): number {
    const at = cluster - this.window.first;
    const count = this.#small[at]!;
    return count < LARGE ? count : this.#large[Math.floor(at / GROUP_CLUSTERS)]![at % GROUP_CLUSTERS]!;
  }

  /** The first cluster from `cluster` on, below `end`, that may be referred to; `end` where there is none. */
  nextReferenced(cluster: number, end: number): number {
    const { first } = this.window;
    let group = Math.floor((cluster - first) / GROUP_CLUSTERS);
    if (this.#groups[group] !== 0) return cluster;
    const groupEnd = Math.ceil((end - first) / GROUP_CLUSTERS);
    while (group < groupEnd && this.#groups[group] === 0) group++;
    return Math.min(end, first + group * GROUP_CLUSTERS);
  }

  /**
   * Counts a reference to `bytes` bytes at `offset`. The last cluster of the file may be cut; what lies
   * further out is reported and not counted.
   */
  add(offset: number, bytes: number): void {
    if (bytes <= 0) return;
    if (offset + bytes - this.#fileBytes >= this.#clusterSize) {
      if (this.window.isFirst) {
        this.#tally.corruption(
          `counting reference for region exceeding the end of the file by one cluster or more: ` +
            `offset 0x${offset.toString(16)} size 0x${bytes.toString(16)}`,
        );
      }
      return;
    }
    const last = Math.min(Math.floor((offset + bytes - 1) / this.#clusterSize), this.window.end - 1);
    const first = Math.max(Math.floor(offset / this.#clusterSize), this.window.first);
    for (let cluster = first; cluster <= last; cluster++) this.#increment(cluster);
  }

  /** Takes back one reference to a cluster of the window. */
  remove(cluster: number): void {
    const at = cluster - this.window.first;
    const count = this.#small[at]!;
    if (count < LARGE) this.#small[at] = count - 1;
    else this.#setLarge(at, this.get(cluster) - 1);
  }

  #increment(cluster: number): void {
    const at = cluster - this.window.first;
    const count = this.#small[at]!;
    if (cluster > this.highest) this.highest = cluster;
    this.#groups[Math.floor(at / GROUP_CLUSTERS)] = 1;
    if (this.get(cluster) >= this.#max) {
      this.#tally.corruption(`overflow cluster offset=0x${(cluster * this.#clusterSize).toString(16)}`);
      return;
    }
    if (count < LARGE - 1) {
      this.#small[at] = count + 1;
      return;
    }
    this.#setLarge(at, count === LARGE ? this.get(cluster) + 1 : LARGE);
  }

  /** A count that was large, or is now. */
  #setLarge(at: number, count: number): void {
    this.#small[at] = Math.min(count, LARGE);
    const group = Math.floor(at / GROUP_CLUSTERS);
    this.#large[group] ??= new Uint32Array(GROUP_CLUSTERS);
    this.#large[group][at % GROUP_CLUSTERS] = count;
  }
}

/** The windows of a file of `clusterCount` clusters. */
export function* windowsOf(clusterCount: number, windowClusters = WINDOW_CLUSTERS): Generator<Window> {
  for (let first = 0; first < clusterCount; first += windowClusters) {
    yield { first, end: Math.min(first + windowClusters, clusterCount), isFirst: first === 0 };
  }
}

/** QEMU's bound on the clusters of a file that can be checked. */
export const CHECKED_CLUSTERS_MAX = 0x7fff_ffff;
/** So that a cluster's offset is exact as a number. */
export const CHECKED_BYTES_MAX = CHECKED_CLUSTERS_MAX * 2 ** MAX_CLUSTER_BITS;

// What the parts of the driver share: the open image with its tables, caches, locks and queues. The parts:
//
//   driver.ts ── reader.ts ── mapping.ts ────────────── table-cache.ts, whole-table.ts
//            ├── writer.ts, guest-write.ts ─┬─ allocator.ts ── refcounts.ts, refcount-growth.ts
//            ├── zeroer.ts                  └─ l2-tables.ts
//            ├── copy-up.ts, grow.ts
//            └── flusher.ts ── deferred-frees.ts, read-epochs.ts
//
// Everything here is in memory and changes within one turn of the loop; what waits for the host is in the
// parts.

import { assert } from "../../base/assert.ts";
import type { Clock } from "../../base/clock.ts";
import type { Completion } from "../../base/completion.ts";
import { BlockError } from "../../base/errors.ts";
import type { Logger } from "../../base/logger.ts";
import { alignDown, divideUp } from "../../base/units.ts";
import { ClusterLocks } from "../../block/cluster-locks.ts";
import type { DriverHost } from "../../block/driver.ts";
import type { BlockNode } from "../../block/node.ts";
import { Allocator } from "./allocator.ts";
import type { Bitmap } from "./bitmaps.ts";
import { DeferredFrees } from "./deferred-frees.ts";
import { Flusher } from "./flusher.ts";
import {
  FEATURES_OFFSET,
  type Geometry,
  geometryOf,
  Incompatible,
  type Qcow2Header,
  serializeFeatures,
} from "./header.ts";
import {
  COMPRESSED_HIGH,
  compressedBytes,
  compressedOffset,
  entryOffset,
  reftableOffset,
} from "./l2-entry.ts";
import { Mapping } from "./mapping.ts";
import { ReadEpochs } from "./read-epochs.ts";
import { RefcountGrowth } from "./refcount-growth.ts";
import { Refcounts } from "./refcounts.ts";
import type { Snapshot } from "./snapshots.ts";
import { SLICE_BYTES_MAX, TableCache } from "./table-cache.ts";
import type { WholeTable } from "./whole-table.ts";

export interface ImageParts {
  readonly host: DriverHost;
  readonly file: BlockNode;
  readonly header: Qcow2Header;
  readonly l1: WholeTable;
  readonly reftable: WholeTable;
  readonly l2CacheBytes: number;
  readonly refcountCacheBytes: number;
  readonly logger: Logger;
  readonly clock: Clock;
}

export class Image {
  readonly host: DriverHost;
  readonly file: BlockNode;
  readonly header: Qcow2Header;
  readonly geometry: Geometry;
  readonly clusterSize: number;
  readonly logger: Logger;
  readonly l1: WholeTable;
  readonly l2: TableCache;
  readonly refcounts: Refcounts;
  readonly growth: RefcountGrowth;
  readonly epochs = new ReadEpochs();
  readonly frees: DeferredFrees;
  readonly flusher: Flusher;
  readonly locks: ClusterLocks;
  allocator: Allocator;
  /** Length of the virtual disk. */
  size: number;
  writable = false;
  /** As they were when the image was opened, or when they were marked as in use. */
  snapshots: readonly Snapshot[] = [];
  bitmaps: readonly Bitmap[] = [];
  /** Why nothing is written any more. */
  stopped: string | undefined;
  /** The header could be neither changed nor restored: tables in memory must not be written any more. */
  unsure = false;
  /** Host clusters in which header, tables, refcount blocks, snapshot table and bitmap directory stand. */
  readonly #metadata = new Set<number>();
  /** The write of the flags that is under way or was the last one. */
  #flagsWrite: Promise<void> = Promise.resolve();

  constructor(parts: ImageParts) {
    const { host, file, header, l1, reftable, logger } = parts;
    this.host = host;
    this.file = file;
    this.header = header;
    this.size = header.size;
    this.logger = logger;
    this.geometry = geometryOf(header);
    this.clusterSize = this.geometry.clusterSize;
    this.l1 = l1;
    this.locks = new ClusterLocks(parts.clock);
    // Asked for in the middle of a change; the write-back takes its copies when that is complete.
    const onPressure = async () => {
      await Promise.resolve();
      await this.flusher.writeBack();
    };
    this.l2 = new TableCache({
      sliceBytes: Math.min(this.clusterSize, SLICE_BYTES_MAX),
      capacityBytes: parts.l2CacheBytes,
      fetch: (index, bytes) => this.#fetchL2Slice(index, bytes),
      decodeWords: true,
      onPressure,
    });
    this.refcounts = new Refcounts({
      file,
      table: reftable,
      clusterSize: this.clusterSize,
      refcountOrder: header.refcountOrder,
      cacheBytes: parts.refcountCacheBytes,
      onPressure,
    });
    this.frees = new DeferredFrees({
      file,
      refcounts: this.refcounts,
      epochs: this.epochs,
      logger,
      onFree: (first, count) => this.allocator.freed(first, count),
      onPressure,
    });
    this.flusher = new Flusher({
      file,
      refcounts: this.refcounts,
      l2: this.l2,
      l1,
      frees: this.frees,
      l2SliceOffset: (index) => this.#l2SliceOffset(index),
      beforeRefcounts: () => this.beforeRefcounts(),
    });
    this.growth = new RefcountGrowth(this);
    this.allocator = this.newAllocator();
  }

  /** Set by the driver: see FlushedParts. */
  beforeRefcounts: () => Completion = () => undefined;

  newMapping(): Mapping {
    return new Mapping({
      l1: this.l1,
      l2: this.l2,
      clusterSize: this.clusterSize,
      extended: this.geometry.extended,
      zeroAllowed: this.header.version >= 3,
    });
  }

  newAllocator(): Allocator {
    return new Allocator({
      refcounts: this.refcounts,
      fileClusters: divideUp(this.file.size, this.clusterSize),
      clustersMax: this.file.driver.growable ? undefined : Math.floor(this.file.size / this.clusterSize),
      isMetadata: (cluster) => this.#metadata.has(cluster),
      makeBlock: (block, firstFree) => this.growth.makeBlock(block, firstFree),
    });
  }

  /** Whether the image may show something deeper where it says nothing: now, or when it is opened again. */
  get mayHaveBacking(): boolean {
    return this.host.backing !== undefined || this.header.backingFile !== undefined;
  }

  /** First guest cluster of a range, and how many it touches. */
  clusterOf(offset: number): number {
    return Math.floor(offset / this.clusterSize);
  }

  clusterCount(offset: number, bytes: number): number {
    return this.clusterOf(offset + bytes - 1) - this.clusterOf(offset) + 1;
  }

  /** Claims one host cluster, for metadata. */
  async takeCluster(): Promise<number> {
    for (;;) {
      const first = this.allocator.take(1);
      if (first >= 0) return first;
      await this.allocator.prepare();
    }
  }

  /** The entry is gone from its slice: what it pointed to loses a reference once that is durable. */
  dropReference(high: number, low: number, punch: boolean): void {
    const { clusterBits } = this.geometry;
    if ((high & COMPRESSED_HIGH) !== 0) {
      // Data of several clusters shares a host cluster; each entry holds one reference to every one it
      // touches.
      const offset = compressedOffset(high, low, clusterBits);
      const first = this.clusterOf(offset);
      const last = this.clusterOf(offset + compressedBytes(high, low, clusterBits) - 1);
      this.frees.defer(first, last - first + 1, punch);
      return;
    }
    const offset = entryOffset(high, low);
    if (offset !== 0) this.frees.defer(offset / this.clusterSize, 1, punch);
  }

  // --- damage ----------------------------------------------------------------------------------------------

  /** @throws BlockError EIO after damage was seen */
  refuseIfStopped(): void {
    if (this.stopped !== undefined) {
      throw new BlockError("EIO", `qcow2: the image takes no more writes: ${this.stopped}`);
    }
  }

  /**
   * @throws BlockError EIO when it is not known which tables are in force: nothing can be made durable then
   */
  refuseIfUnsure(): void {
    if (this.unsure) this.refuseIfStopped();
  }

  /**
   * Metadata that cannot be was met: the image is marked as corrupt and takes no more writes. The error to
   * throw.
   */
  damaged(message: string): BlockError {
    if (this.writable && this.stopped === undefined) {
      this.stop(message);
      if (this.header.version >= 3) {
        this.header.incompatible |= Incompatible.CORRUPT;
        this.writeFlags().catch(() => undefined);
      }
    }
    return new BlockError("EIO", `qcow2: ${message}`);
  }

  /** Forgets what is in memory: the image takes no more writes, and what the file holds is all there is. */
  dropCaches(): void {
    this.l2.drop();
    this.refcounts.cache.drop();
  }

  /** A change of the header failed, and changing it back too. */
  stopUnsure(message: string): void {
    this.unsure = true;
    this.stop(message);
  }

  /** No more writes, from now on. */
  stop(message: string): void {
    if (this.stopped !== undefined) return;
    this.stopped = message;
    this.logger.error(
      `qcow2: Marking image as corrupt: ${message}; further corruption events will be suppressed`,
    );
  }

  /** Writes the feature flags of the header in place: one write inside one sector. */
  writeFlags(): Promise<void> {
    const flags = serializeFeatures(this.header);
    const before = this.#flagsWrite.catch(() => undefined);
    this.#flagsWrite = before.then(() => this.file.write(FEATURES_OFFSET, flags.length, flags, 0));
    return this.#flagsWrite;
  }

  /** Done when no write of the flags is under way. */
  async flagsWritten(): Promise<void> {
    await this.#flagsWrite.catch(() => undefined);
  }

  // --- where metadata stands -------------------------------------------------------------------------------

  /** Whether guest data there would destroy metadata in use. */
  overlapsMetadata(hostOffset: number, bytes: number): boolean {
    const end = hostOffset + bytes;
    for (let cluster = this.clusterOf(hostOffset); cluster * this.clusterSize < end; cluster++) {
      if (this.#metadata.has(cluster)) return true;
    }
    return false;
  }

  /** Whether a cluster there begins past the end of the file: it cannot be one that holds data. */
  isPastEnd(hostOffset: number, bytes: number): boolean {
    return alignDown(hostOffset + bytes - 1, this.clusterSize) >= this.file.size;
  }

  addMetadata(first: number, count: number): void {
    for (let i = 0; i < count; i++) this.#metadata.add(first + i);
  }

  removeMetadata(first: number, count: number): void {
    for (let i = 0; i < count; i++) this.#metadata.delete(first + i);
  }

  /** Collects the places anew, for an image that is to be written to. */
  collectMetadata(): void {
    const { header, clusterSize } = this;
    this.#metadata.clear();
    this.addMetadata(0, 1);
    this.addMetadata(this.clusterOf(this.l1.offset), divideUp(this.l1.entries * 8, clusterSize));
    this.addMetadata(this.clusterOf(header.refcountTableOffset), header.refcountTableClusters);
    for (const { l1TableOffset, l1Size } of this.snapshots) {
      this.addMetadata(this.clusterOf(l1TableOffset), divideUp(l1Size * 8, clusterSize));
    }
    if (header.snapshotCount > 0) this.addMetadata(this.clusterOf(header.snapshotsOffset), 1);
    if (header.bitmaps !== undefined) {
      const { directoryOffset, directoryBytes } = header.bitmaps;
      this.addMetadata(this.clusterOf(directoryOffset), divideUp(directoryBytes, clusterSize));
    }
    collect(this.l1, entryOffset, (offset) => this.addMetadata(this.clusterOf(offset), 1));
    collect(this.refcounts.table, reftableOffset, (offset) => this.addMetadata(this.clusterOf(offset), 1));
  }

  // --- slices of L2 tables ---------------------------------------------------------------------------------

  #l2SliceOffset(index: number): number {
    const perTable = this.clusterSize / this.l2.sliceBytes;
    const l1Index = Math.floor(index / perTable);
    const table = entryOffset(this.l1.words[l1Index * 2]!, this.l1.words[l1Index * 2 + 1]!);
    assert(table > 0, `L2 slice ${index} has no table`);
    return table + (index % perTable) * this.l2.sliceBytes;
  }

  #fetchL2Slice(index: number, bytes: Buffer): Completion {
    const offset = this.#l2SliceOffset(index);
    const table = offset - (offset % this.clusterSize);
    const perTable = this.clusterSize / this.l2.sliceBytes;
    const aligned = offset - table === (index % perTable) * this.l2.sliceBytes;
    if (!aligned || !Number.isSafeInteger(table + this.clusterSize)) {
      const l1Index = Math.floor(index / perTable);
      throw this.damaged(
        `L2 table offset 0x${table.toString(16)} unaligned (L1 index: 0x${l1Index.toString(16)})`,
      );
    }
    // What is missing at the end of a file reads as zeros: here that would be an empty disk where data was.
    if (offset >= this.file.size) {
      throw this.damaged(
        `L2 table at 0x${table.toString(16)} stands past the end of the file: it was truncated`,
      );
    }
    return this.file.read(offset, bytes.length, bytes, 0);
  }
}

function collect(
  table: WholeTable,
  offsetOf: (high: number, low: number) => number,
  visit: (offset: number) => void,
): void {
  for (let i = 0; i < table.entries; i++) {
    const offset = offsetOf(table.words[i * 2]!, table.words[i * 2 + 1]!);
    if (offset !== 0) visit(offset);
  }
}

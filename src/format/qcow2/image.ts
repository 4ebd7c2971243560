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
import { type DebugHook, debugHookOf } from "../../block/debug-event.ts";
import type { CorruptionReport, DriverHost } from "../../block/driver.ts";
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
  COPIED_HIGH,
  compressedBytes,
  compressedOffset,
  entryOffset,
  reftableOffset,
} from "./l2-entry.ts";
import { LentRanges } from "./lent-ranges.ts";
import { Mapping } from "./mapping.ts";
import { kindName, MetadataKind, MetadataPlaces } from "./metadata-places.ts";
import { ReadEpochs } from "./read-epochs.ts";
import { RefcountGrowth } from "./refcount-growth.ts";
import { Refcounts } from "./refcounts.ts";
import type { Snapshot } from "./snapshots.ts";
import { SLICE_BYTES_MAX, TableCache } from "./table-cache.ts";
import type { WholeTable } from "./whole-table.ts";

/**
 * Of the L1 tables of all snapshots: 64 of the longest ones there can be, at 512 bytes. 40 bytes of memory
 * each.
 */
const INACTIVE_L1_CLUSTERS_MAX = 64 * 65_536;

export interface ImageParts {
  readonly host: DriverHost;
  readonly file: BlockNode;
  readonly header: Qcow2Header;
  readonly l1: WholeTable;
  readonly reftable: WholeTable;
  readonly l2CacheBytes: number;
  readonly refcountCacheBytes: number;
  /** The kinds of metadata that no write may touch: bits of MetadataKind. */
  readonly overlapChecks: number;
  readonly logger: Logger;
  readonly clock: Clock;
  readonly onCorruption?: ((report: CorruptionReport) => void) | undefined;
}

export class Image {
  readonly host: DriverHost;
  readonly file: BlockNode;
  /** A fault filter below; undefined everywhere but in tests. */
  readonly debug: DebugHook | undefined;
  readonly header: Qcow2Header;
  readonly geometry: Geometry;
  readonly clusterSize: number;
  readonly logger: Logger;
  readonly l1: WholeTable;
  readonly l2: TableCache;
  readonly refcounts: Refcounts;
  readonly growth: RefcountGrowth;
  readonly epochs = new ReadEpochs();
  readonly lentRanges = new LentRanges((range) => this.frees.returned(range));
  readonly frees: DeferredFrees;
  readonly flusher: Flusher;
  readonly locks: ClusterLocks;
  allocator: Allocator;
  /** Length of the virtual disk. */
  size: number;
  writable = false;
  /** As they were when the image was opened, or when they were marked as in use. */
  snapshots: readonly Snapshot[] = [];
  /** Length of the table that lists them, in the file. */
  snapshotTableBytes = 0;
  bitmaps: readonly Bitmap[] = [];
  /** Why nothing is written any more. */
  stopped: string | undefined;
  /** The header could be neither changed nor restored: tables in memory must not be written any more. */
  unsure = false;
  /** Where header, tables, refcount blocks, snapshot table and bitmap directory stand, while writable. */
  readonly places: MetadataPlaces;
  /** L2 tables, by their L1 entries, that say to be ours alone and share their place with other metadata. */
  readonly #doubtfulTables = new Map<number, number>();
  readonly #onCorruption: ((report: CorruptionReport) => void) | undefined;
  /** Damage was told once already. */
  #corruptionTold = false;
  /** The write of the flags that is under way or was the last one. */
  #flagsWrite: Promise<void> = Promise.resolve();

  constructor(parts: ImageParts) {
    const { host, file, header, l1, reftable, logger } = parts;
    this.host = host;
    this.file = file;
    this.debug = debugHookOf(file);
    this.header = header;
    this.size = header.size;
    this.logger = logger;
    this.geometry = geometryOf(header);
    this.clusterSize = this.geometry.clusterSize;
    this.l1 = l1;
    this.locks = new ClusterLocks(parts.clock);
    this.places = new MetadataPlaces(this.clusterSize, parts.overlapChecks);
    this.#onCorruption = parts.onCorruption;
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
      refuseBlock: (offset) => this.#refuseSharedBlock(offset),
      onPressure,
    });
    this.frees = new DeferredFrees({
      file,
      refcounts: this.refcounts,
      epochs: this.epochs,
      lentRanges: this.lentRanges,
      clock: parts.clock,
      logger,
      isTable: (cluster) => this.#isTable(cluster, "freeing"),
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
      refuseIfUnsure: () => this.refuseIfUnsure(),
      refuseOverlap: (offset, bytes, own) => this.#refuseLate(offset, bytes, own),
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
      isTable: (cluster) => this.#isTable(cluster, "allocation"),
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
      this.debug?.("cluster_alloc");
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
   * throw. `offset` and `bytes`: where in the file, if that is known.
   */
  damaged(message: string, offset?: number, bytes?: number): BlockError {
    if (this.writable && this.stopped === undefined) {
      this.stop(message, { offset, bytes });
      if (this.header.version >= 3) {
        this.header.incompatible |= Incompatible.CORRUPT;
        this.writeFlags().catch(() => undefined);
      }
    } else if (!this.#corruptionTold) {
      this.logger.error(
        `qcow2: Image is corrupt: ${message}; further non-fatal corruption events will be suppressed`,
      );
      this.#tellCorruption(message, { offset, bytes, fatal: false });
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
  stop(message: string, where: Partial<CorruptionReport> = {}): void {
    if (this.stopped !== undefined) return;
    this.stopped = message;
    this.logger.error(
      `qcow2: Marking image as corrupt: ${message}; further corruption events will be suppressed`,
    );
    this.#tellCorruption(message, { ...where, fatal: true });
  }

  #tellCorruption(message: string, where: Partial<CorruptionReport> & { fatal: boolean }): void {
    this.#corruptionTold = true;
    this.#onCorruption?.({ ...where, node: this.host.name, message });
  }

  /** Writes the feature flags of the header in place: one write inside one sector. */
  writeFlags(): Promise<void> {
    const flags = serializeFeatures(this.header);
    const before = this.#flagsWrite.catch(() => undefined);
    this.#flagsWrite = before.then(() => this.file.write(FEATURES_OFFSET, flags.length, flags, 0));
    return this.#flagsWrite;
  }

  /** Writes the mark of damage once more, where there is one. As when it was set, a failure is not told. */
  async markAgain(): Promise<void> {
    if ((this.header.incompatible & Incompatible.CORRUPT) !== 0)
      await this.writeFlags().catch(() => undefined);
  }

  /** Done when no write of the flags is under way. */
  async flagsWritten(): Promise<void> {
    await this.#flagsWrite.catch(() => undefined);
  }

  // --- where metadata stands -------------------------------------------------------------------------------

  /** Whether guest data there would destroy metadata in use. */
  overlapsMetadata(hostOffset: number, bytes: number): boolean {
    return this.places.touchedBy(hostOffset, bytes) !== 0;
  }

  /**
   * Stands before a write: of guest data, or of metadata of the kind `own`.
   * @throws BlockError EIO when it would go over other metadata
   */
  refuseOverlap(offset: number, bytes: number, own = 0): void {
    const kinds = this.places.touchedBy(offset, bytes, own);
    if (kinds !== 0) throw this.#overlap(kinds, offset, bytes);
  }

  /** @throws BlockError EIO when the L2 table of an L1 entry cannot be written where it is */
  refuseDoubtfulTable(l1Index: number): void {
    const kinds = this.#doubtfulTables.get(l1Index);
    if (kinds === undefined) return;
    const offset = entryOffset(this.l1.words[l1Index * 2]!, this.l1.words[l1Index * 2 + 1]!);
    throw this.#overlap(kinds, offset, this.clusterSize);
  }

  #overlap(kinds: number, offset: number, bytes: number): BlockError {
    return this.damaged(
      `Preventing invalid write on metadata (overlaps with ${kindName(kinds)})`,
      offset,
      bytes,
    );
  }

  /** What is in memory belongs nowhere: it is not written any more. */
  #refuseLate(offset: number, bytes: number, own: number): void {
    const kinds = this.places.touchedBy(offset, bytes, own);
    if (kinds === 0) return;
    this.unsure = true;
    throw this.#overlap(kinds, offset, bytes);
  }

  /** Refcounts in a block that is something else too, or that stands for two stretches, say nothing. */
  #refuseSharedBlock(offset: number): void {
    const { REFCOUNT_BLOCK } = MetadataKind;
    this.refuseOverlap(offset, this.clusterSize, REFCOUNT_BLOCK);
    const twice = this.places.isTwice(REFCOUNT_BLOCK, this.clusterOf(offset));
    if (twice && (this.places.checks & REFCOUNT_BLOCK) !== 0) {
      throw this.#overlap(REFCOUNT_BLOCK, offset, this.clusterSize);
    }
  }

  /**
   * Whether metadata stands in a cluster whose refcount says that nobody needs it (any more). Then refcounts
   * are not to be believed: where that is checked for, the image is damaged.
   * @throws BlockError EIO
   */
  #isTable(cluster: number, what: string): boolean {
    const kinds = this.places.kindsIn(cluster);
    const checked = kinds & this.places.checks;
    if (checked === 0) return kinds !== 0;
    const offset = cluster * this.clusterSize;
    throw this.damaged(
      `Preventing invalid ${what} of the cluster at offset 0x${offset.toString(16)} ` +
        `(overlaps with ${kindName(checked)})`,
      offset,
      this.clusterSize,
    );
  }

  /** Whether a cluster there begins past the end of the file: it cannot be one that holds data. */
  isPastEnd(hostOffset: number, bytes: number): boolean {
    return alignDown(hostOffset + bytes - 1, this.clusterSize) >= this.file.size;
  }

  /**
   * Collects the places anew, for an image that is to be written to.
   * @throws BlockError IMAGE_UNSUPPORTED when its snapshots have more tables than can be kept from being
   * overwritten
   */
  collectMetadata(): void {
    const { header, clusterSize, places } = this;
    // A table that cannot be is not protected: a hostile length would fill the memory.
    const inactive = this.snapshots.map(({ l1TableOffset, l1Size }) => ({
      offset: l1TableOffset,
      bytes: Math.min(l1Size * 8, Math.max(0, this.file.size - l1TableOffset)),
    }));
    const inactiveClusters = inactive.reduce((sum, { bytes }) => sum + divideUp(bytes, clusterSize), 0);
    if (inactiveClusters > INACTIVE_L1_CLUSTERS_MAX) throw tooManyTables();
    const add = (kind: number, offset: number, bytes: number) =>
      places.add(kind, this.clusterOf(offset), divideUp(bytes, clusterSize));
    places.clear();
    add(MetadataKind.MAIN_HEADER, 0, clusterSize);
    add(MetadataKind.ACTIVE_L1, this.l1.offset, this.l1.entries * 8);
    add(MetadataKind.REFCOUNT_TABLE, header.refcountTableOffset, header.refcountTableClusters * clusterSize);
    for (const { offset, bytes } of inactive) add(MetadataKind.INACTIVE_L1, offset, bytes);
    add(MetadataKind.SNAPSHOT_TABLE, header.snapshotsOffset, this.snapshotTableBytes);
    if (header.bitmaps !== undefined) {
      add(MetadataKind.BITMAP_DIRECTORY, header.bitmaps.directoryOffset, header.bitmaps.directoryBytes);
    }
    collect(this.l1, entryOffset, (offset) => add(MetadataKind.ACTIVE_L2, offset, clusterSize));
    collect(this.refcounts.table, reftableOffset, (offset) =>
      add(MetadataKind.REFCOUNT_BLOCK, offset, clusterSize),
    );
    this.doubtTables();
  }

  /**
   * Finds L2 tables that must not be written where they are. In memory they count as shared, so that nothing
   * is changed in place through them, and the attempt to copy one meets `refuseDoubtfulTable`.
   */
  doubtTables(): void {
    const { l1, places, clusterSize } = this;
    const { ACTIVE_L2 } = MetadataKind;
    for (let index = 0; index < l1.entries; index++) {
      const high = l1.words[index * 2]!;
      const offset = entryOffset(high, l1.words[index * 2 + 1]!);
      if (offset === 0 || (high & COPIED_HIGH) === 0) continue;
      let kinds = places.touchedBy(offset, clusterSize, ACTIVE_L2);
      if (places.isTwice(ACTIVE_L2, this.clusterOf(offset))) kinds |= ACTIVE_L2 & places.checks;
      if (kinds === 0) continue;
      this.#doubtfulTables.set(index, kinds);
      l1.words[index * 2] = (high & ~COPIED_HIGH) >>> 0;
    }
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
    this.debug?.("l2_load");
    return this.file.read(offset, bytes.length, bytes, 0);
  }
}

function tooManyTables(): BlockError {
  return new BlockError(
    "IMAGE_UNSUPPORTED",
    `the L1 tables of the snapshots take more than ${INACTIVE_L1_CLUSTERS_MAX} clusters: ` +
      "open the image for reading only, or delete snapshots with qemu-img",
  );
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

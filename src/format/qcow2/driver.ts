// The qcow2 driver: the contract of a block driver on top of the parts (see image.ts for who they are).
//
//   open ── header, L1 table, refcount table are read; nothing else
//   read, write, writeZeroes, discard, copyUp ── reader.ts, writer.ts, zeroer.ts, copy-up.ts
//   flush ── flusher.ts
//   truncate, changeBackingLink ── grow.ts, header-update.ts
//   setWritable, close ── writing-state.ts

import { systemClock } from "../../base/clock.ts";
import type { Completion } from "../../base/completion.ts";
import { BlockError } from "../../base/errors.ts";
import { silentLogger } from "../../base/logger.ts";
import { MiB } from "../../base/units.ts";
import { debugHookOf } from "../../block/debug-event.ts";
import {
  type Counters,
  type Driver,
  type DriverHost,
  Holding,
  type ImageDetails,
} from "../../block/driver.ts";
import { ExtentKind, type ExtentSink, NO_HOST_OFFSET } from "../../block/extent.ts";
import type { Loan } from "../../block/loan.ts";
import type { BlockNode } from "../../block/node.ts";
import { readBitmaps } from "./bitmaps.ts";
import { CopyUp } from "./copy-up.ts";
import { imageDetails } from "./details.ts";
import { Grower } from "./grow.ts";
import { checkBackingLink, writeBackingLink } from "./header-update.ts";
import { Image } from "./image.ts";
import { type Mapping, RunKind } from "./mapping.ts";
import { readHeader, readTable } from "./open-tables.ts";
import type { Qcow2Options } from "./options.ts";
import { OVERLAP_CHECKS_DEFAULT } from "./overlap-checks.ts";
import { Reader } from "./reader.ts";
import { readSnapshots } from "./snapshots.ts";
import { Writer } from "./writer.ts";
import { WritingState } from "./writing-state.ts";
import { Zeroer } from "./zeroer.ts";

const L2_CACHE_BYTES = 8 * MiB;
const REFCOUNT_CACHE_BYTES = 2 * MiB;

/**
 * Opens the image in `host.file`. The backing image is the caller's business.
 * @throws BlockError IMAGE_FORMAT, IMAGE_UNSUPPORTED, IMAGE_CORRUPT, or what the file says
 */
export async function openQcow2(host: DriverHost, options: Qcow2Options): Promise<Qcow2Driver> {
  const { file } = host;
  if (file === undefined) throw new BlockError("EINVAL", `A block device must be specified for "file"`);
  const header = await readHeader(file);
  const clusterSize = 2 ** header.clusterBits;
  const reftableEntries = (header.refcountTableClusters * clusterSize) / 8;
  const l1 = await readTable(file, header.l1TableOffset, header.l1Size);
  debugHookOf(file)?.("reftable_load");
  const image = new Image({
    host,
    file,
    header,
    l1,
    reftable: await readTable(file, header.refcountTableOffset, reftableEntries),
    l2CacheBytes: options.l2CacheBytes ?? L2_CACHE_BYTES,
    refcountCacheBytes: options.refcountCacheBytes ?? REFCOUNT_CACHE_BYTES,
    overlapChecks: options.overlapChecks ?? OVERLAP_CHECKS_DEFAULT,
    logger: options.logger ?? silentLogger,
    clock: options.clock ?? systemClock,
    onCorruption: options.onCorruption,
  });
  const { snapshots, bytes } = await readSnapshots(file, header);
  image.snapshots = snapshots;
  image.snapshotTableBytes = bytes;
  image.bitmaps = await readBitmaps(file, header);
  const driver = new Qcow2Driver(image, options);
  if (!options.readOnly) await driver.setWritable(true);
  return driver;
}

export class Qcow2Driver implements Driver {
  readonly driverName = "qcow2";
  readonly growable = false;
  readonly supportsBacking = true;
  readonly clusterSize: number;
  /** The parts, for tests and tools of this folder. */
  readonly image: Image;
  readonly #reader: Reader;
  readonly #writer: Writer;
  readonly #zeroer: Zeroer;
  readonly #copyUp: CopyUp;
  readonly #grower: Grower;
  readonly #writing: WritingState;
  readonly #mapping: Mapping;
  readonly #discards: boolean;

  constructor(image: Image, options: Qcow2Options) {
    this.image = image;
    this.clusterSize = image.clusterSize;
    this.#discards = options.discard !== "ignore" && options.discard !== "off";
    this.#mapping = image.newMapping();
    this.#reader = new Reader(image);
    this.#writer = new Writer(image, this.#reader);
    this.#zeroer = new Zeroer(image, this.#reader, this.#writer);
    this.#copyUp = new CopyUp(image, this.#reader, this.#writer, this.#zeroer);
    this.#grower = new Grower(image, this.#writer, this.#zeroer);
    this.#writing = new WritingState(image);
  }

  get size(): number {
    return this.image.header.size;
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    if (bytes === 0) return;
    return this.#reader.read(offset, bytes, buffer, at);
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    if (bytes === 0) return;
    if (!this.#writing.ready) {
      return this.#writing.begin().then(() => this.#writer.write(offset, bytes, buffer, at));
    }
    return this.#writer.write(offset, bytes, buffer, at);
  }

  writeZeroes(offset: number, bytes: number, flags: number): Completion {
    if (bytes === 0) return;
    if (!this.#writing.ready) {
      return this.#writing.begin().then(() => this.#zeroer.writeZeroes(offset, bytes, flags));
    }
    return this.#zeroer.writeZeroes(offset, bytes, flags);
  }

  discard(offset: number, bytes: number): Completion {
    if (bytes === 0 || !this.#discards) return;
    if (!this.#writing.ready) {
      return this.#writing.begin().then(() => this.#zeroer.discard(offset, bytes));
    }
    return this.#zeroer.discard(offset, bytes);
  }

  flush(): Completion {
    if (!this.image.writable) return;
    this.image.refuseIfUnsure();
    this.image.debug?.("flush_to_os");
    return this.image.flusher.flush();
  }

  extents(offset: number, bytes: number, out: ExtentSink): Completion {
    const mapping = this.#mapping;
    const end = offset + bytes;
    for (let pos = offset; pos < end; ) {
      const kind = mapping.lookup(pos, end - pos);
      if (kind === RunKind.NEED_SLICE) {
        const loading = this.image.l2.load(mapping.missing);
        if (loading !== undefined) return this.#extentsAfter(loading, pos, end - pos, out);
        continue;
      }
      if (kind === RunKind.INVALID) throw this.#reader.invalid(pos, mapping);
      const run = mapping.bytes;
      if (!pushRun(out, kind, run, mapping.hostOffset)) return;
      pos += run;
    }
  }

  async #extentsAfter(loading: Promise<void>, offset: number, bytes: number, out: ExtentSink): Promise<void> {
    await loading;
    await this.extents(offset, bytes, out);
  }

  holding(offset: number, bytes: number): Holding {
    const kind = this.#mapping.lookup(offset, bytes);
    if (kind === RunKind.NEED_SLICE) return Holding.UNKNOWN;
    return kind === RunKind.UNALLOCATED && this.#mapping.bytes === bytes
      ? Holding.NOTHING
      : Holding.SOMETHING;
  }

  placeOf(offset: number, bytes: number): number {
    const { image } = this;
    // A fault filter below is told of each read of data.
    if (image.writable || image.debug !== undefined) return NO_HOST_OFFSET;
    const mapping = this.#mapping;
    if (mapping.lookup(offset, bytes) !== RunKind.DATA || mapping.bytes !== bytes) return NO_HOST_OFFSET;
    return mapping.hostOffset + bytes <= image.file.size ? mapping.hostOffset : NO_HOST_OFFSET;
  }

  lend(offset: number, bytes: number, loan: Loan): boolean {
    return this.#reader.lend(offset, bytes, loan);
  }

  async copyUp(offset: number, bytes: number, base: BlockNode | undefined, idle: boolean): Promise<number> {
    if (!this.#writing.ready) await this.#writing.begin();
    return this.#copyUp.copyUp(offset, bytes, base, idle);
  }

  async truncate(size: number): Promise<void> {
    if (!this.#writing.ready) await this.#writing.begin();
    await this.#grower.growTo(size);
  }

  checkBackingLink(file: string | undefined, format: string | undefined): void {
    checkBackingLink(this.image.header, { file, format });
  }

  async changeBackingLink(file: string | undefined, format: string | undefined): Promise<void> {
    const { image } = this;
    image.refuseIfStopped();
    // All that the new link relies on is durable before it: nothing of what was copied may be in memory only.
    await this.#writing.settle();
    await image.flusher.exclusive(async () => {
      // The link is written with the header around it: a flag that is on its way must be there before.
      await image.flagsWritten();
      image.refuseIfStopped();
      await writeBackingLink(image.file, image.header, { file, format });
      // Damage that was met meanwhile: its mark may have been written over.
      await image.markAgain();
    });
  }

  async setWritable(writable: boolean): Promise<void> {
    if (writable === this.image.writable) return;
    if (writable) await this.#writing.open();
    else await this.#writing.leave();
  }

  details(): ImageDetails {
    return imageDetails(this.image);
  }

  allocatedBytes(): number {
    return this.image.file.driver.allocatedBytes();
  }

  counters(): Counters {
    const { l2, refcounts, locks, frees, flusher, allocator } = this.image;
    return {
      "l2-cache-loads": l2.counters.loads,
      "l2-cache-evictions": l2.counters.evictions,
      "refcount-cache-loads": refcounts.cache.counters.loads,
      "refcount-cache-evictions": refcounts.cache.counters.evictions,
      "dirty-slices": l2.dirtyCount + refcounts.cache.dirtyCount,
      "allocated-clusters": allocator.counters.claimedClusters,
      "freed-clusters": frees.counters.freedClusters,
      "leaked-clusters": frees.counters.leakedClusters,
      flushes: flusher.counters.flushes,
      "table-write-backs": flusher.counters.writeBacks,
      "lock-grants": locks.counters.grants,
      "lock-waits": locks.counters.waits,
      "lock-wait-ms": locks.counters.waitMs,
      "longest-lock-wait-ms": locks.counters.longestWaitMs,
      "longest-lock-queue": locks.counters.longestQueue,
    };
  }

  async close(): Promise<void> {
    if (this.image.writable) await this.#writing.close();
  }
}

function pushRun(out: ExtentSink, kind: RunKind, bytes: number, hostOffset: number): boolean {
  switch (kind) {
    case RunKind.DATA:
      return out.push(bytes, ExtentKind.DATA, hostOffset, false);
    case RunKind.COMPRESSED:
      return out.push(bytes, ExtentKind.DATA, NO_HOST_OFFSET, true);
    case RunKind.ZERO:
      return out.push(bytes, ExtentKind.ZERO, hostOffset, false);
    default:
      return out.push(bytes, ExtentKind.UNALLOCATED, NO_HOST_OFFSET, false);
  }
}

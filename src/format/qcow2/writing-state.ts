// From reading only to writing, and back.
//
//   open    may the image be written to? What autoclear demands is cleared; refcounts that are known to be
//           wrong (dirty bit) or too high (see use-marker.ts) are repaired first
//   begin   before the first change: bitmaps that will not follow our writes are marked as such
//   settle  everything in memory is durable, nothing is being freed any more
//   close   settle, then the marks of an image that is not in use

import { BlockError, errorMessage } from "../../base/errors.ts";
import { MiB } from "../../base/units.ts";
import { markBitmapsInUse, readBitmaps } from "./bitmaps.ts";
import { freePastEnd } from "./free-past-end.ts";
import { Incompatible, keptAutoclear, type Qcow2Header, refuseCorruptForWriting } from "./header.ts";
import type { Image } from "./image.ts";
import { collectInactiveTables } from "./inactive-tables.ts";
import { MetadataKind } from "./metadata-places.ts";
import { readHeader, readTable } from "./open-tables.ts";
import { type RepairMode, repairImage } from "./repair.ts";
import { isMarkedInUse, markClosed, markInUse } from "./use-marker.ts";

/** Tables that are read to repair leaks when an image is opened; a larger image waits for a check by hand. */
const LEAK_REPAIR_TABLE_BYTES_MAX = 256 * MiB;

export class WritingState {
  /** Nothing is to be done before a change. */
  ready = false;
  readonly #image: Image;
  #beginning: Promise<void> | undefined;
  /** The mark is in the file since the image was opened for writing. */
  #marked = false;
  /** There are leaks that could not be repaired: the mark stays. */
  #mayLeak = false;

  constructor(image: Image) {
    this.#image = image;
    image.beforeRefcounts = () => (this.#marked ? undefined : this.#mark());
  }

  /** @throws BlockError when the image must not be written to */
  async open(): Promise<void> {
    const image = this.#image;
    const { header } = image;
    refuseCorruptForWriting(header);
    await this.#clearAutoclear();
    this.#marked = false;
    this.#mayLeak = false;
    if ((header.incompatible & Incompatible.DIRTY) !== 0) await this.#repair("all");
    else if (isMarkedInUse(header)) await this.#repairLeaks();
    image.collectMetadata();
    if ((image.places.checks & MetadataKind.INACTIVE_L2) !== 0) await collectInactiveTables(image);
    image.allocator = image.newAllocator();
    image.writable = true;
    this.ready = header.bitmaps === undefined;
  }

  /** Before the first change after opening. */
  begin(): Promise<void> {
    this.#beginning ??= this.#begin().finally(() => {
      this.#beginning = undefined;
    });
    return this.#beginning;
  }

  /** Makes everything durable. The node is drained. */
  async settle(): Promise<void> {
    const { flusher, frees } = this.#image;
    await flusher.flush();
    await frees.settled();
    // The freed clusters' refcounts.
    await flusher.flush();
  }

  async close(): Promise<void> {
    const image = this.#image;
    try {
      // What was written before damage was seen is right, and is kept.
      if (!image.unsure) await this.settle();
      await image.flagsWritten();
      const leaks = this.#mayLeak || image.frees.counters.leakedClusters > 0;
      if (image.stopped === undefined && this.#marked && !leaks) {
        await markClosed(image.file, image.header);
      }
      await image.file.flush();
    } finally {
      image.writable = false;
      this.ready = false;
      image.frees.leakLent();
      if (image.unsure) image.dropCaches();
    }
  }

  async #begin(): Promise<void> {
    const image = this.#image;
    const { bitmaps } = image.header;
    if (bitmaps !== undefined) {
      image.refuseOverlap(bitmaps.directoryOffset, bitmaps.directoryBytes, MetadataKind.BITMAP_DIRECTORY);
    }
    await markBitmapsInUse(image.file, image.header);
    image.bitmaps = await readBitmaps(image.file, image.header);
    this.ready = true;
  }

  async #mark(): Promise<void> {
    await markInUse(this.#image.file, this.#image.header);
    this.#marked = true;
  }

  async #clearAutoclear(): Promise<void> {
    const { header, file } = this.#image;
    const kept = keptAutoclear(header.autoclear);
    if (kept === header.autoclear) return;
    header.autoclear = kept;
    await this.#image.writeFlags();
    await file.flush();
  }

  // --- repair ----------------------------------------------------------------------------------------------

  /** A repair that fails leaves leaks: no reason to refuse. */
  async #repairLeaks(): Promise<void> {
    const { l1, clusterSize, logger, file } = this.#image;
    if (
      l1.entries * clusterSize > LEAK_REPAIR_TABLE_BYTES_MAX &&
      l1.usedEntries() * clusterSize > LEAK_REPAIR_TABLE_BYTES_MAX
    ) {
      this.#mayLeak = true;
      logger.warn(`'${file.filename}' was not closed; it may hold leaked clusters: run a check with repair`);
      return;
    }
    try {
      await this.#repair("leaks");
      this.#marked = true;
    } catch (error) {
      this.#mayLeak = true;
      logger.warn(`leaked clusters of '${file.filename}' could not be freed: ${errorMessage(error)}`);
    }
  }

  async #repair(mode: RepairMode): Promise<void> {
    const image = this.#image;
    const result = await repairImage(image.file, mode);
    if (result.checkErrors === 0) await freePastEnd(image.file);
    if (result.leaksFixed + result.corruptionsFixed > 0) {
      image.logger.info(
        `'${image.file.filename}' was not closed; repaired ${result.leaksFixed} leaked clusters` +
          ` and ${result.corruptionsFixed} errors`,
      );
    }
    if (mode === "all" && result.checkErrors + result.corruptions > 0) {
      throw new BlockError(
        "IMAGE_CORRUPT",
        `Could not repair dirty image '${image.file.filename}': ${result.corruptions} errors and ` +
          `${result.checkErrors} check errors are left`,
      );
    }
    await this.#reload();
  }

  /** Reads again what a repair may have changed. */
  async #reload(): Promise<void> {
    const image = this.#image;
    const { file, header, clusterSize } = image;
    const repaired: Qcow2Header = await readHeader(file);
    Object.assign(header, repaired);
    const reftableEntries = (header.refcountTableClusters * clusterSize) / 8;
    image.l1.replace(await readTable(file, header.l1TableOffset, header.l1Size));
    image.refcounts.table.replace(await readTable(file, header.refcountTableOffset, reftableEntries));
    image.l2.clear();
    image.refcounts.cache.clear();
  }
}

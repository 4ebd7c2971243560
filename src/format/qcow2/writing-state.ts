// From reading only to writing, and back.
//
//   open    may the image be written to? What autoclear demands is cleared; refcounts that are known to be
//           wrong (dirty bit) or too high (see use-marker.ts) are repaired first
//   begin   before the first change: bitmaps that will not follow our writes are marked as such
//   settle  everything in memory is durable, nothing is being freed any more
//   leave   settle, then the marks of an image that is not in use; where that fails the image is open for
//           writing as before
//   close   the same for good: whatever fails

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
  /** Clusters that were leaked in earlier lives of the image. */
  #leakedBefore = 0;

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
    this.#leakedBefore = image.frees.counters.leakedClusters;
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

  /** From now on the image is only read. On an error it is open for writing as before. */
  async leave(): Promise<void> {
    await this.#writeAll();
    this.#left();
  }

  /** The same, but on an error it is not. */
  async close(): Promise<void> {
    try {
      await this.#writeAll();
    } finally {
      await this.#image.flagsWritten();
      this.#left();
    }
  }

  async #writeAll(): Promise<void> {
    const image = this.#image;
    // What was written before damage was seen is right, and is kept.
    if (!image.unsure) await this.settle();
    await image.markAgain();
    const leaks = this.#mayLeak || image.frees.counters.leakedClusters > this.#leakedBefore;
    if (image.stopped === undefined && this.#marked && !leaks) {
      // If that, or what comes after it, fails and the guest goes on, the mark is set anew.
      this.#marked = false;
      await markClosed(image.file, image.header);
    }
    await image.file.flush();
  }

  #left(): void {
    const image = this.#image;
    image.writable = false;
    this.ready = false;
    image.frees.leakLent();
    if (image.unsure) image.dropCaches();
  }

  async #begin(): Promise<void> {
    const image = this.#image;
    // What is written then would never get to the file. (Its node may think otherwise: the file below could
    // not be reopened.)
    if (!image.writable) throw new BlockError("EIO", "qcow2: the image is not open for writing");
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
    const before = header.autoclear;
    const kept = keptAutoclear(before);
    if (kept === before) return;
    header.autoclear = kept;
    try {
      await this.#image.writeFlags();
      await file.flush();
    } catch (error) {
      // So that the next attempt does it again.
      header.autoclear = before;
      throw error;
    }
  }

  // --- repair ----------------------------------------------------------------------------------------------

  /** A repair that fails, or would touch a damaged image, leaves leaks: no reason to refuse. */
  async #repairLeaks(): Promise<void> {
    const { l1, clusterSize, logger, file, lentRanges } = this.#image;
    if (!lentRanges.isEmpty) {
      // Leaked in an earlier life of this image because of just that: nobody frees or punches them yet.
      this.#mayLeak = true;
      return;
    }
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
    const result = await repairImage(image.file, mode, { soundOnly: mode === "leaks" });
    const errors = result.corruptions + result.checkErrors;
    if (errors === 0) await freePastEnd(image.file);
    if (result.leaksFixed + result.corruptionsFixed > 0) {
      image.logger.info(
        `'${image.file.filename}' was not closed; repaired ${result.leaksFixed} leaked clusters` +
          ` and ${result.corruptionsFixed} errors`,
      );
    }
    if (mode === "leaks" && errors > 0) {
      throw new BlockError("IMAGE_CORRUPT", `${errors} errors: run a check with repair`);
    }
    if (errors > 0) {
      throw new BlockError(
        "IMAGE_CORRUPT",
        `Could not repair dirty image '${image.file.filename}': ${result.corruptions} errors and ` +
          `${result.checkErrors} check errors are left`,
      );
    }
    await this.#reload();
  }

  /** Reads again what a repair may have changed: all of it, or the next attempt repairs again. */
  async #reload(): Promise<void> {
    const image = this.#image;
    const { file, header, clusterSize } = image;
    const repaired: Qcow2Header = await readHeader(file);
    const reftableEntries = (repaired.refcountTableClusters * clusterSize) / 8;
    const l1 = await readTable(file, repaired.l1TableOffset, repaired.l1Size);
    const reftable = await readTable(file, repaired.refcountTableOffset, reftableEntries);
    Object.assign(header, repaired);
    image.l1.replace(l1);
    image.refcounts.table.replace(reftable);
    image.l2.clear();
    image.refcounts.cache.clear();
  }
}

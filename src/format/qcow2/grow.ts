// Making the disk longer.
//
//   1. The L1 table moves to a larger place when it has to: place claimed and its refcounts durable, table
//      written and durable, then the header (one write inside one sector), then the old table is freed.
//   2. What is past the old end reads as zeros: the rest of the last cluster is zeroed as data, and where the
//      backing image is longer than the old disk, zero clusters hide it.
//   3. Only then, and durably, the header tells the new length. Until then nobody can reach the new part.

import { buffers } from "../../base/buffer-pool.ts";
import { writeU64 } from "../../base/bytes.ts";
import { BlockError } from "../../base/errors.ts";
import { alignUp, divideUp } from "../../base/units.ts";
import { MAX_L1_BYTES } from "./header.ts";
import type { Image } from "./image.ts";
import { RunKind } from "./mapping.ts";
import { MetadataKind } from "./metadata-places.ts";
import type { Writer } from "./writer.ts";
import type { Zeroer } from "./zeroer.ts";

/** In the header: length of the disk (8 bytes), encryption (4, zero), L1 entries (4), L1 offset (8). */
const HEADER_SIZE_AT = 24;
const HEADER_SIZE_AND_L1_BYTES = 24;

export class Grower {
  readonly #image: Image;
  readonly #writer: Writer;
  readonly #zeroer: Zeroer;
  #busy = false;

  constructor(image: Image, writer: Writer, zeroer: Zeroer) {
    this.#image = image;
    this.#writer = writer;
    this.#zeroer = zeroer;
  }

  /**
   * @throws BlockError ENOTSUP to make it shorter, or where the image has bitmaps; EFBIG past the format's
   * limits
   */
  async growTo(size: number): Promise<void> {
    const image = this.#image;
    const oldSize = image.size;
    this.#refuse(size);
    if (size === oldSize) return;
    this.#busy = true;
    try {
      await this.#growL1(size);
      await this.#hideRestOfLastCluster(oldSize, size);
      await this.#hideBacking(oldSize, size);
      await image.flusher.flush();
      await image.flusher.exclusive(() => this.#writeHeader(size));
      image.header.size = size;
    } catch (error) {
      image.size = oldSize;
      throw error;
    } finally {
      this.#busy = false;
    }
  }

  #refuse(size: number): void {
    const { size: oldSize, header, geometry } = this.#image;
    this.#image.refuseIfStopped();
    if (this.#busy) throw new BlockError("EBUSY", "The image is being resized already");
    if (!Number.isSafeInteger(size) || size < 0)
      throw new BlockError("EINVAL", `The size ${size} is not possible`);
    if (size % 512 !== 0) throw new BlockError("EINVAL", "The new size must be a multiple of 512");
    if (size < oldSize) {
      throw new BlockError("ENOTSUP", "qcow2 images cannot be made smaller while they are open");
    }
    if (header.bitmaps !== undefined) {
      throw new BlockError("ENOTSUP", "Can't resize an image which has bitmaps");
    }
    if (header.version < 3 && header.snapshotCount > 0) {
      throw new BlockError("ENOTSUP", "Can't resize a version 2 image which has snapshots");
    }
    if (divideUp(size, geometry.l2Span) * 8 > MAX_L1_BYTES) {
      throw new BlockError(
        "EFBIG",
        "Image is too big: its L1 table would exceed 32 MiB; use larger clusters",
      );
    }
  }

  // --- the L1 table ----------------------------------------------------------------------------------------

  async #growL1(size: number): Promise<void> {
    const image = this.#image;
    const { l1, clusterSize, geometry } = image;
    const entries = divideUp(size, geometry.l2Span);
    if (entries <= l1.entries) return;
    const clusters = divideUp(entries * 8, clusterSize);
    const oldClusters = divideUp(l1.entries * 8, clusterSize);
    const oldOffset = l1.offset;
    image.debug?.("l1_grow_alloc_table");
    const first = await image.growth.takeArea(clusters);
    try {
      await image.flusher.flush();
      await image.flusher.exclusive(() => this.#moveL1(first * clusterSize, entries));
    } catch (error) {
      if (!image.unsure) image.frees.release([{ first, count: clusters, punch: false }]);
      throw error;
    }
    image.places.remove(MetadataKind.ACTIVE_L1, oldOffset / clusterSize, oldClusters);
    image.places.add(MetadataKind.ACTIVE_L1, first, clusters);
    if (oldClusters > 0)
      image.frees.release([{ first: oldOffset / clusterSize, count: oldClusters, punch: false }]);
  }

  async #moveL1(offset: number, entries: number): Promise<void> {
    const { l1, file, flusher, clusterSize, header } = this.#image;
    // Entries that are in memory only go into the new table too: what they point at must be durable before it
    // counts. What first writes enter from now on does not: it is dirty in whichever table is in force then.
    const image = l1.image(alignUp(entries * 8, clusterSize));
    const dirty = l1.take();
    try {
      await flusher.writeRefcountsDurably();
      this.#image.debug?.("l1_grow_write_table");
      await file.write(offset, image.length, image, 0);
      await file.flush();
      await this.#pointHeader(offset, entries);
    } catch (error) {
      l1.putBack(dirty);
      throw error;
    }
    l1.moved(offset, entries);
    header.l1TableOffset = offset;
    header.l1Size = entries;
  }

  /** The commit point. When it is not known which table is in force, nothing may be written any more. */
  async #pointHeader(offset: number, entries: number): Promise<void> {
    const { l1, file, header, debug } = this.#image;
    const before = { size: header.size, entries: l1.entries, offset: l1.offset };
    try {
      debug?.("l1_grow_activate_table");
      await this.#writeSizeAndL1(header.size, entries, offset);
      await file.flush();
    } catch (error) {
      await this.#restoreHeader(before, error);
      throw error;
    }
  }

  async #restoreHeader(
    before: { readonly size: number; readonly entries: number; readonly offset: number },
    why: unknown,
  ): Promise<void> {
    try {
      await this.#writeSizeAndL1(before.size, before.entries, before.offset);
      await this.#image.file.flush();
    } catch {
      this.#image.stopUnsure(`the header could not be written: ${String(why)}`);
    }
  }

  async #writeSizeAndL1(size: number, entries: number, offset: number): Promise<void> {
    const fields = Buffer.alloc(HEADER_SIZE_AND_L1_BYTES);
    writeU64(fields, size, 0);
    fields.writeUInt32BE(entries, 12);
    writeU64(fields, offset, 16);
    await this.#image.file.write(HEADER_SIZE_AT, fields.length, fields, 0);
  }

  async #writeHeader(size: number): Promise<void> {
    const fields = Buffer.alloc(8);
    writeU64(fields, size, 0);
    await this.#image.file.write(HEADER_SIZE_AT, fields.length, fields, 0);
    await this.#image.file.flush();
  }

  // --- what is past the old end ----------------------------------------------------------------------------

  async #hideRestOfLastCluster(oldSize: number, size: number): Promise<void> {
    const image = this.#image;
    const { clusterSize, locks } = image;
    const rest = Math.min(alignUp(oldSize, clusterSize), size) - oldSize;
    if (rest === 0) {
      image.size = size;
      return;
    }
    const cluster = image.clusterOf(oldSize);
    await locks.lockExclusive(cluster, 1);
    const zeros = buffers.take(rest).fill(0);
    try {
      if (await this.#showsSomething(oldSize, rest)) await this.#writer.writeLocked(oldSize, rest, zeros, 0);
      image.size = size;
    } finally {
      buffers.give(zeros);
      locks.unlockExclusive(cluster, 1);
    }
  }

  /** Whether anything but zeros may be read in the range, which nobody could reach so far. */
  async #showsSomething(offset: number, bytes: number): Promise<boolean> {
    const image = this.#image;
    const mapping = image.newMapping();
    for (let pos = offset; pos < offset + bytes; ) {
      const kind = mapping.lookup(pos, offset + bytes - pos);
      if (kind === RunKind.NEED_SLICE) {
        await image.l2.load(mapping.missing);
        continue;
      }
      const { backing } = image.host;
      const hidden = kind === RunKind.UNALLOCATED && (backing === undefined || backing.size <= pos);
      if (kind !== RunKind.ZERO && !hidden) return true;
      pos += mapping.bytes;
    }
    return false;
  }

  async #hideBacking(oldSize: number, size: number): Promise<void> {
    const { backing } = this.#image.host;
    const from = alignUp(oldSize, this.#image.clusterSize);
    const to = Math.min(size, backing?.size ?? 0);
    if (to <= from) return;
    const end = Math.min(size, alignUp(to, this.#image.clusterSize));
    await this.#zeroer.writeZeroes(from, end - from, 0);
  }
}

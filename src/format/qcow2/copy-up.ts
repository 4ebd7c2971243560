// Copy-up: brings into this image what it lacks and the images between it and a base hold. For streaming.
//
//   1. Under the exclusive lock of the whole range: what the guest wrote before stays; what it writes during
//      the copy waits and comes after. Either way the guest's data wins.
//   2. A unit (cluster, subcluster) is copied when any part of it is held above the base; then all of it, as
//      the guest sees it. So the base, which may have other cluster sizes, shows through in whole units only.
//   3. What the layers call zero becomes a zero cluster where something deeper could show, and stays away
//      where nothing can (no base). Data that turns out to be zeros becomes zero clusters. Version 2 has
//      none: there it is data.
//   4. What stands in one run of a layer's file is copied by the host where it can (host-copy.ts).
//   5. What the layers hold is listed once per run, and the list stays true over the waits: the merge holds
//      the layers above base, so nobody writes them, and our own backing link changes only while nothing is
//      in flight here.

import { buffers } from "../../base/buffer-pool.ts";
import { isZero } from "../../base/bytes.ts";
import { BlockError } from "../../base/errors.ts";
import { KiB, MiB } from "../../base/units.ts";
import { composedExtents } from "../../block/chain.ts";
import { WriteFlags } from "../../block/driver.ts";
import { type Extent, ExtentKind, ExtentList } from "../../block/extent.ts";
import type { BlockNode } from "../../block/node.ts";
import { HostCopy } from "./host-copy.ts";
import type { Image } from "./image.ts";
import { type Mapping, RunKind } from "./mapping.ts";
import type { Reader } from "./reader.ts";
import type { Writer } from "./writer.ts";
import type { Zeroer } from "./zeroer.ts";

/** Bytes that are read and written at once. */
const PIECE_BYTES_MAX = 2 * MiB;

/** After so much the host is asked again whether it can copy: units of zeros may have been in the way. */
const BUFFERED_BYTES = 256 * KiB;

/** What to do with a stretch of whole units. */
const Action = { SKIP: 0, ZERO: 1, COPY: 2 } as const;
type Action = (typeof Action)[keyof typeof Action];

export class CopyUp {
  readonly #image: Image;
  readonly #reader: Reader;
  readonly #writer: Writer;
  readonly #zeroer: Zeroer;
  readonly #mapping: Mapping;
  readonly #hostCopy: HostCopy;

  constructor(image: Image, reader: Reader, writer: Writer, zeroer: Zeroer) {
    this.#image = image;
    this.#reader = reader;
    this.#writer = writer;
    this.#zeroer = zeroer;
    this.#mapping = image.newMapping();
    this.#hostCopy = new HostCopy(this.#mapping.subclusterSize, image.header.version >= 3);
  }

  /** See Driver.copyUp. */
  async copyUp(offset: number, bytes: number, base: BlockNode | undefined, idle: boolean): Promise<number> {
    const { locks } = this.#image;
    if (bytes === 0) return 0;
    const first = this.#image.clusterOf(offset);
    const count = this.#image.clusterCount(offset, bytes);
    await locks.lockExclusive(first, count);
    try {
      return await this.#copyLocked(offset, offset + bytes, base, idle);
    } finally {
      locks.unlockExclusive(first, count);
    }
  }

  async #copyLocked(
    offset: number,
    end: number,
    base: BlockNode | undefined,
    idle: boolean,
  ): Promise<number> {
    const image = this.#image;
    const mapping = this.#mapping;
    let copied = 0;
    for (let pos = offset; pos < end; ) {
      image.refuseIfStopped();
      const kind = mapping.lookup(pos, end - pos);
      if (kind === RunKind.NEED_SLICE) {
        await image.l2.load(mapping.missing);
        continue;
      }
      if (kind === RunKind.INVALID) throw this.#reader.invalid(pos, mapping);
      const runEnd = pos + mapping.bytes;
      if (kind === RunKind.UNALLOCATED) copied += await this.#fillRun(pos, runEnd, base, idle);
      pos = runEnd;
    }
    return copied;
  }

  /** [from, end) is unallocated here; both are at unit boundaries, or `end` is the end of the disk. */
  async #fillRun(from: number, end: number, base: BlockNode | undefined, idle: boolean): Promise<number> {
    const { backing } = this.#image.host;
    if (backing === undefined || backing === base) return 0;
    const list = new ExtentList(from);
    await composedExtents(backing, base, from, end - from, list);
    if (list.end < end)
      throw new BlockError("EIO", `the chain of '${backing.name}' does not tell what it holds`);
    let copied = 0;
    let at = 0;
    for (let pos = from; pos < end; ) {
      while (endOf(list.extents[at]!) <= pos) at++;
      const action = this.#actionAt(list.extents, at, pos, end, base);
      const to = this.#sameAction(list.extents, at, pos, end, base, action);
      if (action === Action.ZERO) await this.#zeroer.writeZeroesLocked(pos, to - pos, WriteFlags.MAY_UNMAP);
      if (action === Action.COPY) copied += await this.#copyRun(pos, to, list.extents, at, backing, idle);
      pos = to;
    }
    return copied;
  }

  /** End of the stretch of units from `pos` on that get the same treatment. */
  #sameAction(
    extents: readonly Extent[],
    at: number,
    pos: number,
    end: number,
    base: BlockNode | undefined,
    action: Action,
  ): number {
    const unit = this.#mapping.subclusterSize;
    let to = pos;
    let extent = at;
    while (to < end) {
      while (endOf(extents[extent]!) <= to) extent++;
      if (to > pos && this.#actionAt(extents, extent, to, end, base) !== action) break;
      // Whole units inside one extent are alike: no need to look at each.
      const wholeUnits = Math.floor((endOf(extents[extent]!) - to) / unit) * unit;
      to = Math.min(end, to + Math.max(unit, wholeUnits));
    }
    return to;
  }

  /** What to do with the unit at `pos`, which begins in extent `at`. */
  #actionAt(
    extents: readonly Extent[],
    at: number,
    pos: number,
    end: number,
    base: BlockNode | undefined,
  ): Action {
    const unitEnd = Math.min(end, pos + this.#mapping.subclusterSize);
    let data = false;
    let zero = false;
    let none = false;
    for (let i = at; i < extents.length && extents[i]!.offset < unitEnd; i++) {
      const { kind } = extents[i]!;
      data ||= kind === ExtentKind.DATA;
      zero ||= kind === ExtentKind.ZERO;
      none ||= kind === ExtentKind.UNALLOCATED;
    }
    if (!data && !zero) return Action.SKIP;
    if (data) return Action.COPY;
    // Zeros only. Without a base nothing can show once the backing link is gone.
    if (base === undefined) return Action.SKIP;
    return none || this.#image.header.version < 3 ? Action.COPY : Action.ZERO;
  }

  /** Copies [from, to) as the guest sees it; `extents` from `at` on are what `backing` holds there. */
  async #copyRun(
    from: number,
    to: number,
    extents: readonly Extent[],
    at: number,
    backing: BlockNode,
    idle: boolean,
  ): Promise<number> {
    const unit = this.#mapping.subclusterSize;
    let copied = 0;
    let index = at;
    for (let pos = from; pos < to; ) {
      while (endOf(extents[index]!) <= pos) index++;
      const source = this.#hostCopy.sourceOf(extents[index]!, backing, pos, to, this.#image.file);
      if (source !== undefined) {
        await this.#writer.copyLocked(pos, source, idle);
        copied += source.bytes;
        pos += source.bytes;
        continue;
      }
      const rest = Math.min(endOf(extents[index]!) - pos, BUFFERED_BYTES);
      const end = Math.min(to, pos + Math.ceil(rest / unit) * unit);
      copied += await this.#copyThroughBuffer(pos, end);
      pos = end;
    }
    return copied;
  }

  async #copyThroughBuffer(from: number, to: number): Promise<number> {
    const { clusterSize } = this.#image;
    let copied = 0;
    for (let pos = from; pos < to; ) {
      const end = Math.min(to, pos + Math.max(PIECE_BYTES_MAX, clusterSize));
      const piece = buffers.take(end - pos);
      try {
        await this.#reader.readBacking(pos, end - pos, piece, 0);
        copied += await this.#writePiece(pos, end, piece);
      } finally {
        buffers.give(piece);
      }
      pos = end;
    }
    return copied;
  }

  /** Writes what was read, units of zeros as such where that is possible. */
  async #writePiece(from: number, end: number, piece: Buffer): Promise<number> {
    const unit = this.#mapping.subclusterSize;
    let copied = 0;
    for (let pos = from; pos < end; ) {
      const zero = this.#isZeroUnit(piece, pos - from, Math.min(end, pos + unit) - from);
      let to = Math.min(end, pos + unit);
      while (to < end && this.#isZeroUnit(piece, to - from, Math.min(end, to + unit) - from) === zero) {
        to = Math.min(end, to + unit);
      }
      if (!zero) {
        await this.#writer.writeLocked(pos, to - pos, piece, pos - from);
        copied += to - pos;
      } else {
        await this.#zeroer.writeZeroesLocked(pos, to - pos, WriteFlags.MAY_UNMAP);
      }
      pos = to;
    }
    return copied;
  }

  #isZeroUnit(piece: Buffer, from: number, to: number): boolean {
    return this.#image.header.version >= 3 && isZero(piece, from, to - from);
  }
}

function endOf(extent: Extent): number {
  return extent.offset + extent.bytes;
}

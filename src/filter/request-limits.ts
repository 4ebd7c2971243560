// Limits on requests, as a disk may have them, kept on the way to what is below: for tests of what is above.
//
//   align           requests begin and end there; others are widened: reads through a buffer, writes by
//                   reading what is around them first (RMW)
//   max-transfer    longest read or write; longer ones go in pieces
//   opt-write-zero  zeros begin and end there; the rest at both ends is written as data
//   max-write-zero, opt-discard, max-discard   the same for zeros and discards
//
//   1. Widened requests on the same blocks go one after the other: no write is lost in another's RMW.
//   2. A file that cannot grow is not made to: blocks end where it ends.
//   3. A failed piece ends the request; earlier pieces have been done.

import { buffers } from "../base/buffer-pool.ts";
import type { Completion } from "../base/completion.ts";
import { BlockError } from "../base/errors.ts";
import { alignDown, alignUp, isPowerOfTwo, MiB } from "../base/units.ts";
import { ClusterLocks } from "../block/cluster-locks.ts";
import type { DebugEvent } from "../block/debug-event.ts";
import { WriteFlags } from "../block/driver.ts";

/** In bytes; 0: no limit. */
export interface RequestLimits {
  readonly align: number;
  readonly maxTransfer: number;
  readonly optWriteZero: number;
  readonly maxWriteZero: number;
  readonly optDiscard: number;
  readonly maxDiscard: number;
}

/** Zeros and reads around a write go through a buffer of this size at the most. */
const BOUNCE_BYTES_MAX = 16 * MiB;
const INT_MAX = 2 ** 31 - 1;

/** @throws BlockError EINVAL in QEMU's words for limits that exclude each other */
export function checkLimits(limits: RequestLimits): void {
  const refuse = (name: string, value: number) => {
    throw new BlockError("EINVAL", `Cannot meet constraints with ${name} ${value}`);
  };
  const align = Math.max(limits.align, 1);
  if (limits.align !== 0 && (limits.align >= INT_MAX || !isPowerOfTwo(limits.align))) {
    refuse("align", limits.align);
  }
  const multiple = (name: string, value: number, unit: number) => {
    if (value !== 0 && (value >= INT_MAX || value % unit !== 0)) refuse(name, value);
  };
  multiple("max-transfer", limits.maxTransfer, align);
  multiple("opt-write-zero", limits.optWriteZero, align);
  multiple("max-write-zero", limits.maxWriteZero, Math.max(limits.optWriteZero, align));
  multiple("opt-discard", limits.optDiscard, align);
  multiple("max-discard", limits.maxDiscard, Math.max(limits.optDiscard, align));
}

export function hasLimits(limits: RequestLimits): boolean {
  return Object.values(limits).some((limit) => limit > 1);
}

/** What requests reach that keep to the limits. */
export interface LimitedTarget {
  readonly size: number;
  readonly growable: boolean;
  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion;
  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion;
  writeZeroes(offset: number, bytes: number, flags: number): Completion;
  discard(offset: number, bytes: number): Completion;
  event(event: DebugEvent): void;
}

export class LimitedRequests {
  readonly #limits: RequestLimits;
  readonly #align: number;
  readonly #target: LimitedTarget;
  readonly #locks = new ClusterLocks();

  constructor(limits: RequestLimits, target: LimitedTarget) {
    this.#limits = limits;
    this.#align = Math.max(limits.align, 1);
    this.#target = target;
  }

  async read(offset: number, bytes: number, buffer: Buffer, at: number): Promise<void> {
    const { from, to } = this.#blocks(offset, bytes);
    if (from === offset && to === offset + bytes) return this.#readPieces(from, to, buffer, at);
    const area = buffers.take(to - from);
    try {
      await this.#readPieces(from, to, area, 0);
      area.copy(buffer, at, offset - from, offset - from + bytes);
    } finally {
      buffers.give(area);
    }
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): Promise<void> {
    return this.#locked(offset, bytes, () => this.#writeBlocks(offset, bytes, buffer, at));
  }

  writeZeroes(offset: number, bytes: number, flags: number): Promise<void> {
    return this.#locked(offset, bytes, async () => {
      const from = Math.min(offset + bytes, alignUp(offset, this.#align));
      const to = Math.max(from, alignDown(offset + bytes, this.#align));
      if (from > offset) await this.#zerosAsData(offset, from - offset);
      if (to > from) await this.#zeroBlocks(from, to, flags);
      if (offset + bytes > to) await this.#zerosAsData(to, offset + bytes - to);
    });
  }

  /** What is smaller than a block is left out: a discard is a hint. */
  async discard(offset: number, bytes: number): Promise<void> {
    const { optDiscard, maxDiscard } = this.#limits;
    const unit = Math.max(optDiscard, this.#align);
    const from = alignUp(offset, this.#align);
    const end = alignDown(offset + bytes, this.#align);
    for (let pos = from; pos < end; ) {
      const to = fragmentEnd(pos, end, unit, maxDiscard);
      const discarded = this.#target.discard(pos, to - pos);
      if (discarded !== undefined) await discarded;
      pos = to;
    }
  }

  // --- inside ------------------------------------------------------------------------------------

  /** The blocks that hold the range. */
  #blocks(offset: number, bytes: number): { readonly from: number; readonly to: number } {
    const { growable, size } = this.#target;
    const to = alignUp(offset + bytes, this.#align);
    const limit = growable ? to : Math.max(offset + bytes, size);
    return { from: alignDown(offset, this.#align), to: Math.min(to, limit) };
  }

  async #locked(offset: number, bytes: number, work: () => Promise<void>): Promise<void> {
    if (bytes === 0) return;
    const first = Math.floor(offset / this.#align);
    const count = Math.floor((offset + bytes - 1) / this.#align) - first + 1;
    await this.#locks.lockExclusive(first, count);
    try {
      await work();
    } finally {
      this.#locks.unlockExclusive(first, count);
    }
  }

  async #writeBlocks(offset: number, bytes: number, buffer: Buffer, at: number): Promise<void> {
    const { from, to } = this.#blocks(offset, bytes);
    if (from === offset && to === offset + bytes) return this.#writePieces(from, to, buffer, at);
    const area = buffers.take(to - from);
    try {
      await this.#readAround(offset, offset + bytes, from, to, area);
      buffer.copy(area, offset - from, at, at + bytes);
      await this.#writePieces(from, to, area, 0);
    } finally {
      buffers.give(area);
    }
  }

  /** Fills the blocks at both ends of `area`, which stands for [from, to); neighbours with one read. */
  async #readAround(start: number, end: number, from: number, to: number, area: Buffer): Promise<void> {
    const target = this.#target;
    const head = start > from;
    const tail = end < to;
    const both = to - from <= (head && tail ? 2 : 1) * this.#align;
    if (head || both) {
      if (head) target.event("pwritev_rmw_head");
      if (tail && both) target.event("pwritev_rmw_tail");
      await this.#readPieces(from, both ? to : from + this.#align, area, 0);
      if (head) target.event("pwritev_rmw_after_head");
      if (tail && both) target.event("pwritev_rmw_after_tail");
    }
    if (!tail || both) return;
    const last = alignDown(end, this.#align);
    target.event("pwritev_rmw_tail");
    await this.#readPieces(last, to, area, last - from);
    target.event("pwritev_rmw_after_tail");
  }

  async #readPieces(from: number, to: number, buffer: Buffer, at: number): Promise<void> {
    for (let pos = from; pos < to; ) {
      const end = this.#pieceEnd(pos, to);
      const read = this.#target.read(pos, end - pos, buffer, at + pos - from);
      if (read !== undefined) await read;
      pos = end;
    }
  }

  async #writePieces(from: number, to: number, buffer: Buffer, at: number): Promise<void> {
    this.#target.event("pwritev");
    try {
      for (let pos = from; pos < to; ) {
        const end = this.#pieceEnd(pos, to);
        const written = this.#target.write(pos, end - pos, buffer, at + pos - from);
        if (written !== undefined) await written;
        pos = end;
      }
    } finally {
      this.#target.event("pwritev_done");
    }
  }

  #pieceEnd(pos: number, to: number): number {
    const { maxTransfer } = this.#limits;
    return maxTransfer === 0 ? to : Math.min(to, pos + maxTransfer);
  }

  async #zerosAsData(offset: number, bytes: number): Promise<void> {
    const zeros = buffers.take(bytes).fill(0);
    try {
      await this.#writeBlocks(offset, bytes, zeros, 0);
    } finally {
      buffers.give(zeros);
    }
  }

  /** Whole blocks; what is not a multiple of `opt-write-zero` is written as data, or refused. */
  async #zeroBlocks(from: number, to: number, flags: number): Promise<void> {
    const { optWriteZero, maxWriteZero, maxTransfer } = this.#limits;
    const unit = Math.max(optWriteZero, this.#align);
    const bounceMax = maxTransfer === 0 ? BOUNCE_BYTES_MAX : Math.min(maxTransfer, BOUNCE_BYTES_MAX);
    this.#target.event("pwritev_zero");
    try {
      for (let pos = from; pos < to; ) {
        let end = fragmentEnd(pos, to, unit, maxWriteZero);
        if (end - pos >= unit) {
          const zeroed = this.#target.writeZeroes(pos, end - pos, flags);
          if (zeroed !== undefined) await zeroed;
        } else {
          if ((flags & WriteFlags.NO_FALLBACK) !== 0) throw refusedZeros(unit);
          end = Math.min(end, pos + bounceMax);
          await this.#bounceZeros(pos, end - pos);
        }
        pos = end;
      }
    } finally {
      this.#target.event("pwritev_done");
    }
  }

  async #bounceZeros(offset: number, bytes: number): Promise<void> {
    const zeros = buffers.take(bytes).fill(0);
    try {
      await this.#target.write(offset, bytes, zeros, 0);
    } finally {
      buffers.give(zeros);
    }
  }
}

/** End of the next fragment: up to a multiple of `unit`, then whole units, then the rest. */
function fragmentEnd(pos: number, end: number, unit: number, max: number): number {
  const aligned = alignUp(pos, unit);
  let to = pos < aligned ? Math.min(end, aligned) : Math.max(alignDown(end, unit), pos);
  if (to === pos) to = end;
  return max === 0 ? to : Math.min(to, pos + max);
}

function refusedZeros(unit: number): BlockError {
  return new BlockError("ENOTSUP", `zeros that are no multiple of ${unit} bytes would be written as data`);
}

// Extents of one context over one range, merged and bounded, as a status reply or a read with holes needs
// them.

import { KiB } from "../src/base/units.ts";
import { StatusFlags, type StatusSink } from "./backend.ts";

/**
 * Extents in one BLOCK_STATUS chunk; what is left out the client asks for again. 128 KiB of reply when
 * extended.
 */
export const STATUS_EXTENTS_MAX = 8192;

export class ExtentList {
  readonly lengths: number[] = [];
  readonly flags: number[] = [];
  /** Bytes that the extents cover. */
  covered = 0;
  #wanted = 0;
  #countMax = 0;

  /** Empties the list for a range of `bytes`, at most `countMax` extents. */
  reset(bytes: number, countMax: number): this {
    this.lengths.length = this.flags.length = 0;
    this.covered = 0;
    this.#wanted = bytes;
    this.#countMax = countMax;
    return this;
  }

  get count(): number {
    return this.lengths.length;
  }

  readonly sink: StatusSink = (bytes, flags) => {
    const last = this.lengths.length - 1;
    const taken = Math.min(bytes, this.#wanted - this.covered);
    if (taken <= 0) return this.covered < this.#wanted;
    if (last >= 0 && this.flags[last] === flags) {
      this.lengths[last]! += taken;
    } else {
      if (last + 1 >= this.#countMax) return false;
      this.lengths.push(taken);
      this.flags.push(flags);
    }
    this.covered += taken;
    return this.covered < this.#wanted;
  };
}

const free: ExtentList[] = [];
const FREE_MAX = 64;

export function takeExtentList(): ExtentList {
  return free.pop() ?? new ExtentList();
}

export function giveExtentList(list: ExtentList): void {
  if (free.length < FREE_MAX && list.lengths.length <= STATUS_EXTENTS_MAX) free.push(list);
}

/** A hole below this is cheaper sent as data than as a chunk of its own. */
const HOLE_BYTES_MIN = 32 * KiB;

/** One piece of a read reply. */
export interface ReadPiece {
  /** From the start of the request. */
  readonly at: number;
  bytes: number;
  readonly hole: boolean;
}

/**
 * Cuts a read of `bytes` into data and holes: holes worth a chunk only, neighbours merged, what the list does
 * not cover taken for data. Undefined when that is all data.
 */
export function readPieces(list: ExtentList, bytes: number): ReadPiece[] | undefined {
  const pieces: ReadPiece[] = [];
  let at = 0;
  const add = (length: number, hole: boolean) => {
    const last = pieces.at(-1);
    if (last !== undefined && last.hole === hole) last.bytes += length;
    else if (length > 0) pieces.push({ at, bytes: length, hole });
    at += length;
  };
  for (let i = 0; i < list.count; i++) {
    const zero = (list.flags[i]! & StatusFlags.ZERO) !== 0;
    add(list.lengths[i]!, zero && list.lengths[i]! >= HOLE_BYTES_MIN);
  }
  if (at < bytes) add(bytes - at, false);
  return pieces.some((piece) => piece.hole) ? pieces : undefined;
}

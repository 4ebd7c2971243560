// Which image of a deep chain holds a unit of the disk, so that a read goes there at once instead of asking
// one layer after the other: a chain of 32 then costs what a chain of 2 does.
//
//        top      .  .  D  .        unit 0 -> layer 3, unit 1 -> layer 1, unit 3 -> layer 3 (its bottom)
//        layer 1  .  D  .  .
//        layer 2  .  .  .  .
//        layer 3  D  .  D  .
//
//   1. A layer is passed over only if nobody can change it: open for reading only, and not held back
//      (quiesced). The first one that does not qualify is the owner, whatever it holds: it is asked as ever.
//   2. It is passed over only if it says at once that it holds nothing of the whole unit, and if it reaches
//      to the unit's end: past its own end there are zeros, never data of a deeper layer.
//   3. Whatever may change an answer begins a new age (chain-age.ts), and everything is forgotten.
//   4. Answers are used in the turn of the loop in which they are looked up.
//   5. Memory has a bound, whatever the size of the disk: a byte for each unit that was read, 4 MiB at the
//      most.

import { type Completion, settleAll } from "../base/completion.ts";
import { chainAge } from "./chain-age.ts";
import { Holding } from "./driver.ts";
import type { BlockNode } from "./node.ts";

const PAGE_UNITS = 4096;
const PAGES_MAX = 1024;
/** Of a unit: nothing is known. Otherwise the depth of its owner, 1 for the first layer below. */
const UNKNOWN = 0;
const DEPTH_MAX = 255;

export class OwnerIndex {
  readonly #unitBytes: number;
  readonly #pages = new Map<number, Uint8Array>();
  /** The page that was used last. */
  #page: Uint8Array | undefined;
  #pageNumber = -1;
  /** By depth; [0] is not used. */
  readonly #layers: BlockNode[] = [];
  #first: BlockNode | undefined;
  #age = -1;

  /** @param unitBytes what the image on top says nothing about at once: its clusters, in bytes */
  constructor(unitBytes: number) {
    this.#unitBytes = unitBytes;
  }

  /**
   * Fills `buffer[at .. at+bytes)` with what `backing` and the images below it hold; zeros past its end. The
   * same as `backing.read`, in fewer steps.
   */
  read(backing: BlockNode, offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    const unit = Math.floor(offset / this.#unitBytes);
    if (offset + bytes <= (unit + 1) * this.#unitBytes) {
      return readWithin(this.#ownerOf(backing, unit), offset, bytes, buffer, at);
    }
    return this.#readUnits(backing, offset, bytes, buffer, at);
  }

  /** Units in a row that one image owns are one read. All parts have settled before an error is handed up. */
  #readUnits(backing: BlockNode, offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    const unitBytes = this.#unitBytes;
    const end = offset + bytes;
    const waiting: Promise<void>[] = [];
    try {
      for (let from = offset; from < end; ) {
        let unit = Math.floor(from / unitBytes);
        const owner = this.#ownerOf(backing, unit);
        do unit++;
        while (unit * unitBytes < end && this.#ownerOf(backing, unit) === owner);
        const to = Math.min(unit * unitBytes, end);
        const reading = readWithin(owner, from, to - from, buffer, at + (from - offset));
        if (reading !== undefined) waiting.push(reading);
        from = to;
      }
    } catch (error) {
      if (waiting.length === 0) throw error;
      waiting.push(Promise.reject(error));
    }
    if (waiting.length > 0) return settleAll(waiting);
  }

  #ownerOf(backing: BlockNode, unit: number): BlockNode {
    if (this.#age !== chainAge() || this.#first !== backing) this.#restart(backing);
    const pageNumber = Math.floor(unit / PAGE_UNITS);
    if (pageNumber !== this.#pageNumber) this.#turnTo(pageNumber);
    const index = unit - pageNumber * PAGE_UNITS;
    const depth = this.#page![index]!;
    if (depth !== UNKNOWN) return this.#layers[depth]!;
    return this.#find(backing, unit, index);
  }

  #turnTo(pageNumber: number): void {
    let page = this.#pages.get(pageNumber);
    if (page === undefined) {
      if (this.#pages.size >= PAGES_MAX) this.#pages.clear();
      page = new Uint8Array(PAGE_UNITS);
      this.#pages.set(pageNumber, page);
    }
    this.#page = page;
    this.#pageNumber = pageNumber;
  }

  #restart(backing: BlockNode): void {
    this.#pages.clear();
    this.#pageNumber = -1;
    this.#layers.length = 1;
    this.#first = backing;
    this.#age = chainAge();
  }

  /** Asks one layer after the other; the answer is kept unless a layer has to load a table first. */
  #find(backing: BlockNode, unit: number, index: number): BlockNode {
    const offset = unit * this.#unitBytes;
    let layer = backing;
    let depth = 1;
    while (depth < DEPTH_MAX && isUnchanging(layer) && layer.size >= offset + this.#unitBytes) {
      const { backing: below } = layer;
      if (below === undefined) break;
      const holding = layer.driver.holding?.(offset, this.#unitBytes) ?? Holding.SOMETHING;
      if (holding === Holding.UNKNOWN) return layer;
      if (holding === Holding.SOMETHING) break;
      layer = below;
      depth++;
    }
    this.#layers[depth] = layer;
    this.#page![index] = depth;
    return layer;
  }
}

function isUnchanging(node: BlockNode): boolean {
  return node.readOnly && !node.isQuiesced;
}

/** Reads what the node reaches to, and gives zeros past its end. */
function readWithin(node: BlockNode, offset: number, bytes: number, buffer: Buffer, at: number): Completion {
  const inside = Math.max(0, Math.min(bytes, node.size - offset));
  if (inside < bytes) buffer.fill(0, at + inside, at + bytes);
  if (inside > 0) return node.read(offset, inside, buffer, at);
}

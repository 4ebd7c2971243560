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
//   3. Whatever may change an answer begins a new age (chain-age.ts), and everything is forgotten at once, so
//      that no image is kept that has left the chain.
//   4. Answers are used in the turn of the loop in which they are looked up.
//   5. Of a unit that is one piece of data in its owner's file the place there is kept too, so that a read
//      meets neither the tables of that image nor its driver. What nobody may write to does not move.
//   6. Memory has a bound, whatever the size of the disk: 8 bytes for each unit near one that was read, 16
//      MiB at the most; then the oldest is forgotten.

import { type Completion, settleAll } from "../base/completion.ts";
import { chainAge, keepForThisAge, type OfThisAge } from "./chain-age.ts";
import { Holding } from "./driver.ts";
import type { BlockNode } from "./node.ts";

// A page, two words for each unit:
//
//   0  depth of the owner, 1 for the first layer below; 0: nothing is known
//   4  where the unit stands in the owner's file, in units, and 1; 0: that is not known

const PAGE_UNITS = 4096;
const PAGES_MAX = 512;
const UNKNOWN = 0;
const DEPTH_MAX = 255;
const PLACE_MAX = 0xffff_ffff;

export class OwnerIndex implements OfThisAge {
  readonly #unitBytes: number;
  readonly #pages = new Map<number, Uint32Array>();
  /** The page that was used last. */
  #page: Uint32Array | undefined;
  #pageNumber = -1;
  /** The unit that was looked up last, in that page. */
  #index = 0;
  /** By depth; [0] is not used. */
  readonly #layers: BlockNode[] = [];
  #first: BlockNode | undefined;
  /** Byte in the owner's file; of the last `findPlaced`. */
  foundPlace = 0;
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
    const start = unit * this.#unitBytes;
    if (offset + bytes <= start + this.#unitBytes) {
      const owner = this.#ownerOf(backing, unit);
      const place = this.#page![this.#index * 2 + 1]!;
      if (place === UNKNOWN) return readWithin(owner, offset, bytes, buffer, at);
      return owner.readPlaced((place - 1) * this.#unitBytes + (offset - start), bytes, buffer, at);
    }
    return this.#readUnits(backing, offset, bytes, buffer, at);
  }

  /**
   * The layer in whose file the range, inside one unit, is one piece of data, at `foundPlace` there;
   * undefined where that is not known at once.
   */
  findPlaced(backing: BlockNode, offset: number): BlockNode | undefined {
    const unit = Math.floor(offset / this.#unitBytes);
    const owner = this.#ownerOf(backing, unit);
    const place = this.#page![this.#index * 2 + 1]!;
    if (place === UNKNOWN) return undefined;
    this.foundPlace = (place - 1) * this.#unitBytes + (offset - unit * this.#unitBytes);
    return owner;
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
    this.#index = unit - pageNumber * PAGE_UNITS;
    const depth = this.#page![this.#index * 2]!;
    if (depth !== UNKNOWN) return this.#layers[depth]!;
    return this.#find(backing, unit);
  }

  #turnTo(pageNumber: number): void {
    let page = this.#pages.get(pageNumber);
    if (page === undefined) {
      if (this.#pages.size >= PAGES_MAX) this.#pages.delete(this.#pages.keys().next().value!);
      page = new Uint32Array(PAGE_UNITS * 2);
      this.#pages.set(pageNumber, page);
    }
    this.#page = page;
    this.#pageNumber = pageNumber;
  }

  #restart(backing: BlockNode): void {
    this.forget();
    this.#first = backing;
    this.#age = chainAge();
    keepForThisAge(this);
  }

  /** The page in use stays for whoever writes to it in this turn: it names no image. */
  forget(): void {
    this.#pages.clear();
    this.#pageNumber = -1;
    this.#layers.length = 1;
    this.#first = undefined;
    this.#age = -1;
  }

  /** Asks one layer after the other; the answer is kept unless a layer has to load a table first. */
  #find(backing: BlockNode, unit: number): BlockNode {
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
    this.#page![this.#index * 2] = depth;
    this.#page![this.#index * 2 + 1] = this.#placeIn(layer, offset);
    return layer;
  }

  #placeIn(owner: BlockNode, offset: number): number {
    if (!isUnchanging(owner) || owner.size < offset + this.#unitBytes) return UNKNOWN;
    const hostOffset = owner.driver.placeOf?.(offset, this.#unitBytes) ?? -1;
    const place = hostOffset / this.#unitBytes + 1;
    return hostOffset >= 0 && Number.isInteger(place) && place <= PLACE_MAX ? place : UNKNOWN;
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

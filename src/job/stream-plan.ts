// What a merge has to copy, found in a listing of the layers above base (composedExtents).

import { ExtentKind } from "../block/extent.ts";

/** A stretch of top that has to be looked at, and the bytes of it that will be copied as data. */
export interface Chunk {
  readonly offset: number;
  readonly bytes: number;
  readonly dataBytes: number;
}

/** Adds up the data that the layers below top have for it. */
export class DataSum {
  bytes = 0;

  push(bytes: number, kind: number, _hostOffset: number, _compressed: boolean, depth: number): boolean {
    if (kind === ExtentKind.DATA && depth > 0) this.bytes += bytes;
    return true;
  }
}

/** Finds the first stretch with data or zeros for top in a listing of the layers above base. */
export class Search {
  #end: number;
  readonly #unit: number;
  readonly #want: number;
  #from = -1;
  #to = -1;
  readonly #zerosCount: boolean;
  #dataBytes = 0;

  /** Without a base what nobody holds reads as zeros anyway: then `zerosCount` is false. */
  constructor(offset: number, unit: number, want: number, zerosCount: boolean) {
    this.#end = offset;
    this.#unit = unit;
    this.#want = want;
    this.#zerosCount = zerosCount;
  }

  push(bytes: number, kind: number, _hostOffset: number, _compressed: boolean, depth: number): boolean {
    const from = this.#end;
    const end = from + bytes;
    this.#end = end;
    const nothing = kind === ExtentKind.UNALLOCATED || (kind === ExtentKind.ZERO && !this.#zerosCount);
    if (nothing || depth === 0) {
      // A gap larger than a cluster ends the stretch; smaller ones belong to a cluster that is copied whole.
      return this.#from < 0 || end - this.#to < this.#unit;
    }
    if (this.#from < 0) this.#from = from - (from % this.#unit);
    const limit = this.#from + this.#want;
    this.#to = Math.min(end, limit);
    if (kind === ExtentKind.DATA) this.#dataBytes += Math.max(0, this.#to - from);
    return end < limit;
  }

  result(lookedTo: number, size: number): Chunk | undefined {
    if (this.#from < 0) return undefined;
    const end = Math.min(this.#to, lookedTo);
    const rest = end % this.#unit;
    const rounded = Math.min(size, rest === 0 ? end : end + this.#unit - rest);
    return { offset: this.#from, bytes: rounded - this.#from, dataBytes: this.#dataBytes };
  }
}

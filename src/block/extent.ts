/** What a layer holds of a range. */
export const ExtentKind = {
  /** This layer says nothing: the backing shows through, or zeros where there is none. */
  UNALLOCATED: 0,
  /** Reads as zeros, and this layer says so. */
  ZERO: 1,
  /** Data of this layer. */
  DATA: 2,
} as const;
export type ExtentKind = (typeof ExtentKind)[keyof typeof ExtentKind];

/** Where data stands in the layer's host file when that is not known or not one place (compressed). */
export const NO_HOST_OFFSET = -1;

/** One contiguous piece with one mapping. */
export interface Extent {
  offset: number;
  bytes: number;
  kind: ExtentKind;
  /** Offset in the layer's file where `kind` is DATA and not compressed, or a ZERO with a host cluster. */
  hostOffset: number;
  compressed: boolean;
  /** Layers above the one that decided: 0 is the node that was asked. A composed list only. */
  depth: number;
}

/** Takes extents in order. */
export interface ExtentSink {
  /** Returns false when no more is wanted. */
  push(bytes: number, kind: ExtentKind, hostOffset: number, compressed: boolean): boolean;
}

/** Collects extents from `offset` on and merges neighbours that continue each other. */
export class ExtentList implements ExtentSink {
  readonly extents: Extent[] = [];
  readonly #limit: number;
  #end: number;

  constructor(offset: number, limit = Number.POSITIVE_INFINITY) {
    this.#end = offset;
    this.#limit = limit;
  }

  /** First byte that was not told of yet. */
  get end(): number {
    return this.#end;
  }

  push(bytes: number, kind: ExtentKind, hostOffset: number, compressed: boolean, depth = 0): boolean {
    if (bytes === 0) return true;
    const last = this.extents[this.extents.length - 1];
    if (last !== undefined && continues(last, kind, hostOffset, compressed, depth)) {
      last.bytes += bytes;
    } else {
      if (this.extents.length >= this.#limit) return false;
      this.extents.push({ offset: this.#end, bytes, kind, hostOffset, compressed, depth });
    }
    this.#end += bytes;
    return true;
  }
}

function continues(last: Extent, kind: ExtentKind, hostOffset: number, compressed: boolean, depth: number) {
  if (last.kind !== kind || last.compressed !== compressed || last.depth !== depth) return false;
  return last.hostOffset === NO_HOST_OFFSET
    ? hostOffset === NO_HOST_OFFSET
    : hostOffset === last.hostOffset + last.bytes;
}

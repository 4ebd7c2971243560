// Which part of a merge the host can copy from file to file, without a buffer of ours.
//
//   layer's extents   | data, one run in its file ............ | compressed | data ...
//   units of top      |---|---|---|---|---|---|---|---|---|---|---|
//                      <------ copied by the host ----->|<- read and written ->|
//
//   1. Whole units of data that stand in one run of the layer's file, inside its length. A file that is too
//      short is left to the reader, who tells.
//   2. Units that begin with zeros are read: they may be zeros altogether, which take no space. Where the
//      host shares space instead of copying none are read, and where a look at them would have to wait for
//      the disk all are.
//   3. Never past a filter: what it would have a reader see counts.
//   4. Small units cost more looks than the copy saves.

import { KiB } from "../../base/units.ts";
import { type Extent, ExtentKind, NO_HOST_OFFSET } from "../../block/extent.ts";
import type { BlockNode } from "../../block/node.ts";
import { DataLook } from "./data-look.ts";

const UNIT_BYTES_MIN = 32 * KiB;
/** Less than this costs more on the way to another thread than it saves. */
const COPY_BYTES_MIN = 128 * KiB;

/** The node that holds the host file of the layer `depth` below `backing`; undefined behind a filter. */
function fileOf(backing: BlockNode, depth: number): BlockNode | undefined {
  let node: BlockNode | undefined = backing;
  for (let i = 0; i < depth && node?.filtered === undefined; i++) node = node?.backing;
  return node?.filtered === undefined ? (node?.file ?? node) : undefined;
}

/** A stretch that the host can copy. */
export interface HostSource {
  readonly file: BlockNode;
  readonly offset: number;
  readonly bytes: number;
}

export class HostCopy {
  readonly #unit: number;
  readonly #zerosAreFound: boolean;
  readonly #look = new DataLook();

  /** @param zerosAreFound whether units of zeros are written as such */
  constructor(unit: number, zerosAreFound: boolean) {
    this.#unit = unit;
    this.#zerosAreFound = zerosAreFound;
  }

  /**
   * What the host can copy of [from, end), from `from` on.
   * @param extent where `from` lies in, as composed from `backing` down
   * @param target the node of the file that it goes to
   */
  sourceOf(
    extent: Extent,
    backing: BlockNode,
    from: number,
    end: number,
    target: BlockNode,
  ): HostSource | undefined {
    if (this.#unit < UNIT_BYTES_MIN || target.driver.copyFrom === undefined) return undefined;
    const { kind, compressed, hostOffset } = extent;
    if (kind !== ExtentKind.DATA || compressed || hostOffset === NO_HOST_OFFSET) return undefined;
    const within = Math.min(end, extent.offset + extent.bytes) - from;
    const bytes = within - (within % this.#unit);
    const file = fileOf(backing, extent.depth);
    if (bytes < COPY_BYTES_MIN || file?.driver.copyFrom === undefined) return undefined;
    const offset = hostOffset + (from - extent.offset);
    if (offset + bytes > file.size) return undefined;
    const shared = target.driver.sharesSpaceWith?.(file.driver) === true;
    const full = shared || !this.#zerosAreFound ? bytes : this.#unitsWithData(file, offset, bytes);
    return full < COPY_BYTES_MIN ? undefined : { file, offset, bytes: full };
  }

  /** Length of the units from `offset` on that surely hold data. */
  #unitsWithData(file: BlockNode, offset: number, bytes: number): number {
    for (let at = 0; at < bytes; at += this.#unit) {
      if (!this.#look.findsData(file, offset + at)) return at;
    }
    return bytes;
  }
}

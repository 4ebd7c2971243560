// A read whose data nobody copies: it goes to the client as pages of the host's page cache.
//
//   plan    node.lend asks down the chain where the range stands; nothing is counted, nothing begins
//   collect the pages are taken up: noted at the images, counted at each node on the way as a read is
//   release the client has its own copy: the clusters may be reused
//
//   1. A range is lent only where all of it is plain data of host files and no filter is on the way: a driver
//      without `lend` sees the read itself.
//   2. A guest's write to the same place shows through until the client has read, as two requests that are
//      under way at once may mix. What else could change those bytes is that a cluster is freed, punched or
//      reused: until `release` each image that the loan went through knows which part of its file is lent.
//   3. In flight at the nodes it is only until the pages are taken up: a client that does not read its
//      replies holds up no drain.

import type { HostFile } from "../sys/host-file.ts";
import { PipedData } from "../sys/piped-data.ts";
import type { BlockNode } from "./node.ts";

/** [offset, offset+bytes) of an image's file. */
export interface LentRange {
  readonly offset: number;
  readonly bytes: number;
}

/** Who must not reuse a cluster while it is lent; `returned` takes the very object that `lent` got. */
export interface Lender {
  lent(range: LentRange): void;
  returned(range: LentRange): void;
}

interface Piece {
  readonly file: HostFile;
  readonly offset: number;
  bytes: number;
}

export class Loan {
  readonly #pieces: Piece[] = [];
  readonly #nodes: BlockNode[] = [];
  readonly #nodeBytes: number[] = [];
  readonly #lenders: Lender[] = [];
  readonly #ranges: LentRange[] = [];
  readonly #data = new PipedData();

  // --- plan ------------------------------------------------------------------------------------------------

  /** The range goes on with [offset, offset+bytes) of `file`. */
  add(file: HostFile, offset: number, bytes: number): void {
    const last = this.#pieces.at(-1);
    if (last !== undefined && last.file === file && last.offset + last.bytes === offset) last.bytes += bytes;
    else this.#pieces.push({ file, offset, bytes });
  }

  /** It passes this node with so many bytes. */
  pass(node: BlockNode, bytes: number): void {
    this.#nodes.push(node);
    this.#nodeBytes.push(bytes);
  }

  /** Some of it stands in clusters of this image, in [offset, offset+bytes) of its file. */
  holdAt(lender: Lender, offset: number, bytes: number): void {
    this.#lenders.push(lender);
    this.#ranges.push({ offset, bytes });
  }

  // --- collect ---------------------------------------------------------------------------------------------

  /**
   * Takes the data up, in the turn in which it was planned. Undefined: that is not possible, and the loan is
   * over.
   */
  collect(): this | undefined | Promise<this | undefined> {
    for (const node of this.#nodes) node.loanBegan();
    this.#lenders.forEach((lender, i) => {
      lender.lent(this.#ranges[i]!);
    });
    for (const [index, { file, offset, bytes }] of this.#pieces.entries()) {
      const taken = file.pipe!(this.#data, offset, bytes);
      if (typeof taken !== "boolean") return this.#collectRest(taken, index + 1);
      if (!taken) return this.#collected(false);
    }
    return this.#collected(true);
  }

  async #collectRest(first: Promise<boolean>, next: number): Promise<this | undefined> {
    let taken = await first;
    for (const { file, offset, bytes } of this.#pieces.slice(next)) {
      if (taken) taken = await file.pipe!(this.#data, offset, bytes);
    }
    return this.#collected(taken);
  }

  #collected(taken: boolean): this | undefined {
    this.#nodes.forEach((node, i) => {
      node.loanCollected(taken ? this.#nodeBytes[i]! : 0);
    });
    if (taken) return this;
    this.release();
    return undefined;
  }

  // --- on the way to the client ----------------------------------------------------------------------------

  /** Bytes that no socket has taken yet. */
  get bytes(): number {
    return this.#data.bytes;
  }

  /** Moves what the unix socket takes now: bytes; 0: none now; below 0: the system cannot. */
  moveTo(socket: number): number {
    return this.#data.moveTo(socket);
  }

  /** Copies the next `buffer.length` bytes out. */
  take(buffer: Buffer): void {
    this.#data.take(buffer);
  }

  /** Whoever was to get the data has it, or never will. Once. */
  release(): void {
    this.#data.drop();
    this.#lenders.forEach((lender, i) => {
      lender.returned(this.#ranges[i]!);
    });
    this.#lenders.length = 0;
  }
}

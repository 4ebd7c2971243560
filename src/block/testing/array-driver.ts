// A naive image format in memory: an array of clusters, each unallocated, zero or data. It keeps the contract
// of driver.ts to the letter and has nothing that could be quick, so that graph, export and jobs are tested
// on their own.

import { assert } from "../../base/assert.ts";
import type { Completion } from "../../base/completion.ts";
import { settleAll } from "../../base/completion.ts";
import { divideUp } from "../../base/units.ts";
import { composedExtents } from "../chain.ts";
import { ClusterLocks } from "../cluster-locks.ts";
import { type Driver, type DriverHost, Holding, type ImageDetails } from "../driver.ts";
import { ExtentKind, type ExtentSink, NO_HOST_OFFSET } from "../extent.ts";
import type { BlockNode } from "../node.ts";
import type { Before } from "./interpose.ts";

export interface ArrayOptions {
  readonly size: number;
  readonly clusterSize?: number;
  readonly writable?: boolean;
  readonly backingFile?: string;
  readonly backingFormat?: string;
  readonly before?: Before;
}

type Cluster = Buffer | "zero" | undefined;

export class ArrayDriver implements Driver {
  readonly driverName: string = "array";
  readonly growable = false;
  readonly supportsBacking: boolean = true;
  readonly clusterSize: number;
  readonly locks = new ClusterLocks({ nowMs: () => 0, after: () => () => {}, turn: async () => {} });
  readonly clusters: Cluster[];
  /** Backing links that were written, in order. */
  readonly links: { file: string | undefined; format: string | undefined }[] = [];
  size: number;
  writable: boolean;
  closed = false;
  before: Before;
  readonly #host: DriverHost;
  #backingFile: string | undefined;
  #backingFormat: string | undefined;

  constructor(host: DriverHost, options: ArrayOptions) {
    this.#host = host;
    this.size = options.size;
    this.clusterSize = options.clusterSize ?? 512;
    this.clusters = new Array(divideUp(options.size, this.clusterSize));
    this.writable = options.writable ?? true;
    this.before = options.before ?? (() => {});
    this.#backingFile = options.backingFile;
    this.#backingFormat = options.backingFormat;
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return this.#call("read", offset, bytes, () => {
      const waits: Promise<void>[] = [];
      for (const piece of this.#pieces(offset, bytes)) {
        const done = this.#readPiece(piece, buffer, at + piece.offset - offset);
        if (done !== undefined) waits.push(done);
      }
      return waits.length === 0 ? undefined : settleAll(waits);
    });
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    this.#mustBeWritable("write");
    return this.#change("write", offset, bytes, () => {
      for (const piece of this.#pieces(offset, bytes)) {
        const from = at + piece.offset - offset;
        buffer.copy(this.#data(piece.index), piece.inCluster, from, from + piece.bytes);
      }
    });
  }

  writeZeroes(offset: number, bytes: number, _flags: number): Completion {
    this.#mustBeWritable("writeZeroes");
    return this.#change("writeZeroes", offset, bytes, () => this.#makeZero(offset, bytes));
  }

  discard(offset: number, bytes: number): Completion {
    this.#mustBeWritable("discard");
    // Whole clusters only, as an image does it.
    const first = divideUp(offset, this.clusterSize);
    const end =
      offset + bytes === this.size ? this.clusters.length : Math.floor((offset + bytes) / this.clusterSize);
    if (end <= first) return;
    return this.#call("discard", offset, bytes, () =>
      this.#locked(first, end - first, () => {
        for (let index = first; index < end; index++) this.clusters[index] = "zero";
      }),
    );
  }

  flush(): Completion {
    return this.#call("flush", 0, 0, () => {});
  }

  extents(offset: number, bytes: number, out: ExtentSink): Completion {
    return this.#call("extents", offset, bytes, () => {
      for (const piece of this.#pieces(offset, bytes)) {
        const cluster = this.clusters[piece.index];
        const kind =
          cluster === undefined
            ? ExtentKind.UNALLOCATED
            : cluster === "zero"
              ? ExtentKind.ZERO
              : ExtentKind.DATA;
        if (!out.push(piece.bytes, kind, kind === ExtentKind.DATA ? piece.offset : NO_HOST_OFFSET, false))
          return;
      }
    });
  }

  /** What `holding` says instead, once, when it is set: a table that is not there yet. */
  unknownOnce = false;

  holding(offset: number, bytes: number): Holding {
    if (this.unknownOnce) {
      this.unknownOnce = false;
      return Holding.UNKNOWN;
    }
    for (const piece of this.#pieces(offset, bytes)) {
      if (this.clusters[piece.index] !== undefined) return Holding.SOMETHING;
    }
    return Holding.NOTHING;
  }

  async copyUp(offset: number, bytes: number, base: BlockNode | undefined): Promise<number> {
    this.#mustBeWritable("copyUp");
    assert(offset % this.clusterSize === 0, "copy-up begins at a cluster");
    assert(
      (offset + bytes) % this.clusterSize === 0 || offset + bytes === this.size,
      "copy-up ends at a cluster",
    );
    let copied = 0;
    await this.#call("copyUp", offset, bytes, () => {});
    for (const piece of this.#pieces(offset, bytes)) {
      await this.#locked(piece.index, 1, async () => {
        copied += await this.#copyCluster(piece.index, base);
      });
    }
    return copied;
  }

  truncate(size: number): Completion {
    return this.#call("truncate", 0, 0, () => {
      this.size = size;
      this.clusters.length = divideUp(size, this.clusterSize);
    });
  }

  async changeBackingLink(file: string | undefined, format: string | undefined): Promise<void> {
    this.#mustBeWritable("changeBackingLink");
    await this.#call("changeBackingLink", 0, 0, () => {});
    this.links.push({ file, format });
    this.#backingFile = file;
    this.#backingFormat = format;
  }

  async setWritable(writable: boolean): Promise<void> {
    await this.#call(writable ? "setWritable" : "setReadOnly", 0, 0, () => {});
    this.writable = writable;
  }

  details(): ImageDetails {
    return {
      clusterSize: this.clusterSize,
      ...(this.#backingFile === undefined ? {} : { backingFile: this.#backingFile }),
      ...(this.#backingFormat === undefined ? {} : { backingFormat: this.#backingFormat }),
    };
  }

  allocatedBytes(): number {
    return this.clusters.filter((cluster) => cluster instanceof Buffer).length * this.clusterSize;
  }

  async close(): Promise<void> {
    assert(!this.closed, "a driver is closed once");
    this.closed = true;
    await this.before({ node: this.#host.name, operation: "close", offset: 0, bytes: 0 });
  }

  // --- inside ------------------------------------------------------------------------------------

  #call(operation: string, offset: number, bytes: number, run: () => Completion): Completion {
    assert(!this.closed, `${operation} of closed node '${this.#host.name}'`);
    const wait = this.before({ node: this.#host.name, operation, offset, bytes });
    return wait === undefined ? run() : wait.then(run);
  }

  #mustBeWritable(operation: string): void {
    assert(this.writable, `${operation} of node '${this.#host.name}', which is open for reading only`);
  }

  /** With the clusters locked, and filled from below where the range covers a part of them only. */
  #change(operation: string, offset: number, bytes: number, apply: () => void): Completion {
    if (bytes === 0) return;
    const first = Math.floor(offset / this.clusterSize);
    const count = divideUp(offset + bytes, this.clusterSize) - first;
    return this.#call(operation, offset, bytes, () =>
      this.#locked(first, count, () => {
        const fills: Promise<void>[] = [];
        for (const piece of this.#pieces(offset, bytes)) {
          if (this.clusters[piece.index] !== undefined || piece.bytes === this.#bytesOf(piece.index))
            continue;
          const filled = this.#fill(piece.index);
          if (filled !== undefined) fills.push(filled);
        }
        return fills.length === 0 ? apply() : settleAll(fills).then(apply);
      }),
    );
  }

  #makeZero(offset: number, bytes: number): void {
    for (const piece of this.#pieces(offset, bytes)) {
      if (piece.bytes === this.#bytesOf(piece.index)) this.clusters[piece.index] = "zero";
      else this.#data(piece.index).fill(0, piece.inCluster, piece.inCluster + piece.bytes);
    }
  }

  #locked(first: number, count: number, run: () => Completion): Completion {
    const lock = this.locks.lockExclusive(first, count);
    if (lock !== undefined) return lock.then(() => this.#underLock(first, count, run));
    return this.#underLock(first, count, run);
  }

  #underLock(first: number, count: number, run: () => Completion): Completion {
    let done: Completion;
    try {
      done = run();
    } catch (error) {
      this.locks.unlockExclusive(first, count);
      throw error;
    }
    if (done !== undefined) return done.finally(() => this.locks.unlockExclusive(first, count));
    this.locks.unlockExclusive(first, count);
  }

  /** The cluster's buffer, made of zeros where there is none. */
  #data(index: number): Buffer {
    const cluster = this.clusters[index];
    if (cluster instanceof Buffer) return cluster;
    const made = Buffer.alloc(this.clusterSize);
    this.clusters[index] = made;
    return made;
  }

  #fill(index: number): Completion {
    const content = Buffer.alloc(this.clusterSize);
    const done = this.#readBelow(index * this.clusterSize, this.#bytesOf(index), content, 0);
    const store = () => {
      this.clusters[index] = content;
    };
    return done === undefined ? store() : done.then(store);
  }

  async #copyCluster(index: number, base: BlockNode | undefined): Promise<number> {
    const backing = this.#host.backing;
    if (this.clusters[index] !== undefined || backing === undefined) return 0;
    const kinds = new Set<ExtentKind>();
    await composedExtents(backing, base, index * this.clusterSize, this.#bytesOf(index), {
      push: (_bytes, kind) => {
        kinds.add(kind);
        return true;
      },
    });
    if (kinds.has(ExtentKind.DATA)) {
      await this.#fill(index);
      return this.#bytesOf(index);
    }
    // Without a base what nobody holds reads as zeros anyway.
    if (!kinds.has(ExtentKind.ZERO) || base === undefined) return 0;
    // Of a cluster that is zero in part only, the rest is base's.
    if (kinds.has(ExtentKind.UNALLOCATED)) await this.#fill(index);
    else this.clusters[index] = "zero";
    return 0;
  }

  #readPiece(piece: Piece, buffer: Buffer, at: number): Completion {
    const cluster = this.clusters[piece.index];
    if (cluster === undefined) return this.#readBelow(piece.offset, piece.bytes, buffer, at);
    if (cluster === "zero") buffer.fill(0, at, at + piece.bytes);
    else cluster.copy(buffer, at, piece.inCluster, piece.inCluster + piece.bytes);
  }

  #readBelow(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    const backing = this.#host.backing;
    const inside = backing === undefined ? 0 : Math.max(0, Math.min(bytes, backing.size - offset));
    buffer.fill(0, at + inside, at + bytes);
    return inside === 0 ? undefined : backing!.read(offset, inside, buffer, at);
  }

  #bytesOf(index: number): number {
    return Math.min(this.clusterSize, this.size - index * this.clusterSize);
  }

  *#pieces(offset: number, bytes: number): Generator<Piece> {
    for (let at = offset; at < offset + bytes; ) {
      const index = Math.floor(at / this.clusterSize);
      const end = Math.min((index + 1) * this.clusterSize, offset + bytes);
      yield { index, offset: at, inCluster: at - index * this.clusterSize, bytes: end - at };
      at = end;
    }
  }
}

interface Piece {
  readonly index: number;
  readonly offset: number;
  readonly inCluster: number;
  readonly bytes: number;
}

/** The same without a backing link and without copy-up, as raw is. */
export class FlatDriver extends ArrayDriver {
  override readonly driverName: string = "flat";
  override readonly supportsBacking: boolean = false;

  constructor(host: DriverHost, options: ArrayOptions) {
    super(host, options);
    Object.assign(this, { copyUp: undefined, changeBackingLink: undefined });
  }
}

// Reads what the guest sees: data of this image, what a compressed cluster holds, zeros, or the backing.
//
//   1. No locks. What one turn of the loop looks up and starts is consistent; after a wait it is looked up
//      again.
//   2. A read that cannot finish at once is counted (read-epochs.ts): no cluster is reused or punched under
//      it.
//   3. Past the end of the backing image, zeros: never data of a deeper layer.
//   4. All parts have settled before an error is handed up: the caller's buffer is free then.

import { buffers } from "../../base/buffer-pool.ts";
import { type Completion, settleAll } from "../../base/completion.ts";
import { BlockError } from "../../base/errors.ts";
import type { Loan } from "../../block/loan.ts";
import { OwnerIndex } from "../../block/owner-index.ts";
import { decompressCluster } from "./compressed.ts";
import { DecodedClusters } from "./decoded-clusters.ts";
import type { Image } from "./image.ts";
import { compressedBytes, compressedOffset } from "./l2-entry.ts";
import { type Mapping, RunKind } from "./mapping.ts";

export class Reader {
  readonly #image: Image;
  readonly #mapping: Mapping;
  readonly #decoded: DecodedClusters;
  /** Which image below holds what. */
  readonly owners: OwnerIndex;

  constructor(image: Image) {
    this.#image = image;
    this.#mapping = image.newMapping();
    this.#decoded = new DecodedClusters(image.clusterSize);
    this.owners = new OwnerIndex(image.clusterSize);
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    const mapping = this.#mapping;
    const kind = mapping.lookup(offset, bytes);
    if (kind === RunKind.NEED_SLICE || mapping.bytes < bytes) {
      return this.#readRuns(offset, bytes, buffer, at);
    }
    const done = this.#readRun(kind, offset, bytes, buffer, at);
    return done === undefined ? undefined : this.#counted(done);
  }

  /** Fills with what the backing image holds, zeros past its end. */
  readBacking(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    const { backing } = this.#image.host;
    const inside = backing === undefined ? 0 : Math.max(0, Math.min(bytes, backing.size - offset));
    if (inside < bytes) buffer.fill(0, at + inside, at + bytes);
    if (inside === 0) return;
    this.#image.debug?.("read_backing_aio");
    // Of two images the lower one need not be looked for.
    if (backing!.backing === undefined) return backing!.read(offset, inside, buffer, at);
    return this.owners.read(backing!, offset, inside, buffer, at);
  }

  /** See Driver.lend. Only what is known at once, and only data. */
  lend(offset: number, bytes: number, loan: Loan): boolean {
    const { file, debug, host, lentRanges } = this.#image;
    if (debug !== undefined) return false;
    const mapping = this.#mapping;
    for (let done = 0; done < bytes; ) {
      const kind = mapping.lookup(offset + done, bytes - done);
      const { bytes: run, hostOffset } = mapping;
      if (kind === RunKind.DATA) {
        if (!file.lend(hostOffset, run, loan)) return false;
        loan.holdAt(lentRanges, hostOffset, run);
      } else if (kind !== RunKind.UNALLOCATED || host.backing?.lend(offset + done, run, loan) !== true) {
        return false;
      }
      done += run;
    }
    return true;
  }

  async #counted(done: Promise<void>): Promise<void> {
    const epoch = this.#image.epochs.begin();
    try {
      await done;
    } finally {
      this.#image.epochs.end(epoch);
    }
  }

  /** Several runs: all that are at hand are started, then waited for together. */
  #readRuns(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    const mapping = this.#mapping;
    const waiting: Promise<void>[] = [];
    let done = 0;
    try {
      while (done < bytes) {
        const kind = mapping.lookup(offset + done, bytes - done);
        if (kind === RunKind.NEED_SLICE) {
          const loading = this.#image.l2.load(mapping.missing);
          if (loading === undefined) continue;
          const rest = this.#readAfter(loading, offset + done, bytes - done, buffer, at + done);
          waiting.push(rest);
          break;
        }
        const run = mapping.bytes;
        const reading = this.#readRun(kind, offset + done, run, buffer, at + done);
        if (reading !== undefined) waiting.push(reading);
        done += run;
      }
    } catch (error) {
      if (waiting.length === 0) throw error;
      waiting.push(Promise.reject(error));
    }
    if (waiting.length > 0) return this.#counted(settleAll(waiting));
  }

  async #readAfter(loading: Promise<void>, offset: number, bytes: number, buffer: Buffer, at: number) {
    await loading;
    await this.read(offset, bytes, buffer, at);
  }

  /** Reads the run that the mapping has just told of. */
  #readRun(kind: RunKind, offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    switch (kind) {
      case RunKind.DATA:
        return this.#readData(this.#mapping.hostOffset, bytes, buffer, at);
      case RunKind.UNALLOCATED:
        return this.readBacking(offset, bytes, buffer, at);
      case RunKind.ZERO:
        buffer.fill(0, at, at + bytes);
        return;
      case RunKind.COMPRESSED:
        return this.#readCompressed(offset, bytes, buffer, at);
      default:
        throw this.invalid(offset, this.#mapping);
    }
  }

  /** A cluster may end past the end of the file, but not begin there: then the file was truncated. */
  #readData(hostOffset: number, bytes: number, buffer: Buffer, at: number): Completion {
    const { file, debug } = this.#image;
    if (hostOffset + bytes > file.size && this.#image.isPastEnd(hostOffset, bytes)) {
      throw new BlockError(
        "EIO",
        `qcow2: data at host offset 0x${hostOffset.toString(16)} lies past the end of the file: it was truncated`,
      );
    }
    if (debug !== undefined) debug("read_aio");
    return file.read(hostOffset, bytes, buffer, at);
  }

  /** The error for an entry that cannot be. */
  invalid(offset: number, { high, low }: Mapping): Error {
    const entry = `${(high >>> 0).toString(16).padStart(8, "0")}${(low >>> 0).toString(16).padStart(8, "0")}`;
    return this.#image.damaged(
      `invalid L2 entry 0x${entry} for the cluster at guest offset 0x${offset.toString(16)}`,
    );
  }

  #readCompressed(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    const { high, low } = this.#mapping;
    const within = offset % this.#image.clusterSize;
    const known = this.#decoded.find(high, low);
    if (known !== undefined) {
      known.copy(buffer, at, within, within + bytes);
      return;
    }
    const { clusterBits } = this.#image.geometry;
    const from = compressedOffset(high, low, clusterBits);
    const inputBytes = compressedBytes(high, low, clusterBits);
    if (!Number.isSafeInteger(from + inputBytes)) throw this.invalid(offset, this.#mapping);
    if (bytes === this.#image.clusterSize) {
      return this.#decode(from, inputBytes, buffer.subarray(at, at + bytes));
    }
    return this.#readPart(high, low, from, inputBytes, within, buffer.subarray(at, at + bytes));
  }

  /** Fills `part` from `within` of the cluster, which is kept for the next read. */
  async #readPart(
    high: number,
    low: number,
    from: number,
    inputBytes: number,
    within: number,
    part: Buffer,
  ): Promise<void> {
    const content = this.#decoded.take();
    await this.#decode(from, inputBytes, content);
    content.copy(part, 0, within, within + part.length);
    this.#decoded.add(high, low, content);
  }

  async #decode(from: number, inputBytes: number, output: Buffer): Promise<void> {
    const input = buffers.take(inputBytes);
    try {
      this.#image.debug?.("read_compressed");
      await this.#image.file.read(from, inputBytes, input, 0);
      await decompressCluster(this.#image.header.compressionType, input.subarray(0, inputBytes), output);
    } finally {
      buffers.give(input);
    }
  }
}

// The guest write. What is allocated, and ours, is written in place under a shared lock and changes no
// metadata; everything else is a GuestWrite under the exclusive lock. Both finish at once where nothing has
// to be waited for.
//
// A request takes its lock over all of its clusters in one call and holds no other. The mapping is looked up
// under the lock, again after every wait.

import type { Completion } from "../../base/completion.ts";
import { FillCopy } from "./fill-copy.ts";
import { GuestWrite } from "./guest-write.ts";
import type { HostSource } from "./host-copy.ts";
import type { Image } from "./image.ts";
import { L2Tables } from "./l2-tables.ts";
import { type Mapping, RunKind } from "./mapping.ts";
import type { Reader } from "./reader.ts";
import { runSteps } from "./steps.ts";

/** Requests that are kept for reuse. */
const SPARE_MAX = 64;

export class Writer {
  readonly tables: L2Tables;
  readonly #image: Image;
  readonly #mapping: Mapping;
  readonly #reader: Reader;
  readonly #fillCopy: FillCopy;
  readonly #spare: GuestWrite[] = [];

  constructor(image: Image, reader: Reader) {
    this.#image = image;
    this.#mapping = image.newMapping();
    this.#reader = reader;
    this.#fillCopy = new FillCopy(image, reader.owners);
    this.tables = new L2Tables(image);
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    const image = this.#image;
    image.refuseIfStopped();
    const first = image.clusterOf(offset);
    const count = image.clusterCount(offset, bytes);
    const waiting = image.locks.lockShared(first, count);
    if (waiting !== undefined) return this.#writeAfter(waiting, offset, bytes, buffer, at, first, count);
    return this.#writeShared(offset, bytes, buffer, at, first, count);
  }

  /** The same for a caller that holds the exclusive lock of these clusters. */
  writeLocked(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return runSteps(this.#take().prepare(offset, bytes, buffer, at, 0, 0));
  }

  /**
   * Copies whole units from `source`, the node of a host file, for a caller that holds the exclusive lock of
   * these clusters and found nothing allocated there.
   */
  copyLocked(offset: number, source: HostSource, idle: boolean): Completion {
    return runSteps(this.#take().prepareCopy(offset, source, idle));
  }

  async #writeAfter(
    waiting: Promise<void>,
    offset: number,
    bytes: number,
    buffer: Buffer,
    at: number,
    first: number,
    count: number,
  ): Promise<void> {
    await waiting;
    await this.#writeShared(offset, bytes, buffer, at, first, count);
  }

  /** Holds the shared lock, and gives it back in any case. */
  #writeShared(
    offset: number,
    bytes: number,
    buffer: Buffer,
    at: number,
    first: number,
    count: number,
  ): Completion {
    const image = this.#image;
    if (!this.#isInPlace(offset, bytes)) {
      image.locks.unlockShared(first, count);
      return this.#writeExclusive(offset, bytes, buffer, at, first, count);
    }
    let done: Completion;
    try {
      if (image.debug !== undefined) image.debug("write_aio");
      done = image.file.write(this.#mapping.hostOffset, bytes, buffer, at);
    } catch (error) {
      image.locks.unlockShared(first, count);
      throw error;
    }
    if (done !== undefined) return this.#unlockAfter(done, first, count);
    image.locks.unlockShared(first, count);
  }

  /** One run of host clusters that are ours; anything else, damage too, is left to the GuestWrite. */
  #isInPlace(offset: number, bytes: number): boolean {
    const mapping = this.#mapping;
    if (mapping.lookup(offset, bytes) !== RunKind.DATA) return false;
    if (!mapping.copied || mapping.bytes !== bytes) return false;
    const { hostOffset } = mapping;
    return !this.#image.overlapsMetadata(hostOffset, bytes) && !this.#image.isPastEnd(hostOffset, bytes);
  }

  async #unlockAfter(done: Promise<void>, first: number, count: number): Promise<void> {
    try {
      await done;
    } finally {
      this.#image.locks.unlockShared(first, count);
    }
  }

  #writeExclusive(
    offset: number,
    bytes: number,
    buffer: Buffer,
    at: number,
    first: number,
    count: number,
  ): Completion {
    const waiting = this.#image.locks.lockExclusive(first, count);
    const write = this.#take().prepare(offset, bytes, buffer, at, first, count);
    return waiting === undefined ? runSteps(write) : this.#runAfter(waiting, write);
  }

  async #runAfter(waiting: Promise<void>, write: GuestWrite): Promise<void> {
    await waiting;
    await runSteps(write);
  }

  #take(): GuestWrite {
    return this.#spare.pop() ?? this.#new();
  }

  #new(): GuestWrite {
    return new GuestWrite({
      image: this.#image,
      mapping: this.#mapping,
      tables: this.tables,
      reader: this.#reader,
      fillCopy: this.#fillCopy,
      recycle: (write) => {
        if (this.#spare.length < SPARE_MAX) this.#spare.push(write);
      },
    });
  }
}

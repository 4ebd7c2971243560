// The demo's guest: it works on the disk over NBD and keeps a copy of what it must see.
//
//   [ file system | scratch ]    the file system grows from day to day; the scratch part takes random writes
//
//   1. The copy changes when a write is sent; requests in flight at one time never overlap, so that there is
//      one right content at every moment.
//   2. Every round reads some of the disk back and compares it, while merges run.
//   3. What is random comes from a seed, and the seed is told when something differs.

import type { NbdClient } from "../../../nbd/client.ts";
import { BlockError } from "../../base/errors.ts";
import type { Prng } from "../../base/prng.ts";
import { alignDown, KiB, MiB } from "../../base/units.ts";
import { type Difference, randomBytes } from "./file-system.ts";

/** Requests at one time. */
const DEPTH = 8;
const REQUEST_BYTES_MAX = 32 * KiB;
const SECTOR = 512;
const COMPARED_AT_A_TIME = 4 * MiB;

/** What the guest has done. */
export interface GuestCounters {
  writes: number;
  writeBytes: number;
  zeroes: number;
  reads: number;
  flushes: number;
}

export class Guest {
  readonly counters: GuestCounters = { writes: 0, writeBytes: 0, zeroes: 0, reads: 0, flushes: 0 };
  /** What the disk must hold. */
  readonly reference: Buffer;
  readonly #disk: NbdClient;
  readonly #prng: Prng;
  readonly #scratchStart: number;
  /** Places of the file system that are still to be written, last one first. */
  #due: { difference: Difference; source: Buffer }[] = [];
  #whenCaughtUp: (() => void) | undefined;
  #stopping = false;
  #working: Promise<void> | undefined;

  constructor(disk: NbdClient, reference: Buffer, scratchStart: number, prng: Prng) {
    this.#disk = disk;
    this.reference = reference;
    this.#scratchStart = scratchStart;
    this.#prng = prng;
  }

  /** Writes the places in which a new state of the file system differs, a few in each round to come. */
  write(changes: readonly Difference[], source: Buffer): void {
    this.#due = [...changes].reverse().map((difference) => ({ difference, source }));
  }

  /** Settles when all such places are written. @throws what went wrong meanwhile */
  caughtUp(): Promise<void> {
    if (this.#due.length === 0) return Promise.resolve();
    const done = new Promise<void>((resolve) => {
      this.#whenCaughtUp = resolve;
    });
    return Promise.race([done, this.whenWrong()]);
  }

  async flush(): Promise<void> {
    this.counters.flushes++;
    await this.#disk.flush();
  }

  /** Begins to work and goes on until `rest`. */
  work(): void {
    this.#stopping = false;
    this.#working = this.#rounds();
    // An error is told by `rest`; until then it is not unhandled.
    this.#working.catch(() => undefined);
  }

  /** Rejects when the guest has stopped because something was wrong; never settles otherwise. */
  async whenWrong(): Promise<never> {
    await this.#working;
    return new Promise<never>(() => undefined);
  }

  /** Ends the work with everything that is due written and durable. @throws what went wrong meanwhile */
  async rest(): Promise<void> {
    this.#stopping = true;
    await this.#working;
    while (this.#due.length > 0) await this.#round();
    await this.flush();
  }

  /** Reads the whole disk and compares it. @throws BlockError with the first offset that differs */
  async compareAll(): Promise<void> {
    for (let offset = 0; offset < this.reference.length; offset += COMPARED_AT_A_TIME) {
      await this.#compare(offset, Math.min(COMPARED_AT_A_TIME, this.reference.length - offset));
    }
  }

  async #rounds(): Promise<void> {
    while (!this.#stopping) await this.#round();
  }

  async #round(): Promise<void> {
    const requests: Promise<void>[] = [];
    for (let i = 0; i < DEPTH / 2; i++) {
      const due = this.#due.pop();
      if (due !== undefined) requests.push(this.#writeFrom(due.difference, due.source));
    }
    for (const slot of this.#disjointSlots()) requests.push(this.#change(slot.offset, slot.bytes));
    await Promise.all(requests);
    if (this.#due.length === 0) this.#whenCaughtUp?.();
    if (this.#prng.chance(0.05)) await this.flush();
    await this.#readSome();
  }

  /** Ranges of the scratch part that do not overlap: one in each of equal slots. */
  #disjointSlots(): Difference[] {
    const slotBytes = alignDown((this.reference.length - this.#scratchStart) / DEPTH, SECTOR);
    return Array.from({ length: DEPTH }, (_, slot) => {
      const bytes = SECTOR * this.#prng.between(1, REQUEST_BYTES_MAX / SECTOR);
      const space = (slotBytes - bytes) / SECTOR;
      return { offset: this.#scratchStart + slot * slotBytes + SECTOR * this.#prng.below(space), bytes };
    });
  }

  async #change(offset: number, bytes: number): Promise<void> {
    const choice = this.#prng.next();
    if (choice < 0.85) {
      const data = randomBytes(this.#prng.below(2 ** 32), bytes);
      data.copy(this.reference, offset);
      await this.#write(offset, data);
      return;
    }
    this.reference.fill(0, offset, offset + bytes);
    this.counters.zeroes++;
    await this.#disk.writeZeroes(offset, bytes);
  }

  async #writeFrom({ offset, bytes }: Difference, source: Buffer): Promise<void> {
    source.copy(this.reference, offset, offset, offset + bytes);
    await this.#write(offset, source.subarray(offset, offset + bytes));
  }

  async #write(offset: number, data: Buffer): Promise<void> {
    this.counters.writes++;
    this.counters.writeBytes += data.length;
    await this.#disk.write(offset, data);
  }

  async #readSome(): Promise<void> {
    const requests = Array.from({ length: DEPTH / 2 }, () => {
      const bytes = SECTOR * this.#prng.between(1, REQUEST_BYTES_MAX / SECTOR);
      const offset = SECTOR * this.#prng.below((this.reference.length - bytes) / SECTOR);
      return this.#compare(offset, bytes);
    });
    await Promise.all(requests);
  }

  async #compare(offset: number, bytes: number): Promise<void> {
    this.counters.reads++;
    const got = await this.#disk.read(offset, bytes);
    const at = firstDifference(got, this.reference.subarray(offset, offset + bytes));
    if (at === undefined) return;
    throw new BlockError("EIO", `the guest sees a wrong byte at offset ${offset + at} of its disk`);
  }
}

/** Where two buffers of one length begin to differ. */
export function firstDifference(one: Buffer, other: Buffer): number | undefined {
  if (one.equals(other)) return undefined;
  let at = 0;
  while (one[at] === other[at]) at++;
  return at;
}

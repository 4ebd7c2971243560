// A guest that writes all over its disk and remembers what it was promised.
//
//   1. Every write has a number, and every sector of it says which write it is and where it belongs.
//   2. No two writes in flight overlap, so the writes to one sector have an order.
//   3. A flush that was answered promises every write that was answered before the flush was sent.
//   4. After a crash a sector holds the last write promised, or any later one that was sent; without a
//      promise it may also be what it was before. Nothing else, ever.

import { NbdClient } from "../../nbd/client.ts";
import { isZero } from "../../src/base/bytes.ts";
import type { Prng } from "../../src/base/prng.ts";
import { KiB } from "../../src/base/units.ts";
import { later } from "./patience.ts";

const SECTOR = 512;
const DEPTH = 8;
const LARGEST_WRITE = 96 * KiB;
/** One in so many requests is a flush; one in so many writes is a write of zeros. */
const FLUSH_EACH = 12;
const ZEROES_EACH = 8;

interface Write {
  readonly stamp: number;
  readonly first: number;
  readonly count: number;
  readonly zeroes: boolean;
}

export class RecordingWriter {
  /** Writes that were answered. */
  answered = 0;
  /** Flushes that were answered. */
  flushed = 0;
  readonly #client: NbdClient;
  readonly #prng: Prng;
  readonly #sectors: number;
  readonly #busy = new Set<number>();
  /** Per sector: the last write promised (0: none), and those sent after it. */
  readonly #promised: Uint32Array;
  readonly #sent = new Map<number, Write[]>();
  readonly #writes = new Map<number, Write>();
  readonly #watchers = new Set<() => void>();
  #answeredWrites: Write[] = [];
  #stopped = false;
  #finishing = false;
  #running: Promise<void> | undefined;
  #nextStamp = 1;

  private constructor(client: NbdClient, prng: Prng) {
    this.#client = client;
    this.#prng = prng;
    this.#sectors = Math.floor(client.size / SECTOR);
    this.#promised = new Uint32Array(this.#sectors);
  }

  static async connect(uri: string, prng: Prng): Promise<RecordingWriter> {
    return new RecordingWriter(await NbdClient.connect(uri), prng);
  }

  /** Writes until it is told to let go. @throws when a request fails before */
  run(): Promise<void> {
    this.#running = Promise.all(Array.from({ length: DEPTH }, () => this.#worker())).then(() => undefined);
    return later(this.#running);
  }

  /** Ends in peace: everything sent has been answered and flushed, so every write is promised. */
  async finish(): Promise<void> {
    this.#finishing = true;
    await this.#running;
    await this.#flush();
    await this.#client.disconnect();
  }

  /** The daemon has ended in peace: so every write that it answered is on disk. */
  promiseAnswered(): void {
    for (const write of this.#answeredWrites.splice(0)) this.#promise(write);
  }

  /** Lets go of the connection; answers that are still to come do not count any more. */
  abandon(): void {
    this.#stopped = true;
    this.#client.destroy();
    for (const look of [...this.#watchers]) look();
  }

  /** Waits until so many writes more than now have been answered. */
  afterWrites(count: number): Promise<void> {
    const goal = this.answered + count;
    return later(
      new Promise((resolve) => {
        const look = (): void => {
          if (this.answered < goal && !this.#stopped) return;
          this.#watchers.delete(look);
          resolve();
        };
        this.#watchers.add(look);
        look();
      }),
    );
  }

  /** Sectors of `disk` that break a promise, told in words; the first few. `before` is the disk as it was. */
  brokenPromises(disk: Buffer, before: Buffer): string[] {
    const broken: string[] = [];
    for (let sector = 0; sector < this.#sectors && broken.length < 5; sector++) {
      if (!this.#isAllowed(disk, before, sector)) broken.push(this.#complaint(disk, before, sector));
    }
    return broken;
  }

  async #worker(): Promise<void> {
    while (!this.#stopped && !this.#finishing) {
      try {
        if (this.#prng.below(FLUSH_EACH) === 0) await this.#flush();
        else await this.#write();
      } catch (error) {
        if (this.#stopped) return;
        this.abandon();
        throw error;
      }
    }
  }

  async #flush(): Promise<void> {
    const covered = this.#answeredWrites;
    this.#answeredWrites = [];
    try {
      await this.#client.flush();
    } catch (error) {
      this.#answeredWrites.unshift(...covered);
      throw error;
    }
    if (this.#stopped) return;
    for (const write of covered) this.#promise(write);
    this.flushed++;
  }

  async #write(): Promise<void> {
    const write = this.#place();
    if (write === undefined) return;
    this.#send(write);
    const offset = write.first * SECTOR;
    const bytes = write.count * SECTOR;
    if (write.zeroes) await this.#client.writeZeroes(offset, bytes);
    else await this.#client.write(offset, contentOf(write));
    for (let sector = write.first; sector < write.first + write.count; sector++) this.#busy.delete(sector);
    if (this.#stopped) return;
    this.#answeredWrites.push(write);
    this.answered++;
    for (const look of [...this.#watchers]) look();
  }

  #place(): Write | undefined {
    const count = this.#prng.between(1, LARGEST_WRITE / SECTOR);
    const first = this.#prng.below(this.#sectors - count);
    for (let sector = first; sector < first + count; sector++) if (this.#busy.has(sector)) return undefined;
    return { stamp: this.#nextStamp++, first, count, zeroes: this.#prng.below(ZEROES_EACH) === 0 };
  }

  #send(write: Write): void {
    this.#writes.set(write.stamp, write);
    for (let sector = write.first; sector < write.first + write.count; sector++) {
      this.#busy.add(sector);
      const sent = this.#sent.get(sector);
      if (sent === undefined) this.#sent.set(sector, [write]);
      else sent.push(write);
    }
  }

  #promise(write: Write): void {
    for (let sector = write.first; sector < write.first + write.count; sector++) {
      if (this.#promised[sector]! < write.stamp) this.#promised[sector] = write.stamp;
    }
  }

  #isAllowed(disk: Buffer, before: Buffer, sector: number): boolean {
    const at = sector * SECTOR;
    const promised = this.#promised[sector]!;
    const isAsBefore = disk.compare(before, at, at + SECTOR, at, at + SECTOR) === 0;
    if (promised === 0 && isAsBefore) return true;
    for (const write of this.#sent.get(sector) ?? []) {
      if (write.stamp >= promised && holds(disk, write, sector)) return true;
    }
    return false;
  }

  #complaint(disk: Buffer, before: Buffer, sector: number): string {
    const at = sector * SECTOR;
    const promised = this.#promised[sector]!;
    const sent = (this.#sent.get(sector) ?? []).map(
      (write) => `${write.stamp}${write.zeroes ? " (zeros)" : ""}`,
    );
    const found = isZero(disk, at, SECTOR)
      ? "zeros"
      : disk.compare(before, at, at + SECTOR, at, at + SECTOR) === 0
        ? "what was there before"
        : `${disk.toString("hex", at, at + 12)}...`;
    return `sector ${sector}: promised write ${promised}, sent ${sent.join(", ")}, but it holds ${found}`;
  }
}

/** 4 bytes: number of the write; 4 bytes: number of the sector; the rest repeats both, mixed. */
function contentOf(write: Write): Buffer {
  const content = Buffer.alloc(write.count * SECTOR);
  for (let index = 0; index < write.count; index++)
    fillSector(content, index * SECTOR, write.stamp, write.first + index);
  return content;
}

function fillSector(buffer: Buffer, at: number, stamp: number, sector: number): void {
  for (let word = 0; word < SECTOR; word += 8) {
    buffer.writeUInt32LE(stamp, at + word);
    buffer.writeUInt32LE(sector + word * 0x10000, at + word + 4);
  }
}

const expected = Buffer.alloc(SECTOR);

function holds(disk: Buffer, write: Write, sector: number): boolean {
  const at = sector * SECTOR;
  if (write.zeroes) return isZero(disk, at, SECTOR);
  fillSector(expected, 0, write.stamp, sector);
  return disk.compare(expected, 0, SECTOR, at, at + SECTOR) === 0;
}

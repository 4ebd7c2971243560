// A guest that works all over its disk for hours and checks everything that it reads.
//
//   1. Every write has a stamp of its own, and its sectors say so (sector-content.ts). What the disk must
//      hold is known at any moment (expected-content.ts).
//   2. Requests in flight that could touch the same sector are never sent together, but for two reads.
//   3. Requests may fail only as often as the one who makes them fail has announced.

import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { NbdClient } from "../../nbd/client.ts";
import { BlockError, errorMessage } from "../../src/base/errors.ts";
import type { Prng } from "../../src/base/prng.ts";
import { MiB } from "../../src/base/units.ts";
import { type Change, ExpectedContent } from "./expected-content.ts";
import { FOREIGN, fillSectors, SECTOR, sectorBuffer, stampAt, wordsOf } from "./sector-content.ts";

/** Requests in flight. */
const DEPTH = 8;
/** A worker rests for up to so long between two requests: the load is steady, and leaves room for merges. */
const REST_MS_MAX = 40;
const SECTORS_OF_4_KIB = 8;
const REQUEST_SECTORS_MAX = 512;
/** Pieces in which a whole disk is written or compared. */
const PIECE_SECTORS = MiB / SECTOR;
/** Errors that faults may bring. */
const FAULT_CODES: readonly string[] = ["EIO", "ENOSPC"];

interface Place {
  readonly first: number;
  readonly count: number;
}

interface Held extends Place {
  readonly writes: boolean;
}

/** What a guest did since it was asked last; latencies of all requests but flushes, in milliseconds. */
export interface GuestFigures {
  readonly latenciesMs: readonly number[];
  readonly flushes: number;
  readonly bytes: number;
  /** Requests that failed because faults were announced. */
  readonly failed: number;
}

export class Guest {
  readonly #name: string;
  readonly #prng: Prng;
  readonly #expected: ExpectedContent;
  readonly #wrong: (what: string) => void;
  #client: NbdClient | undefined;
  #sectors = 0;
  #held: Held[] = [];
  #working: Promise<unknown> | undefined;
  #stopping = false;
  #expectsLoss = false;
  #errorsAllowed = 0;
  #flushInFlight = false;
  #nextStamp = 1;
  #writes = 0;
  #onWrite: (() => void) | undefined;
  #latenciesMs: number[] = [];
  #flushes = 0;
  #bytes = 0;
  #failed = 0;

  /** `wrong` is called with what must not be, and with every seed the same work is done. */
  constructor(settings: { name: string; sectorsMax: number; prng: Prng; wrong: (what: string) => void }) {
    this.#name = settings.name;
    this.#prng = settings.prng;
    this.#expected = new ExpectedContent(settings.sectorsMax);
    this.#wrong = settings.wrong;
  }

  async connect(uri: string): Promise<void> {
    this.#client = await NbdClient.connect(uri);
    this.#hasLength(this.#client.size, "the disk");
    this.#expectsLoss = false;
    this.#errorsAllowed = 0;
  }

  /** Writes the whole disk once, so that its images are as large at the start as later on. */
  async fill(): Promise<void> {
    for (let first = 0; first < this.#sectors; first += PIECE_SECTORS) {
      await this.#write({ first, count: Math.min(PIECE_SECTORS, this.#sectors - first) });
    }
  }

  /** Begins to work. */
  work(): void {
    this.#stopping = false;
    this.#working = Promise.all(Array.from({ length: DEPTH }, () => this.#worker()));
  }

  /** Ends the work; every request has been answered then. */
  async rest(): Promise<void> {
    this.#stopping = true;
    await this.#working;
  }

  async disconnect(): Promise<void> {
    await this.#client!.disconnect();
    this.#client = undefined;
  }

  /** From now on so many requests more may fail. */
  allowErrors(count: number): void {
    this.#errorsAllowed = count;
  }

  /** Waits until so many writes more have been answered, with success or not. */
  afterWrites(count: number): Promise<void> {
    const goal = this.#writes + count;
    return new Promise((resolve) => {
      this.#onWrite = () => {
        if (this.#writes < goal) return;
        this.#onWrite = undefined;
        resolve();
      };
    });
  }

  /** The daemon is about to end: the connection will be lost. */
  expectLoss(): void {
    this.#expectsLoss = true;
  }

  /** The daemon has ended. @param how whether it was asked to, or killed */
  async lost(how: "asked" | "killed"): Promise<void> {
    this.#stopping = true;
    this.#client?.destroy();
    await this.#working;
    this.#client = undefined;
    if (how === "killed") this.#expected.killed();
    else this.#expected.ended();
  }

  /** What the guest did since the last call. */
  takeFigures(): GuestFigures {
    const figures = {
      latenciesMs: this.#latenciesMs,
      flushes: this.#flushes,
      bytes: this.#bytes,
      failed: this.#failed,
    };
    this.#latenciesMs = [];
    this.#flushes = this.#bytes = this.#failed = 0;
    return figures;
  }

  /** Reads the whole disk and checks it. The guest must be at rest. Gives how many sectors were undecided. */
  async checkDisk(): Promise<number> {
    const undecided = this.#expected.undecided;
    for (let first = 0; first < this.#sectors; first += PIECE_SECTORS) {
      const place = { first, count: Math.min(PIECE_SECTORS, this.#sectors - first) };
      this.#check(place, await this.#read(place), "the disk");
    }
    return undecided;
  }

  /** Checks a raw copy of the disk: for a guest that is not connected. */
  checkFile(filename: string): number {
    const undecided = this.#expected.undecided;
    const file = openSync(filename, "r");
    try {
      const sectors = this.#hasLength(fstatSync(file).size, "its copy");
      for (let first = 0; first < sectors; first += PIECE_SECTORS) {
        const buffer = sectorBuffer(Math.min(PIECE_SECTORS, sectors - first));
        readSync(file, buffer, 0, buffer.length, first * SECTOR);
        this.#check({ first, count: buffer.length / SECTOR }, buffer, "its copy");
      }
    } finally {
      closeSync(file);
    }
    return undecided;
  }

  async #worker(): Promise<void> {
    while (!this.#stopping) {
      await new Promise((resolve) => setTimeout(resolve, this.#prng.next() * REST_MS_MAX));
      if (this.#stopping) return;
      try {
        await this.#request();
      } catch (error) {
        if (this.#expectsLoss) return;
        this.#wrong(`${this.#name}: ${errorMessage(error)}`);
        this.#stopping = true;
        return;
      }
    }
  }

  async #request(): Promise<void> {
    const choice = this.#prng.next();
    if (choice < 0.03) await this.#flush();
    else if (choice < 0.43) await this.#holding(false, (place) => this.#readAndCheck(place));
    else if (choice < 0.85) await this.#holding(true, (place) => this.#write(place));
    else if (choice < 0.93) await this.#holding(true, (place) => this.#zero(place));
    else await this.#holding(true, (place) => this.#trim(place));
  }

  async #flush(): Promise<void> {
    if (this.#flushInFlight) return;
    this.#flushInFlight = true;
    this.#expected.flushing();
    try {
      await this.#client!.flush();
      this.#flushes++;
      this.#expected.flushed();
    } catch (error) {
      this.#expected.flushFailed();
      this.#forgive(error);
    } finally {
      this.#flushInFlight = false;
    }
  }

  async #readAndCheck(place: Place): Promise<void> {
    let content: Buffer;
    try {
      content = await this.#timed(place, () => this.#read(place));
    } catch (error) {
      this.#forgive(error);
      return;
    }
    this.#check(place, content, "the disk");
  }

  async #write(place: Place): Promise<void> {
    const change = { ...place, stamp: this.#nextStamp++ };
    const content = sectorBuffer(place.count);
    fillSectors(wordsOf(content), place.first, change.stamp);
    const fua = this.#prng.chance(0.03);
    const send = () => this.#client!.write(place.first * SECTOR, content, { fua });
    await this.#change(change, send, fua);
    this.#writes++;
    this.#onWrite?.();
  }

  async #zero(place: Place): Promise<void> {
    const noHole = this.#prng.chance(0.3);
    const { first, count } = place;
    await this.#change({ ...place, stamp: 0 }, () =>
      this.#client!.writeZeroes(first * SECTOR, count * SECTOR, { noHole }),
    );
  }

  /** A trimmed sector holds what it held, or zeros: which, is asked at once. */
  async #trim(place: Place): Promise<void> {
    const { first, count } = place;
    this.#expected.mayHaveChanged({ ...place, stamp: 0 });
    try {
      await this.#timed(place, () => this.#client!.trim(first * SECTOR, count * SECTOR));
    } catch (error) {
      this.#forgive(error);
    }
    await this.#readAndCheck(place);
  }

  async #change(change: Change, send: () => Promise<void>, isDurable = false): Promise<void> {
    try {
      await this.#timed(change, send);
      if (isDurable) this.#expected.changedDurably(change);
      else this.#expected.changed(change);
    } catch (error) {
      this.#expected.mayHaveChanged(change);
      this.#forgive(error);
    }
  }

  /** @throws the error when nobody has announced it */
  #forgive(error: unknown): void {
    if (this.#expectsLoss) throw error;
    const isFault = error instanceof BlockError && FAULT_CODES.includes(error.code);
    if (!isFault || this.#errorsAllowed <= 0) throw error;
    this.#errorsAllowed--;
    this.#failed++;
  }

  async #timed<T>(place: Place, request: () => Promise<T>): Promise<T> {
    const start = performance.now();
    const result = await request();
    this.#latenciesMs.push(performance.now() - start);
    this.#bytes += place.count * SECTOR;
    return result;
  }

  async #read({ first, count }: Place): Promise<Buffer> {
    const buffer = sectorBuffer(count);
    await this.#client!.readInto({ offset: first * SECTOR, bytes: buffer.length, buffer, at: 0 });
    return buffer;
  }

  /** Takes note of the disk's length, in bytes, and gives it in sectors: it never gets smaller. */
  #hasLength(bytes: number, where: string): number {
    const sectors = Math.floor(bytes / SECTOR);
    if (sectors < this.#sectors) {
      throw new BlockError("EIO", `${where} has ${sectors} sectors only instead of ${this.#sectors}`);
    }
    this.#sectors = sectors;
    return sectors;
  }

  #check({ first, count }: Place, content: Buffer, where: string): void {
    const words = wordsOf(content);
    for (let index = 0; index < count; index++) {
      const sector = first + index;
      const stamp = stampAt(words, index, sector);
      if (stamp !== FOREIGN && this.#expected.seen(sector, stamp)) continue;
      const found = stamp === FOREIGN ? content.toString("hex", index * SECTOR, index * SECTOR + 16) : stamp;
      const wanted = this.#expected.describe(sector);
      throw new BlockError(
        "EIO",
        `sector ${sector} of ${where} holds ${found === 0 ? "zeros" : found} instead of ${wanted}`,
      );
    }
  }

  /** Runs `request` on a place that nobody else works on; does nothing when it is taken. */
  async #holding(writes: boolean, request: (place: Place) => Promise<void>): Promise<void> {
    const place = this.#place();
    const end = place.first + place.count;
    const isTaken = this.#held.some(
      (other) => (writes || other.writes) && other.first < end && place.first < other.first + other.count,
    );
    if (isTaken) return;
    const held = { ...place, writes };
    this.#held.push(held);
    try {
      await request(place);
    } finally {
      this.#held = this.#held.filter((other) => other !== held);
    }
  }

  /** 4 to 256 KiB, small ones more often; mostly on 4 KiB, the rest on any sector. */
  #place(): Place {
    const blocks = Math.ceil((REQUEST_SECTORS_MAX / SECTORS_OF_4_KIB) ** this.#prng.next());
    const count = Math.min(this.#sectors, blocks * SECTORS_OF_4_KIB);
    const first = this.#prng.below(this.#sectors - count + 1);
    if (this.#prng.chance(0.2)) return { first, count };
    return { first: first - (first % SECTORS_OF_4_KIB), count };
  }
}

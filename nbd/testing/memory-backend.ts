import type { Completion } from "../../src/base/completion.ts";
import { BlockError, nbdErrno } from "../../src/base/errors.ts";
import { KiB, MiB } from "../../src/base/units.ts";
import { type NbdBackend, StatusFlags, type StatusSink } from "../backend.ts";

/** Bytes that share one state: hole, zero or data. */
const GRANULE_BYTES = 4 * KiB;
const HOLE = StatusFlags.HOLE | StatusFlags.ZERO;

/** Runs an operation now or later; a test decides. */
export type Pace = (operation: () => void) => Completion;

export interface MemoryBackendOptions {
  readonly size: number;
  readonly readOnly?: boolean;
  readonly description?: string;
  readonly blockMinimum?: number;
  readonly multiConn?: boolean;
  /** Default: everything finishes at once. */
  readonly pace?: Pace;
}

/**
 * A disk in memory that knows holes, for tests and measurements. Its depth context tells 1 for data and 0 for
 * holes.
 */
export class MemoryBackend implements NbdBackend {
  readonly readOnly: boolean;
  readonly description: string | undefined;
  readonly blockSize: { minimum: number; preferred: number; maximum: number };
  readonly multiConn: boolean;
  readonly contexts = ["qemu:allocation-depth"];
  readonly bytes: Buffer;
  /** Calls by name. */
  readonly calls: Record<string, number> = {};
  /** Calls that have not ended. */
  underWay = 0;
  pace: Pace;
  /** Thrown by the next operation of that name, once. */
  failNext: { operation: string; error: unknown } | undefined;
  #states: Uint8Array;

  constructor(options: MemoryBackendOptions) {
    this.bytes = Buffer.alloc(options.size);
    this.readOnly = options.readOnly ?? false;
    this.description = options.description;
    this.multiConn = options.multiConn ?? true;
    this.blockSize = { minimum: options.blockMinimum ?? 1, preferred: 4 * KiB, maximum: 32 * MiB };
    this.pace = options.pace ?? ((operation) => operation());
    this.#states = new Uint8Array(Math.ceil(options.size / GRANULE_BYTES)).fill(HOLE);
  }

  get size(): number {
    return this.bytes.length;
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return this.#run("read", () => void this.bytes.copy(buffer, at, offset, offset + bytes));
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number, fua: boolean): Completion {
    if (fua) this.#count("fua");
    return this.#run("write", () => {
      buffer.copy(this.bytes, offset, at, at + bytes);
      this.#mark(offset, bytes, 0);
    });
  }

  writeZeroes(
    offset: number,
    bytes: number,
    options: { fua: boolean; mayUnmap: boolean; fastOnly: boolean },
  ): Completion {
    if (options.fua) this.#count("fua");
    if (options.fastOnly) this.#count("fastOnly");
    return this.#run("writeZeroes", () => {
      this.bytes.fill(0, offset, offset + bytes);
      this.#markInside(offset, bytes, options.mayUnmap ? HOLE : StatusFlags.ZERO);
    });
  }

  trim(offset: number, bytes: number, fua: boolean): Completion {
    if (fua) this.#count("fua");
    return this.#run("trim", () => {
      const start = Math.ceil(offset / GRANULE_BYTES) * GRANULE_BYTES;
      const end = Math.floor((offset + bytes) / GRANULE_BYTES) * GRANULE_BYTES;
      if (end <= start) return;
      this.bytes.fill(0, start, end);
      this.#markInside(start, end - start, HOLE);
    });
  }

  flush(): Completion {
    return this.#run("flush", () => {});
  }

  cache(): Completion {
    return this.#run("cache", () => {});
  }

  status(context: string, offset: number, bytes: number, sink: StatusSink): Completion {
    return this.#run("status", () => {
      const end = offset + bytes;
      for (let at = offset; at < end; ) {
        const state = this.#states[Math.floor(at / GRANULE_BYTES)]!;
        let next = at;
        while (next < end && this.#states[Math.floor(next / GRANULE_BYTES)] === state) {
          next = (Math.floor(next / GRANULE_BYTES) + 1) * GRANULE_BYTES;
        }
        const flags = context === "base:allocation" ? state : Number(state === 0);
        if (!sink(Math.min(next, end) - at, flags)) return;
        at = next;
      }
    });
  }

  errno(error: unknown): number {
    return nbdErrno(error);
  }

  /** How often `operation` was called. */
  count(operation: string): number {
    return this.calls[operation] ?? 0;
  }

  #run(name: string, operation: () => void): Completion {
    this.#count(name);
    const fail = this.failNext;
    if (fail?.operation === name) {
      this.failNext = undefined;
      return this.pace(() => {
        throw fail.error;
      });
    }
    this.underWay++;
    let completion: Completion;
    try {
      completion = this.pace(operation);
    } catch (error) {
      this.underWay--;
      throw error;
    }
    if (completion === undefined) this.underWay--;
    else return completion.finally(() => this.underWay--);
  }

  #count(name: string): void {
    this.calls[name] = this.count(name) + 1;
  }

  #mark(offset: number, bytes: number, state: number): void {
    const first = Math.floor(offset / GRANULE_BYTES);
    this.#states.fill(state, first, Math.ceil((offset + bytes) / GRANULE_BYTES));
  }

  /** Only granules that lie inside as a whole change; the ends keep what they were. */
  #markInside(offset: number, bytes: number, state: number): void {
    const end = Math.min(offset + bytes, this.size);
    const last = end === this.size ? Math.ceil(end / GRANULE_BYTES) : Math.floor(end / GRANULE_BYTES);
    const first = Math.ceil(offset / GRANULE_BYTES);
    if (first < last) this.#states.fill(state, first, last);
  }
}

/** An error as a full host gives it. */
export function noSpace(): BlockError {
  return new BlockError("ENOSPC", "no space left on the host for cluster 7; free some and try again");
}

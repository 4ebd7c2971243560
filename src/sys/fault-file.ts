// A HostFile over another one, for tests: fails chosen calls, delays completions, counts, and records writes.
//
//   1. A failed call has not reached the file below; a write that fails in part has reached it with its first
//      half.
//   2. A delayed call reaches it late or is answered late, either way; so callers see both completions and
//      overlap.
//   3. Everything follows from the seed of the generator that the delays were made with.

import type { Completion } from "../base/completion.ts";
import type { Prng } from "../base/prng.ts";
import { Errno, hostError } from "./host-error.ts";
import type { HostExtent, HostFile, LockRequest } from "./host-file.ts";

export type FaultKind = "read" | "write" | "zeroes" | "discard" | "sync" | "truncate" | "setWritable";
const KINDS: readonly FaultKind[] = ["read", "write", "zeroes", "discard", "sync", "truncate", "setWritable"];

/** Which calls fail, and how. */
export interface Fault {
  readonly kind: FaultKind | "any";
  readonly errno: keyof typeof Errno;
  /** Fails the n-th call of this kind from now on, counted from 1. Default 1. */
  readonly nth?: number;
  /** How many calls fail from there on. Default 1. */
  readonly times?: number;
  /** A write leaves its first half behind, as after a short write whose rest failed. */
  readonly inPart?: boolean;
  /** Only calls that touch this range. */
  readonly range?: { readonly offset: number; readonly bytes: number };
}

/** What a call waits for before it begins and before it is told as done; undefined: nothing. */
export interface Delays {
  before(kind: FaultKind): Promise<void> | undefined;
  after(kind: FaultKind): Promise<void> | undefined;
  /** Whether a call that cannot wait may be made now; never where this is not there. */
  atOnce?(kind: FaultKind): boolean;
}

export interface RecordedWrite {
  readonly kind: "write" | "zeroes" | "discard" | "truncate" | "sync";
  readonly offset: number;
  readonly bytes: number;
  /** A copy of what was written, where `kind` is "write". */
  readonly content?: Buffer;
}

export class FaultFile implements HostFile {
  readonly counts: Record<FaultKind, number>;
  /** Filled while `recording`. */
  readonly recorded: RecordedWrite[] = [];
  recording = false;
  delays: Delays | undefined;
  readonly #inner: HostFile;
  #faults: { fault: Fault; seen: number }[] = [];

  constructor(inner: HostFile, delays?: Delays) {
    this.#inner = inner;
    this.delays = delays;
    this.counts = Object.fromEntries(KINDS.map((kind) => [kind, 0])) as Record<FaultKind, number>;
  }

  get path(): string {
    return this.#inner.path;
  }

  get writable(): boolean {
    return this.#inner.writable;
  }

  get size(): number {
    return this.#inner.size;
  }

  fail(fault: Fault): void {
    this.#faults.push({ fault, seen: 0 });
  }

  clearFaults(): void {
    this.#faults = [];
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return this.#call("read", offset, bytes, () => this.#inner.read(offset, bytes, buffer, at));
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    const write = (length: number) => {
      this.#record("write", offset, length, buffer, at);
      return this.#inner.write(offset, length, buffer, at);
    };
    return this.#call("write", offset, bytes, () => write(bytes), write);
  }

  writeVector(offset: number, parts: readonly Buffer[]): Completion {
    const bytes = parts.reduce((sum, part) => sum + part.length, 0);
    const write = () => {
      if (this.recording) this.#record("write", offset, bytes, Buffer.concat(parts, bytes), 0);
      return this.#inner.writeVector(offset, parts);
    };
    const writePart = (length: number) => this.#inner.write(offset, length, Buffer.concat(parts, bytes), 0);
    return this.#call("write", offset, bytes, write, writePart);
  }

  /**
   * To faults, delays and records this is a write. It does not tell what went wrong, as the host does not.
   */
  async copyFrom(source: HostFile, sourceOffset: number, offset: number, bytes: number): Promise<boolean> {
    const from = source instanceof FaultFile ? source.#inner : source;
    if (sourceOffset + bytes > from.size) return false;
    const content = Buffer.alloc(bytes);
    try {
      await from.read(sourceOffset, bytes, content, 0);
      await this.write(offset, bytes, content, 0);
      return true;
    } catch {
      return false;
    }
  }

  get copiesAtOnce(): boolean {
    return this.#inner.copiesAtOnce === true;
  }

  /**
   * Refused where a call would have to wait. Where the next read of the source or the next write here would
   * fail, half of it is copied; the fault stays for that call.
   */
  copyAtOnce(source: HostFile, sourceOffset: number, offset: number, bytes: number): boolean {
    if (!(source instanceof FaultFile)) return this.#copyPart(source, sourceOffset, offset, bytes, bytes);
    if (!source.#goesOn("read")) return false;
    const sourceFails = source.#nextFails("read", sourceOffset, bytes);
    return this.#copyPart(source.#inner, sourceOffset, offset, bytes, sourceFails ? bytes >> 1 : bytes);
  }

  #copyPart(from: HostFile, fromOffset: number, offset: number, bytes: number, readable: number): boolean {
    if (this.#inner.copyAtOnce === undefined || !this.#goesOn("write")) return false;
    const length = this.#nextFails("write", offset, bytes) ? bytes >> 1 : readable;
    if (!this.#inner.copyAtOnce(from, fromOffset, offset, length)) return false;
    if (this.recording) {
      const content = Buffer.alloc(length);
      this.#inner.read(offset, length, content, 0);
      this.#record("write", offset, length, content);
    }
    return length === bytes;
  }

  #goesOn(kind: FaultKind): boolean {
    return this.delays === undefined || this.delays.atOnce?.(kind) === true;
  }

  writeZeroes(offset: number, bytes: number, options: { unmap: boolean; cheapOnly: boolean }): Completion {
    return this.#call("zeroes", offset, bytes, () => {
      this.#record("zeroes", offset, bytes);
      return this.#inner.writeZeroes(offset, bytes, options);
    });
  }

  discard(offset: number, bytes: number): Completion {
    return this.#call("discard", offset, bytes, () => {
      this.#record("discard", offset, bytes);
      return this.#inner.discard(offset, bytes);
    });
  }

  sync(): Completion {
    return this.#call("sync", 0, 0, () => {
      this.#record("sync", 0, 0);
      return this.#inner.sync();
    });
  }

  truncate(size: number): Completion {
    return this.#call("truncate", size, 0, () => {
      this.#record("truncate", size, 0);
      return this.#inner.truncate(size);
    });
  }

  extentAt(offset: number): HostExtent {
    return this.#inner.extentAt(offset);
  }

  allocatedBytes(): number {
    return this.#inner.allocatedBytes();
  }

  lock(request: LockRequest): void {
    this.#inner.lock(request);
  }

  async setWritable(writable: boolean): Promise<void> {
    await this.#call("setWritable", 0, 0, () => this.#inner.setWritable(writable));
  }

  close(): Promise<void> {
    return this.#inner.close();
  }

  #call(
    kind: FaultKind,
    offset: number,
    bytes: number,
    work: () => Completion,
    workInPart?: (bytes: number) => Completion,
  ): Completion {
    this.counts[kind]++;
    const fault = this.#failure(kind, offset, bytes);
    const run = () => {
      if (fault === undefined) return work();
      const what = `Injected: ${kind} of ${bytes} bytes at offset ${offset} of '${this.path}'`;
      const error = hostError(Errno[fault.errno], what);
      if (fault.inPart !== true || workInPart === undefined) throw error;
      return failAfter(workInPart(bytes >> 1), error);
    };
    const before = this.delays?.before(kind);
    const after = this.delays?.after(kind);
    return before === undefined && after === undefined ? run() : delayed(before, run, after);
  }

  #failure(kind: FaultKind, offset: number, bytes: number): Fault | undefined {
    let first: Fault | undefined;
    for (const entry of this.#faults) {
      if (!isAbout(entry.fault, kind, offset, bytes)) continue;
      entry.seen++;
      if (isDue(entry.fault, entry.seen)) first ??= entry.fault;
    }
    return first;
  }

  #nextFails(kind: FaultKind, offset: number, bytes: number): boolean {
    return this.#faults.some(
      ({ fault, seen }) => isAbout(fault, kind, offset, bytes) && isDue(fault, seen + 1),
    );
  }

  #record(kind: RecordedWrite["kind"], offset: number, bytes: number, buffer?: Buffer, at = 0): void {
    if (!this.recording) return;
    const content = buffer === undefined ? {} : { content: Buffer.from(buffer.subarray(at, at + bytes)) };
    this.recorded.push({ kind, offset, bytes, ...content });
  }
}

function isAbout({ kind, range }: Fault, called: FaultKind, offset: number, bytes: number): boolean {
  if (kind !== "any" && kind !== called) return false;
  return range === undefined || overlap(range, offset, bytes);
}

/** Whether a fault strikes the call that is the `seen`-th of those that it is about. */
function isDue({ nth = 1, times = 1 }: Fault, seen: number): boolean {
  return seen >= nth && seen < nth + times;
}

function failAfter(part: Completion, error: Error): Completion {
  if (part === undefined) throw error;
  return part.then(() => {
    throw error;
  });
}

async function delayed(
  before: Promise<void> | undefined,
  run: () => Completion,
  after: Promise<void> | undefined,
): Promise<void> {
  if (before !== undefined) await before;
  try {
    await run();
  } finally {
    if (after !== undefined) await after;
  }
}

function overlap(range: { readonly offset: number; readonly bytes: number }, offset: number, bytes: number) {
  return offset < range.offset + range.bytes && range.offset < offset + bytes;
}

/** Delays a share of the calls by a random number of turns of the event loop; the others finish at once. */
export class RandomDelays implements Delays {
  readonly #prng: Prng;
  readonly #share: number;
  readonly #turnsMax: number;

  constructor(prng: Prng, share = 0.5, turnsMax = 4) {
    this.#prng = prng;
    this.#share = share;
    this.#turnsMax = turnsMax;
  }

  before(): Promise<void> | undefined {
    return this.#some();
  }

  after(): Promise<void> | undefined {
    return this.#some();
  }

  atOnce(): boolean {
    return !this.#prng.chance(this.#share);
  }

  #some(): Promise<void> | undefined {
    // Two chances per call, before and after.
    if (!this.#prng.chance(this.#share / 2)) return undefined;
    const turns = this.#prng.below(this.#turnsMax + 1);
    return turns === 0 ? Promise.resolve() : turnsOfTheLoop(turns);
  }
}

async function turnsOfTheLoop(turns: number): Promise<void> {
  for (let turn = 0; turn < turns; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** Holds calls of one kind until the test lets them go: the way to put two requests into a wanted order. */
export class HeldCalls implements Delays {
  readonly #kind: FaultKind;
  readonly #answers: boolean;
  readonly #held: (() => void)[] = [];
  holding = true;

  /** @param answers holds the answer of a call that has reached the file, instead of the call itself */
  constructor(kind: FaultKind, answers = false) {
    this.#kind = kind;
    this.#answers = answers;
  }

  get held(): number {
    return this.#held.length;
  }

  before(kind: FaultKind): Promise<void> | undefined {
    return this.#answers ? undefined : this.#hold(kind);
  }

  after(kind: FaultKind): Promise<void> | undefined {
    return this.#answers ? this.#hold(kind) : undefined;
  }

  atOnce(kind: FaultKind): boolean {
    return !this.holding || kind !== this.#kind;
  }

  /** Lets the oldest held call go on; false when there is none. */
  releaseOne(): boolean {
    const release = this.#held.shift();
    release?.();
    return release !== undefined;
  }

  /** Lets all go on, and holds no more. */
  release(): void {
    this.holding = false;
    while (this.releaseOne());
  }

  #hold(kind: FaultKind): Promise<void> | undefined {
    if (!this.holding || kind !== this.#kind) return undefined;
    return new Promise((resolve) => this.#held.push(resolve));
  }
}

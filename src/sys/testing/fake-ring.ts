// A ring without a kernel: the test says what is taken, what is done, in which order and when.

import type { Ring } from "../ring-calls.ts";

export interface FakeEntry {
  readonly tag: number;
  readonly fd: number;
  readonly offset: number;
  readonly bytes: number;
  readonly buffer: Buffer;
  readonly at: number;
  readonly writes?: boolean;
}

export class FakeRing implements Ring {
  readonly places: number;
  /** Prepared, not submitted. */
  readonly entries: FakeEntry[] = [];
  /** In the kernel. */
  readonly kernel: FakeEntry[] = [];
  /** What calls that submit answer, one after the other; after these they take everything. */
  readonly answers: number[] = [];
  readonly #completions: { tag: number; result: number }[] = [];
  submits = 0;
  waits = 0;
  held = false;
  closed = false;
  /** Called when a thread would stop. */
  onWait: () => void = () => {};

  constructor(places: number) {
    this.places = places;
  }

  get prepared(): number {
    return this.entries.length;
  }

  prepareRead(tag: number, fd: number, offset: number, bytes: number, buffer: Buffer, at: number): void {
    this.#prepare({ tag, fd, offset, bytes, buffer, at });
  }

  prepareWrite(tag: number, fd: number, offset: number, bytes: number, buffer: Buffer, at: number): void {
    this.#prepare({ tag, fd, offset, bytes, buffer, at, writes: true });
  }

  #prepare(entry: FakeEntry): void {
    if (this.entries.length + this.kernel.length >= this.places) throw new Error("no place");
    this.entries.push(entry);
  }

  prepareNothing(tag: number): void {
    this.entries.push({ tag, fd: -1, offset: 0, bytes: 0, buffer: Buffer.alloc(0), at: 0 });
  }

  submit(): number {
    this.submits++;
    const answer = this.answers.shift() ?? this.entries.length;
    if (answer > 0) this.kernel.push(...this.entries.splice(0, answer));
    return answer;
  }

  withdraw(each: (tag: number) => void): void {
    for (const { tag } of this.entries.splice(0)) each(tag);
  }

  take(each: (tag: number, result: number) => void): void {
    for (const { tag, result } of this.#completions.splice(0)) each(tag, result);
  }

  wait(): void {
    this.waits++;
    this.onWait();
  }

  hold(): void {
    this.held = true;
  }

  release(): void {
    this.held = false;
  }

  close(): void {
    this.closed = true;
  }

  /** The kernel is done with an entry. What is read is the low byte of the offset. */
  finish(entry: FakeEntry, result = entry.bytes): void {
    this.kernel.splice(this.kernel.indexOf(entry), 1);
    if (result > 0 && entry.writes !== true) entry.buffer.fill(entry.offset, entry.at, entry.at + result);
    this.#completions.push({ tag: entry.tag, result });
  }
}

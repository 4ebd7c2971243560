// How much JavaScript memory a daemon allocates, from what node prints with --trace-gc. Between two
// collections the heap grows from the size after the one to the size before the other:
//
//   [23958:0x74ccf50]      237 ms: Scavenge 7.6 (9.7) -> 6.4 (10.2) MB, 1.13 / 0.02 ms ...
//   [23958:0x74ccf50]      287 ms: Scavenge 7.8 (10.2) -> 6.6 (15.0) MB ...        allocated: 7.8 - 6.4
//
// Buffers outside of the heap do not count. What is allocated after the last collection is not known.

import { MiB } from "../../src/base/units.ts";

/** All that was allocated until some moment. */
export interface AllocationMark {
  /** Since the program's start. */
  readonly milliseconds: number;
  readonly bytes: number;
}

const COLLECTION = /^\[\d+:0x[0-9a-f]+\]\s+(\d+) ms: \D*?([\d.]+) \([\d.]+\) -> ([\d.]+) \([\d.]+\) MB/gm;

export function readTraceGc(output: string): AllocationMark[] {
  const marks: AllocationMark[] = [];
  let bytes = 0;
  let left = 0;
  for (const [, milliseconds, before, after] of output.matchAll(COLLECTION)) {
    // Concurrent work of the collector may free something in between.
    bytes += Math.max(0, Number(before) - left) * MiB;
    left = Number(after);
    marks.push({ milliseconds: Number(milliseconds), bytes });
  }
  return marks;
}

/** Bytes allocated from one moment to another; straight lines between collections. NaN without any. */
export function allocatedBetween(
  marks: readonly AllocationMark[],
  { from, to }: { from: number; to: number },
): number {
  if (marks.length === 0) return Number.NaN;
  return allocatedUntil(marks, to) - allocatedUntil(marks, from);
}

function allocatedUntil(marks: readonly AllocationMark[], milliseconds: number): number {
  const next = marks.findIndex((mark) => mark.milliseconds >= milliseconds);
  if (next < 0) return marks.at(-1)!.bytes;
  const after = marks[next]!;
  const before = next === 0 ? { milliseconds: 0, bytes: 0 } : marks[next - 1]!;
  const length = after.milliseconds - before.milliseconds;
  if (length === 0) return after.bytes;
  return before.bytes + ((milliseconds - before.milliseconds) / length) * (after.bytes - before.bytes);
}

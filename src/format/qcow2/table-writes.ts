// Writing pieces of tables to the file: sorted, neighbours joined into one vectored write.

import { settleAll } from "../../base/completion.ts";
import type { BlockNode } from "../../block/node.ts";

/** The smallest piece of a table that is written; a write of it is not torn. */
export const TABLE_SECTOR_BYTES = 512;

/** `buffer[0 .. bytes)` belongs at `offset` of the file. */
export interface TableWrite {
  readonly offset: number;
  readonly bytes: number;
  readonly buffer: Buffer;
}

/** Buffers in one vectored write. */
const VECTOR_PARTS_MAX = 64;
/** Writes under way at once. */
const WRITES_AT_ONCE = 16;

/** Writes all; on an error those under way have settled, and which were written is not known. */
export async function writeTables(file: BlockNode, writes: readonly TableWrite[]): Promise<void> {
  const sorted = [...writes].sort((a, b) => a.offset - b.offset);
  for (let from = 0; from < sorted.length; ) {
    const group: Promise<void>[] = [];
    while (from < sorted.length && group.length < WRITES_AT_ONCE) {
      const to = contiguousEnd(sorted, from);
      group.push(writeRun(file, sorted, from, to));
      from = to;
    }
    await settleAll(group);
  }
}

function contiguousEnd(writes: readonly TableWrite[], from: number): number {
  let to = from + 1;
  while (to < writes.length && to - from < VECTOR_PARTS_MAX) {
    const previous = writes[to - 1]!;
    if (writes[to]!.offset !== previous.offset + previous.bytes) break;
    to++;
  }
  return to;
}

async function writeRun(file: BlockNode, writes: readonly TableWrite[], from: number, to: number) {
  const first = writes[from]!;
  if (to - from === 1) {
    await file.write(first.offset, first.bytes, first.buffer, 0);
    return;
  }
  const parts = writes.slice(from, to).map(({ buffer, bytes }) => buffer.subarray(0, bytes));
  await file.writeVector(first.offset, parts);
}

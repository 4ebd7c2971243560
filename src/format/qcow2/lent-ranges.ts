// Which places of the image's file clients were sent without a copy and have not read yet (loan.ts). A
// cluster that is freed waits for those who were lent some of it, and for nobody else: a client that never
// reads keeps what it was lent, not whatever is freed after that.

import type { Lender, LentRange } from "../../block/loan.ts";

export class LentRanges implements Lender {
  readonly #ranges = new Set<LentRange>();
  readonly #onReturned: (range: LentRange) => void;

  constructor(onReturned: (range: LentRange) => void) {
    this.#onReturned = onReturned;
  }

  lent(range: LentRange): void {
    this.#ranges.add(range);
  }

  returned(range: LentRange): void {
    this.#ranges.delete(range);
    this.#onReturned(range);
  }

  /** Whether clients have read all that they were lent. */
  get isEmpty(): boolean {
    return this.#ranges.size === 0;
  }

  /** Those with a byte of [offset, offset+bytes) of the file. */
  meeting(offset: number, bytes: number): LentRange[] {
    const met: LentRange[] = [];
    for (const range of this.#ranges) if (meets(range, offset, bytes)) met.push(range);
    return met;
  }
}

/** Whether the range has a byte of [offset, offset+bytes). */
export function meets(range: LentRange, offset: number, bytes: number): boolean {
  return range.offset < offset + bytes && offset < range.offset + range.bytes;
}

// Reads take no lock. So that no cluster is reused or punched under a read, what frees clusters waits here
// for the reads that began before.
//
//   1. A read that cannot finish at once counts from its look-up to its end, in the epoch in which it began.
//   2. `drained` begins a new epoch and waits for the reads of the old one; one call at a time.
//   3. A read that finishes at once needs no count: nothing happens while it runs.

import type { Completion } from "../../base/completion.ts";

export class ReadEpochs {
  readonly #active = [0, 0];
  #epoch = 0;
  #wake: (() => void) | undefined;

  /** Counts a read in; the result goes to `end`. */
  begin(): number {
    this.#active[this.#epoch]!++;
    return this.#epoch;
  }

  end(epoch: number): void {
    const left = --this.#active[epoch]!;
    if (left > 0 || epoch === this.#epoch || this.#wake === undefined) return;
    const wake = this.#wake;
    this.#wake = undefined;
    wake();
  }

  /** Done when all reads that have begun by now have ended. */
  drained(): Completion {
    const old = this.#epoch;
    this.#epoch = 1 - old;
    if (this.#active[old] === 0) return;
    return new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
  }
}

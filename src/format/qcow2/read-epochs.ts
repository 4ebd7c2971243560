// Reads take no lock. So that no cluster is reused or punched under a read, what frees clusters waits here
// for the reads that began before.
//
//   1. A read that cannot finish at once counts from its look-up to its end, in the epoch in which it began.
//      A loan (loan.ts) counts until the client has its own copy.
//   2. `drained` begins a new epoch and waits for the reads of all earlier ones; one call at a time.
//   3. A read that finishes at once needs no count: nothing happens while it runs.
//   4. Whoever gives up waiting frees nothing; later calls wait for the same reads again.

import type { ReadCount } from "../../block/loan.ts";

export interface Epoch {
  reads: number;
}

export class ReadEpochs implements ReadCount<Epoch> {
  #current: Epoch = { reads: 0 };
  /** Reads of earlier epochs. */
  #earlier = 0;
  #wake: ((drained: boolean) => void) | undefined;

  /** Counts a read in; the result goes to `end`. */
  begin(): Epoch {
    this.#current.reads++;
    return this.#current;
  }

  end(epoch: Epoch): void {
    epoch.reads--;
    if (epoch === this.#current) return;
    if (--this.#earlier === 0) this.#settle(true);
  }

  /** True when all reads that have begun by now have ended; false: somebody gave up. */
  drained(): true | Promise<boolean> {
    if (this.#current.reads > 0) {
      this.#earlier += this.#current.reads;
      this.#current = { reads: 0 };
    }
    if (this.#earlier === 0) return true;
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }

  /** Ends the wait of `drained`, if there is one. */
  giveUp(): void {
    this.#settle(false);
  }

  #settle(drained: boolean): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.(drained);
  }
}

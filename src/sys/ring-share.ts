// What one file may take of the ring (ring-operations.ts): a quarter of its places. Where the host of a file
// does not answer, reads of others go on. Writes do while the kernel has threads for them: four for each
// processor, and one file holds one of them (a block device more).

import type { RingOperations } from "./ring-operations.ts";

const PLACES_MAX = 64;

/** The ring's part of it. */
export type Ring = Pick<RingOperations, "ready" | "read" | "write">;

export class RingShare {
  readonly #ring: () => Ring | undefined;
  #taken = 0;

  /** @param ring asked for when the first operation wants one */
  constructor(ring: () => Ring | undefined) {
    this.#ring = ring;
  }

  /** Whether `take` would get a place. */
  get hasRoom(): boolean {
    return this.#taken < PLACES_MAX && this.#ring()?.ready === true;
  }

  /** A place in the ring until `giveBack`, or undefined: the thread pool has to do it. */
  take(): Ring | undefined {
    if (!this.hasRoom) return undefined;
    this.#taken++;
    return this.#ring();
  }

  giveBack(): void {
    this.#taken--;
  }
}

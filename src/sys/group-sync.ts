// Group commit: whoever asks while one sync runs shares the next one.
//
//   1. A sync covers the writes that settled before it was asked for. One that runs already may have missed
//      them, so it counts only when nothing was written since it began.
//   2. After a failed sync all later ones fail with the same error. The kernel drops the dirty pages that it
//      could not write and says so once; a second fdatasync would say "done" for data that is lost.
//   3. When nothing was written since the last sync there is nothing to do.

import type { Completion } from "../base/completion.ts";

export class GroupSync {
  readonly #run: () => Promise<void>;
  /** True at first: another process, or an earlier life of this one, may have left unsynced data. */
  #dirty = true;
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;
  #failure: { readonly error: unknown } | undefined;
  #count = 0;

  /** @param run does one sync of the file */
  constructor(run: () => Promise<void>) {
    this.#run = run;
  }

  /** How often the host was asked. */
  get count(): number {
    return this.#count;
  }

  /** A write settled, whether it failed or not. */
  changed(): void {
    this.#dirty = true;
  }

  sync(): Completion {
    if (this.#failure !== undefined) throw this.#failure.error;
    if (this.#running === undefined) return this.#dirty ? this.#start() : undefined;
    if (!this.#dirty) return this.#running;
    this.#next ??= this.#after(this.#running);
    return this.#next;
  }

  #start(): Promise<void> {
    this.#dirty = false;
    this.#count++;
    this.#running = this.#run().then(
      () => {
        this.#running = undefined;
      },
      (error: unknown) => {
        this.#running = undefined;
        this.#failure = { error };
        throw error;
      },
    );
    return this.#running;
  }

  async #after(running: Promise<void>): Promise<void> {
    try {
      await running;
    } finally {
      this.#next = undefined;
    }
    // One may have begun between these two lines: after our request, so it covers us.
    if (this.#running !== undefined) await this.#running;
    else if (this.#dirty) await this.#start();
  }
}

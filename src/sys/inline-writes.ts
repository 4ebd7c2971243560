// Whether a write may be made on the event loop. A buffered write is a copy into the page cache, cheaper than
// the way to the thread pool and back, until the host throttles whoever makes pages dirty: then it sleeps.
// One slow write sends the file to the pool for a while.

import type { Clock } from "../base/clock.ts";

/** A write that took longer has slept: 1 MiB takes 0.1 ms, a turn of another process 4 ms. */
const SLOW_MS = 5;
/** How long the pool is used then; doubled while it happens again, up to the maximum. */
const PAUSE_MS = 50;
const PAUSE_MS_MAX = 1_600;

export class InlineWrites {
  readonly #clock: Clock;
  readonly #watching: boolean;
  #pausedUntilMs = Number.NEGATIVE_INFINITY;
  #pauseMs = PAUSE_MS;

  /** @param watching false where writes never sleep: all may be inline then */
  constructor(clock: Clock, watching = true) {
    this.#clock = clock;
    this.#watching = watching;
  }

  /** The present time where a write may be inline now, otherwise -1. Give it to `finished`. */
  begin(): number {
    if (!this.#watching) return 0;
    const nowMs = this.#clock.nowMs();
    return nowMs < this.#pausedUntilMs ? -1 : nowMs;
  }

  finished(beganMs: number): void {
    if (!this.#watching) return;
    const nowMs = this.#clock.nowMs();
    if (nowMs - beganMs < SLOW_MS) {
      if (this.#pauseMs > PAUSE_MS && nowMs > this.#pausedUntilMs + PAUSE_MS_MAX) this.#pauseMs = PAUSE_MS;
      return;
    }
    this.#pausedUntilMs = nowMs + this.#pauseMs;
    this.#pauseMs = Math.min(this.#pauseMs * 2, PAUSE_MS_MAX);
  }
}

// Whether a write may be made on the event loop. A buffered write is a copy into the page cache, cheaper than
// the way to the thread pool and back, until the host throttles whoever makes pages dirty: then it sleeps.
// One slow write keeps the file's writes off the loop for a while.

import type { Clock } from "../base/clock.ts";

/** A write that took longer has slept: 1 MiB takes 0.1 ms, a turn of another process 4 ms. */
const SLOW_MS = 5;
/** How long they stay off it then; doubled while it happens again, up to the maximum. */
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

  /** @returns what the write took, in ms */
  finished(beganMs: number): number {
    if (!this.#watching) return 0;
    const nowMs = this.#clock.nowMs();
    const tookMs = nowMs - beganMs;
    if (tookMs < SLOW_MS) {
      if (this.#pauseMs > PAUSE_MS && nowMs > this.#pausedUntilMs + PAUSE_MS_MAX) this.#pauseMs = PAUSE_MS;
      return tookMs;
    }
    this.#pausedUntilMs = nowMs + this.#pauseMs;
    this.#pauseMs = Math.min(this.#pauseMs * 2, PAUSE_MS_MAX);
    return tookMs;
  }
}

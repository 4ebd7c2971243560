// A ceiling on bytes per second. Time is cut into slices; a slice that was overdrawn is paid back before the
// next one begins, so that large chunks keep to the rate on average.
//
//   1. The limit is a matter of the clock alone: being woken early, by a drain or a pause, wins nothing.
//   2. A change of speed counts at once, for who waits too.

import type { Clock } from "../base/clock.ts";

const SLICE_MS = 100;
/** What a timer of the host can hold; one that is set to more fires at once. */
const TIMER_MS_MAX = 2 ** 31 - 1;

export class RateLimit {
  readonly #clock: Clock;
  #bytesPerSecond = 0;
  /** Until when what was used has been paid for. */
  #paidUntilMs = 0;
  #wake: (() => void) | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** 0 means no limit. */
  get bytesPerSecond(): number {
    return this.#bytesPerSecond;
  }

  setSpeed(bytesPerSecond: number): void {
    const nowMs = this.#clock.nowMs();
    const aheadMs = Math.max(0, this.#paidUntilMs - nowMs);
    // What was drawn ahead stays due, at the new rate: setting a speed again and again wins nothing.
    const ratio = bytesPerSecond === 0 ? 0 : this.#bytesPerSecond / bytesPerSecond;
    this.#paidUntilMs = nowMs + aheadMs * ratio;
    this.#bytesPerSecond = bytesPerSecond;
    this.wake();
  }

  /** Milliseconds until the next bytes may be used. */
  delayMs(): number {
    if (this.#bytesPerSecond === 0) return 0;
    const ahead = this.#paidUntilMs - this.#clock.nowMs();
    return ahead < SLICE_MS ? 0 : ahead;
  }

  /** Counts bytes that are being used now. */
  use(bytes: number): void {
    if (this.#bytesPerSecond === 0) return;
    const from = Math.max(this.#paidUntilMs, this.#clock.nowMs());
    this.#paidUntilMs = from + (bytes * 1000) / this.#bytesPerSecond;
  }

  /** Ends a wait early, for somebody to look at the state; the limit stays what it is. */
  wake(): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
  }

  /** Done when `delayMs` has passed, or earlier, at a `wake`; the caller asks `delayMs` again. */
  wait(delayMs: number): Promise<void> {
    return new Promise((resolve) => {
      const cancel = this.#clock.after(Math.min(delayMs, TIMER_MS_MAX), resolve);
      this.#wake = () => {
        cancel();
        resolve();
      };
    });
  }
}

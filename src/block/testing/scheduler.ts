// A deterministic scheduler: whatever asks it may have to wait until a seeded choice lets it go on, so that
// one seed is one interleaving. What waits goes on one at a time, and only when everything that the last one
// set off has come to rest. Nothing of the tests that use it may wait for the real world: then a seed would
// no longer say everything.

import type { Clock } from "../../base/clock.ts";
import { ManualClock } from "../../base/clock.ts";
import type { Prng } from "../../base/prng.ts";

interface Waiter {
  readonly what: string;
  readonly go: () => void;
}

export interface SchedulerOptions {
  /** How likely a step has to wait; the others go on synchronously. */
  readonly waitChance?: number;
  /** Looked at after every step; throws when an invariant is broken. */
  readonly afterStep?: () => void;
}

export class Scheduler {
  readonly clock: Clock;
  readonly #prng: Prng;
  readonly #waitChance: number;
  readonly #afterStep: () => void;
  readonly #time = new ManualClock();
  #waiting: Waiter[] = [];
  #last: Waiter[] = [];
  #timers = 0;
  steps = 0;

  constructor(prng: Prng, options: SchedulerOptions = {}) {
    this.#prng = prng;
    this.#waitChance = options.waitChance ?? 0.5;
    this.#afterStep = options.afterStep ?? (() => {});
    this.clock = {
      nowMs: () => this.#time.nowMs(),
      after: (delayMs, callback) => this.#after(delayMs, callback),
      turn: () => this.always("turn"),
    };
  }

  /** Done at once, or when the scheduler picks it. */
  step(what: string): Promise<void> | undefined {
    return this.#prng.chance(this.#waitChance) ? this.always(what) : undefined;
  }

  /** Done when the scheduler picks it. */
  always(what: string): Promise<void> {
    return new Promise((go) => this.#waiting.push({ what, go }));
  }

  /** Done when nothing else can go on: the longest delay there is. */
  last(what: string): Promise<void> {
    return new Promise((go) => this.#last.push({ what, go }));
  }

  /** What waits now, in order of arrival. */
  get waiting(): string[] {
    return this.#waiting.map((waiter) => waiter.what);
  }

  /**
   * Lets things go on, one after the other, until `goal` has settled. @throws when nothing can go on any more
   */
  async until<T>(goal: Promise<T>): Promise<T> {
    let settled = false;
    goal.then(
      () => {
        settled = true;
      },
      () => {
        settled = true;
      },
    );
    for (;;) {
      await rest();
      if (settled) return goal;
      if (!this.#go()) throw new Error(`deadlock after ${this.steps} steps: nothing waits for the scheduler`);
    }
  }

  /** Lets up to `steps` things go on. */
  async run(steps: number): Promise<void> {
    await rest();
    for (let i = 0; i < steps && this.#go(); i++) await rest();
  }

  #go(): boolean {
    this.#afterStep();
    this.steps++;
    if (this.#timers > 0 && (this.#waiting.length === 0 || this.#prng.chance(0.05))) {
      this.#time.advance(this.#prng.pick([1, 10, 100, 1000, 100_000]));
      return true;
    }
    if (this.#waiting.length === 0) {
      const last = this.#last.shift();
      last?.go();
      return last !== undefined;
    }
    const at = this.#prng.below(this.#waiting.length);
    const [chosen] = this.#waiting.splice(at, 1);
    chosen!.go();
    return true;
  }

  #after(delayMs: number, callback: () => void): () => void {
    this.#timers++;
    let over = false;
    const end = () => {
      if (!over) this.#timers--;
      over = true;
    };
    const cancel = this.#time.after(delayMs, () => {
      end();
      callback();
    });
    return () => {
      end();
      cancel();
    };
  }
}

/** Done when every promise that can settle by itself has settled. */
export function rest(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

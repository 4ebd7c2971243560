// A request that may have to wait in several places, written once: as steps. While every step finishes at
// once, the whole request does, without a promise.

import type { Completion } from "../../base/completion.ts";

export interface Steps {
  readonly finished: boolean;
  /** Does the next piece of work. An error ends the request. */
  step(): Completion;
  /** Called exactly once, at the end, whichever it is: gives back locks and buffers. Throws nothing. */
  end(failed: boolean): void;
}

/** Runs the steps to the end. The object may be used for another request as soon as this is done. */
export function runSteps(steps: Steps): Completion {
  try {
    while (!steps.finished) {
      const waiting = steps.step();
      if (waiting !== undefined) return runStepsLater(steps, waiting);
    }
  } catch (error) {
    steps.end(true);
    throw error;
  }
  steps.end(false);
}

async function runStepsLater(steps: Steps, first: Promise<void>): Promise<void> {
  try {
    await first;
    while (!steps.finished) {
      const waiting = steps.step();
      if (waiting !== undefined) await waiting;
    }
  } catch (error) {
    steps.end(true);
    throw error;
  }
  steps.end(false);
}

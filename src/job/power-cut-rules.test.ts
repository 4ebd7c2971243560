// The simulator notices each rule of order that is broken: it would notice a program that breaks it.

import { describe, expect, it } from "vitest";
import { RULES, type Rule } from "./testing/power-cut/broken-rules.ts";
import { shrink } from "./testing/power-cut/shrink.ts";
import { type Case, LossError, simulate } from "./testing/power-cut/simulate.ts";

/** From seed 1 on, too, each rule is noticed within so many states; most within a hundred. */
const STATES_MAX = 10_000;

/** States that were looked at before one was wrong, and the run that had it. */
async function firstLoss(broken: Rule): Promise<{ states: number; failing: Case; error: LossError }> {
  let states = 0;
  for (let seed = broken.seed ?? 1; states < STATES_MAX; seed++) {
    const failing = { seed, broken };
    try {
      states += (await simulate(failing)).states;
    } catch (error) {
      if (!(error instanceof LossError)) throw error;
      return { states: states + error.states, failing, error };
    }
  }
  throw new Error(`not noticed within ${states} states`);
}

describe("a program that breaks a rule is noticed", () => {
  it.each(RULES)("$name: $instead", { timeout: 600_000 }, async (rule) => {
    const { states } = await firstLoss(rule);
    expect(states).toBeLessThan(STATES_MAX);
  });

  it("and the work that shows it is made small", { timeout: 600_000 }, async () => {
    const rule = RULES.find(({ file }) => file?.held === "refcounts")!;
    const { failing } = await firstLoss(rule);
    const small = await shrink(failing);
    expect(small.operations.length).toBeLessThanOrEqual(3);
    const { seed, schedule, only } = small;
    await expect(simulate({ seed, schedule, only, broken: rule, cuts: 60 })).rejects.toBeInstanceOf(
      LossError,
    );
  });
});

import { describe, expect, it } from "vitest";
import { runCrashes } from "./testing/crash-run.ts";

// More runs, and the repetition of one: scripts/property-test.
const RUNS = Number(process.env["STRATA_PROPERTY_RUNS"] ?? 30);
const FIRST_SEED = Number(process.env["STRATA_PROPERTY_SEED"] ?? 1);

/** Seeds that showed a bug once. */
const REMEMBERED: number[] = [];

async function run(seed: number) {
  try {
    return await runCrashes({ seed });
  } catch (error) {
    const words = error instanceof Error ? error.message : String(error);
    throw new Error(
      `seed ${seed}: ${words}; repeat: scripts/property-test --only crash --runs 1 --seed ${seed}`,
      {
        cause: error,
      },
    );
  }
}

describe("a merge that is killed, or loses its power, at any moment", () => {
  it("leaves the old chain or the new one, complete, with all that was flushed", {
    timeout: 24 * 3600 * 1000,
  }, async () => {
    const seen = { old: 0, new: 0 };
    for (let i = 0; i < RUNS; i++) {
      const report = await run(FIRST_SEED + i);
      seen.old += report.old;
      seen.new += report.new;
    }
    // Both kinds came up, so that the states around the commit point were really looked at.
    if (RUNS > 10) expect(Math.min(seen.old, seen.new)).toBeGreaterThan(RUNS);
  });

  it.each(REMEMBERED)("seed %d, which showed a bug once", async (seed) => {
    await run(seed);
  });
});

import { describe, it } from "vitest";
import { runCrashes } from "./testing/crash-run.ts";

// The driver alone, with what its users do not do; whole chains: src/job/power-cut.test.ts. More: set
// STRATA_CRASH_RUNS. A seed that failed belongs into a test of its own.
const RUNS = Number(process.env["STRATA_CRASH_RUNS"] ?? 6);
const FIRST_SEED = Number(process.env["STRATA_CRASH_SEED"] ?? 1);

describe("a crash at any host call, any part of what was not synced lost", () => {
  it("leaves an image without errors, and all that was flushed", { timeout: 600_000 }, async () => {
    for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) await runCrashes({ seed });
  });
});

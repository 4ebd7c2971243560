import { describe, expect, it } from "vitest";
import { runModel } from "./testing/model-run.ts";

// More: scripts may set STRATA_MODEL_RUNS. A seed that failed belongs into the list below.
const RUNS = Number(process.env["STRATA_MODEL_RUNS"] ?? 60);
const FIRST_SEED = Number(process.env["STRATA_MODEL_SEED"] ?? 1);

describe("random requests against an array", () => {
  it("leave the content that the array has, and a clean image", { timeout: 600_000 }, async () => {
    for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) {
      const { stopped } = await runModel({ seed });
      expect(stopped, `seed ${seed}`).toBe(false);
    }
  });

  it("fail without harm where the host fails", { timeout: 600_000 }, async () => {
    for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) await runModel({ seed, faults: true });
  });
});

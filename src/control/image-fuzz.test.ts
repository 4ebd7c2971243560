import { expect, it } from "vitest";
import { ImageFuzz } from "./testing/image-fuzz.ts";

/** `STRATA_FUZZ_SEED=42 STRATA_FUZZ_CASES=1` runs one again; `scripts/fuzz image` runs them for hours. */
const FIRST = Number(process.env["STRATA_FUZZ_SEED"] ?? 1);
const CASES = Number(process.env["STRATA_FUZZ_CASES"] ?? 100);

it(`survives ${CASES} hostile chains, from seed ${FIRST}`, async () => {
  const fuzz = new ImageFuzz();
  for (let seed = FIRST; seed < FIRST + CASES; seed++) {
    await fuzz.run(seed).catch((error: unknown) => {
      throw new Error(`seed ${seed}: ${String(error)}`, { cause: error });
    });
  }
  // Otherwise it would only test the header.
  if (CASES >= 100) expect(fuzz.opened).toBeGreaterThan(CASES / 2);
});

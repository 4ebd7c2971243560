// Hostile clients of the monitors. `STRATA_FUZZ_SEED=42 STRATA_FUZZ_CASES=1` runs one again; `scripts/fuzz
// qmp` and so on run them for hours.

import { afterAll, expect, it } from "vitest";
import { BlockError } from "../base/errors.ts";
import { Prng } from "../base/prng.ts";
import { COMMANDS } from "./commands/all.ts";
import { parseJson } from "./json-stream.ts";
import type { JsonObject } from "./json-value.ts";
import { visit } from "./qapi/visitor.ts";
import { JsonFuzz } from "./testing/json-fuzz.ts";
import { HmpFuzz, QmpFuzz } from "./testing/monitor-fuzz.ts";
import { sampleOf, sampleText, withOneOdd } from "./testing/schema-values.ts";

const FIRST = Number(process.env["STRATA_FUZZ_SEED"] ?? 1);
const CASES = process.env["STRATA_FUZZ_CASES"];

const qmp = new QmpFuzz();
const hmp = new HmpFuzz();
afterAll(() => {
  qmp.close();
  hmp.close();
});

it.each([
  ["QMP", qmp, 20],
  ["HMP", hmp, 15],
  ["JSON", new JsonFuzz(), 1500],
])("%s survives hostile clients", async (_, fuzz, usual) => {
  const cases = Number(CASES ?? usual);
  for (let seed = FIRST; seed < FIRST + cases; seed++) {
    await fuzz.run(seed).catch((error: unknown) => {
      throw new Error(`seed ${seed}: ${String(error)}`, { cause: error });
    });
  }
});

it("every argument of every command, given as something else, is taken or refused in words", () => {
  const words = ["x"];
  let refused = 0;
  for (const command of COMMANDS) {
    for (let seed = 1; seed <= 3; seed++) {
      const sample = sampleOf(command.data, new Prng(seed), words);
      for (const odd of withOneOdd(sample)) {
        try {
          visit(command.data, parseJson(sampleText(odd)) as JsonObject);
        } catch (error) {
          if (!(error instanceof BlockError))
            throw new Error(`${command.name} ${sampleText(odd)}`, { cause: error });
          expect(error.message).toMatch(/^(Invalid parameter type|Parameter|JSON)/);
          refused++;
        }
      }
    }
  }
  expect(refused).toBeGreaterThan(3000);
});

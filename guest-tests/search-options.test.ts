// Scripts that search for failure for hours: what they cannot understand is refused. A search that tried
// nothing would say that nothing failed.

import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";
import { runAnyhow } from "./harness/tool.ts";

it.each([
  ["fuzz", "--cases 0", "--cases takes a whole number above 0, not '0'"],
  ["fuzz", "--hours 0", "--hours takes a number above 0, not '0'"],
  ["fuzz", "--seed 1.5 json", "--seed takes a whole number, not '1.5'"],
  ["fuzz", "--case seven json", "a case is called like 7 or 7+12+31, not 'seven'"],
  ["fuzz", "jason", "there is no 'jason'"],
  ["simulate", "--states 0", "--states takes a whole number above 0, not '0'"],
  ["simulate", "--hours 0.0", "--hours takes a number above 0, not '0.0'"],
  ["simulate", "--seed 1..5", "--seed takes a whole number, not '1..5'"],
  ["simulate", "--only 3,,4", "--only takes numbers with commas, not '3,,4'"],
  ["simulate", "--cases 3", "there is no option '--cases'"],
  ["property-test", "--runs 0", "takes a whole number above 0 for --runs, not '0'"],
  ["property-test", "--seed", "takes a whole number for --seed, not ''"],
])("scripts/%s %s is refused", async (script, words, why) => {
  const path = fileURLToPath(new URL(`../scripts/${script}`, import.meta.url));
  const outcome = await runAnyhow(path, ...words.split(" "));
  expect(outcome).toMatchObject({ code: 2, stdout: "" });
  expect(outcome.stderr).toContain(`scripts/${script}: ${why}`);
});

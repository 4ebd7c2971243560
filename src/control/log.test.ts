import { expect, it } from "vitest";
import { sentenceOf } from "./log.ts";

it.each([
  [40, "strata: warning: so it is\n"],
  [50, "strata: error: so it is\n"],
  [20, "strata: debug: so it is\n"],
])("level %d is told to a person as %j", (level, sentence) => {
  expect(sentenceOf(JSON.stringify({ level, time: 1, pid: 2, msg: "so it is" }))).toBe(sentence);
});

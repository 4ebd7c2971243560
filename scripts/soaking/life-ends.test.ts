import { expect, it } from "vitest";
import { lifeEnds } from "./life-ends.ts";

it("half of a run is one life, the rest is short ones, none of them of no length", () => {
  expect(lifeEnds(3600)).toEqual([1800, 2025, 2250, 2475, 2700, 2925, 3150, 3375, 3600]);
  expect(lifeEnds(24)).toEqual([12, 16, 20, 24]);
  expect(lifeEnds(10)).toEqual([5, 7.5, 10]);
});

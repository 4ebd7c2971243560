import { describe, expect, it } from "vitest";
import { median, spread } from "./statistics.ts";

describe("median", () => {
  it("is the middle value, whatever the order", () => {
    expect(median([9, 1, 5])).toBe(5);
  });

  it("is the mean of the two middle ones of an even count", () => {
    expect(median([4, 1, 2, 100])).toBe(3);
  });

  it("is NaN of nothing", () => {
    expect(median([])).toBeNaN();
  });
});

describe("spread", () => {
  it("is nothing where all runs agree", () => {
    expect(spread([7, 7, 7])).toBe(0);
  });

  it("is half of the distance between the quartiles, as a part of the median", () => {
    expect(spread([80, 90, 100, 110, 120])).toBeCloseTo(0.1);
  });

  it("does not see one run that went astray", () => {
    expect(spread([100, 100, 100, 100, 1])).toBe(0);
  });

  it("is NaN of two runs", () => {
    expect(spread([100, 100])).toBeNaN();
  });
});

import { describe, expect, it } from "vitest";
import { Prng } from "./prng.ts";

describe("Prng", () => {
  it("repeats itself for a seed, and differs for another", () => {
    const draw = (seed: number) => {
      const prng = new Prng(seed);
      return Array.from({ length: 5 }, () => prng.below(1000));
    };
    expect(draw(7)).toEqual(draw(7));
    expect(draw(7)).not.toEqual(draw(8));
  });

  it("keeps to its bounds, and reaches them", () => {
    const prng = new Prng(1);
    const seen = new Set(Array.from({ length: 1000 }, () => prng.between(3, 6)));
    expect([...seen].sort()).toEqual([3, 4, 5, 6]);
    expect(new Set(Array.from({ length: 1000 }, () => prng.below(3)))).toEqual(new Set([0, 1, 2]));
    expect(["a", "b"]).toContain(prng.pick(["a", "b"]));
    expect(prng.chance(0)).toBe(false);
    expect(prng.chance(1)).toBe(true);
  });

  it("fills a buffer with bytes of every value", () => {
    expect(new Set(new Prng(2).fill(Buffer.alloc(4096))).size).toBe(256);
  });
});

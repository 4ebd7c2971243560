import { describe, expect, test } from "vitest";
import { Prng } from "../../base/prng.ts";
import { getRefcount, maxRefcount, setRefcount } from "./refcount-width.ts";

describe.each([0, 1, 2, 3, 4, 5, 6])("order %d", (order) => {
  test("every entry keeps its value when its neighbours are set (seed 9)", () => {
    const random = new Prng(9);
    const block = Buffer.alloc(512);
    const count = (512 * 8) / 2 ** order;
    const model = new Array<number>(count).fill(0);
    for (let round = 0; round < 4000; round++) {
      const index = random.below(count);
      const value = random.chance(0.3)
        ? maxRefcount(order)
        : random.below(Math.min(maxRefcount(order) + 1, 2 ** 40));
      setRefcount(block, order, index, value);
      model[index] = value;
    }
    expect(Array.from({ length: count }, (_, index) => getRefcount(block, order, index))).toEqual(model);
  });
});

test("packed entries begin in the lowest bits", () => {
  const block = Buffer.from([0b0000_0001, 0b0000_0110, 0b1010_0000]);
  expect(getRefcount(block, 0, 0)).toBe(1);
  expect(getRefcount(block, 1, 4)).toBe(2);
  expect(getRefcount(block, 1, 5)).toBe(1);
  expect(getRefcount(block, 2, 5)).toBe(10);
});

import { describe, expect, it } from "vitest";
import { FOREIGN, fillSectors, sectorBuffer, stampAt, wordsOf } from "./sector-content.ts";

describe("the content of a sector", () => {
  it("says which write it is from, at its place only", () => {
    const words = wordsOf(sectorBuffer(3));
    fillSectors(words, 70, 9);
    expect([0, 1, 2].map((index) => stampAt(words, index, 70 + index))).toEqual([9, 9, 9]);
    expect(stampAt(words, 0, 71)).toBe(FOREIGN);
  });

  it("is of no write with any word changed", () => {
    for (const word of [0, 1, 64, 127]) {
      const words = wordsOf(sectorBuffer(1));
      fillSectors(words, 5, 3);
      words[word] = words[word]! ^ 1;
      expect(stampAt(words, 0, 5)).toBe(FOREIGN);
    }
  });

  it("is zeros for a write of zeros", () => {
    const buffer = sectorBuffer(2);
    fillSectors(wordsOf(buffer), 1, 8);
    fillSectors(wordsOf(buffer), 1, 0);
    expect(buffer.every((byte) => byte === 0)).toBe(true);
    expect(stampAt(wordsOf(buffer), 1, 2)).toBe(0);
  });
});

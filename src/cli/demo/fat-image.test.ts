import { expect, it } from "vitest";
import { MiB } from "../../base/units.ts";
import { makeFatImage, readFatImage } from "./fat-image.ts";

it("gives back the files that it was made of", () => {
  const files = new Map([
    ["EMPTY", Buffer.alloc(0)],
    ["ONE.TXT", Buffer.from("one")],
    ["EXACT.BIN", Buffer.alloc(2048, 7)],
    ["LONG.BIN", Buffer.alloc(100_001, "strata")],
  ]);
  const image = makeFatImage(32 * MiB, files);
  expect(image.length).toBe(32 * MiB);
  expect(readFatImage(image)).toEqual(files);
});

it("has the fields of the specification where they belong", () => {
  const image = makeFatImage(32 * MiB, new Map([["A.TXT", Buffer.from("a")]]));
  expect(image.readUInt16LE(510)).toBe(0xaa55);
  expect(image.readUInt16LE(11)).toBe(512);
  expect(image.readUInt32LE(32)).toBe((32 * MiB) / 512);
  const fatSectors = image.readUInt16LE(22);
  const fat = image.subarray(512, 512 + fatSectors * 512);
  // Media descriptor, end mark, and one file of one cluster; both copies alike.
  expect([fat.readUInt16LE(0), fat.readUInt16LE(2), fat.readUInt16LE(4), fat.readUInt16LE(6)]).toEqual([
    0xfff8, 0xffff, 0xffff, 0,
  ]);
  expect(fat.equals(image.subarray(512 + fatSectors * 512, 512 + 2 * fatSectors * 512))).toBe(true);
});

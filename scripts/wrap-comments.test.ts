import { expect, it } from "vitest";
import { wrapComments } from "./wrap-comments.ts";

const words = (count: number) => Array.from({ length: count }, (_, at) => `word${at % 10}`).join(" ");

it("moves words behind the limit to the next line of the paragraph", () => {
  const wrapped = wrapComments(`// ${words(20)}\n// next\ncode();`);
  expect(wrapped.split("\n")).toEqual([`// ${words(18)}`, "// word8 word9 next", "code();"]);
});

it("goes on down the paragraph as far as it must", () => {
  const lines = wrapComments(`// ${words(20)}\n// ${words(20)}`).split("\n");
  expect(lines.every((line) => line.length <= 110)).toBe(true);
  expect(lines.map((line) => line.slice(3)).join(" ")).toBe(`${words(20)} ${words(20)}`);
});

it("keeps list items, tags and code apart", () => {
  const text = `//   1. ${words(20)}\n//   2. other`;
  expect(wrapComments(text).split("\n")).toEqual([
    `//   1. ${words(17)}`,
    "//      word7 word8 word9",
    "//   2. other",
  ]);
  const code = `const text = "${"x".repeat(120)}";`;
  expect(wrapComments(code)).toBe(code);
});

it("makes a block of a one-line doc comment", () => {
  expect(wrapComments(`  /** ${words(20)} */`).split("\n")).toEqual([
    "  /**",
    `   * ${words(17)}`,
    "   * word7 word8 word9",
    "   */",
  ]);
});

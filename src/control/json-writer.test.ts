import { expect, it } from "vitest";
import { JsonFloat } from "./json-value.ts";
import { writeJson } from "./json-writer.ts";

it("writes as the reference does", () => {
  expect(writeJson({ return: {}, id: 1, list: [1, "a", null], gone: undefined })).toBe(
    '{"return": {}, "id": 1, "list": [1, "a", null]}',
  );
});

it("writes over several lines", () => {
  expect(writeJson({ return: {}, list: [], deep: { a: [1, 2] } }, true)).toBe(
    `{
    "return": {
    },
    "list": [
    ],
    "deep": {
        "a": [
            1,
            2
        ]
    }
}`,
  );
});

it("writes ASCII only", () => {
  expect(writeJson('é😀\n\0\u007f"\\')).toBe(String.raw`"\u00E9\uD83D\uDE00\n\u0000\u007F\"\\"`);
});

it("writes 64-bit integers and fractions exactly", () => {
  expect(writeJson([18446744073709551615n, new JsonFloat("1e400")])).toBe("[18446744073709551615, 1e400]");
});

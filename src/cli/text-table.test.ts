import { expect, it } from "vitest";
import { textTable } from "./text-table.ts";

it("aligns columns and ends lines without blanks", () => {
  const table = textTable(
    [
      { heading: "node", align: "left" },
      { heading: "size", align: "right" },
      { heading: "file", align: "left" },
    ],
    [
      ["A", "128 MiB", "a.img"],
      ["node-B", "4 KiB", ""],
    ],
  );
  expect(table).toBe(
    ["node       size  file", "A       128 MiB  a.img", "node-B    4 KiB"]
      .map((line) => line + "\n")
      .join(""),
  );
});

import { expect, it } from "vitest";
import { ObjectTable } from "./objects.ts";

it("takes a secret that has its data, and refuses one in the reference's words", () => {
  const objects = new ObjectTable();
  const add = (more: object) => objects.add({ "qom-type": "secret", id: "s", ...more } as never);
  expect(() => add({})).toThrow("Either 'file' or 'data' must be provided");
  expect(() => add({ data: "x", file: "y" })).toThrow("'file' and 'data' are mutually exclusive");
  expect(() => add({ file: "/nonexistent" })).toThrow(
    "Unable to read /nonexistent: Failed to open file “/nonexistent”: No such file or directory",
  );
  add({ data: "x" });
  expect(() => add({ data: "x" })).toThrow("attempt to add duplicate property 's'");
});

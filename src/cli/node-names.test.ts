import { expect, it } from "vitest";
import { isNodeName } from "../block/graph.ts";
import { nodeNameOf, nodeNamesFor } from "./node-names.ts";

it("names nodes after their files", () => {
  expect(["/images/A.qcow2", "file-B.img", "node-D"].map(nodeNameOf)).toEqual(["A", "file-B", "node-D"]);
});

it("makes a valid name of any file name", () => {
  for (const file of ["7.img", "ä.img", "", "...", "-x", "a b.qcow2", "x".repeat(200), "_.raw"]) {
    expect(isNodeName(nodeNameOf(file)), file).toBe(true);
  }
});

it("gives no name twice", () => {
  const long = "x".repeat(40);
  const names = nodeNamesFor(["a/disk.img", "b/disk.img", "disk-2.raw", long, long]);
  expect(names.slice(0, 3)).toEqual(["disk", "disk-2", "disk-2-2"]);
  expect(new Set(names).size).toBe(5);
  expect(names.every(isNodeName)).toBe(true);
});

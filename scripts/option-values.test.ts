import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { folder, positive, resultFile } from "./option-values.ts";

let directory = "";

beforeEach(() => {
  directory = mkdtempSync(path.join(tmpdir(), "strata-options-"));
});

afterEach(() => rmSync(directory, { recursive: true }));

describe("a file for results", () => {
  it("is refused where it could not be written when the work is done", () => {
    expect(() => resultFile(path.join(directory, "missing", "soak.svg"))).toThrow(
      "Its folder does not exist.",
    );
    expect(() => resultFile(directory)).toThrow("It cannot be written (EISDIR).");
    expect(() => resultFile("")).toThrow("Its folder does not exist.");
  });

  it("is neither made nor emptied by the look at it", () => {
    const old = path.join(directory, "old.json");
    writeFileSync(old, "results");
    expect(resultFile(old)).toBe(old);
    const fresh = path.join(directory, "fresh.json");
    expect(resultFile(fresh)).toBe(fresh);
    expect(readdirSync(directory)).toEqual(["old.json"]);
    expect(readFileSync(old, "utf8")).toBe("results");
  });
});

it("a folder must exist, and is told as an absolute path", () => {
  expect(folder(directory)).toBe(directory);
  expect(folder(path.relative(process.cwd(), directory))).toBe(directory);
  for (const text of ["", path.join(directory, "missing"), "/etc/passwd"]) {
    expect(() => folder(text)).toThrow("It must be a folder that exists.");
  }
});

it("a length of time is above 0", () => {
  expect(positive("0.5")).toBe(0.5);
  for (const text of ["0", "-1", "", "x", "NaN"]) expect(() => positive(text)).toThrow("above 0");
});

import { expect, it } from "vitest";
import { assert } from "../base/assert.ts";
import { BlockError } from "../base/errors.ts";
import { ExitRequest, failureOf, usageError, withLockHelp } from "./failure.ts";

it("makes one line and the right exit code of each kind of error", () => {
  expect(failureOf(new BlockError("ENOENT", "no such image:\n  'x.qcow2'"))).toEqual({
    line: "strata: no such image: 'x.qcow2'",
    exitCode: 1,
  });
  expect(failureOf(usageError("which disk?"))).toEqual({ line: "strata: which disk?", exitCode: 2 });
  expect(failureOf(Object.assign(new Error("EACCES: denied"), { code: "EACCES" }))).toEqual({
    line: "strata: EACCES: denied",
    exitCode: 1,
  });
  expect(failureOf(new ExitRequest(3))).toEqual({ line: "", exitCode: 3 });
});

it("shows where our own mistakes are", () => {
  let thrown: unknown;
  try {
    assert(false, "locks are balanced");
  } catch (error) {
    thrown = error;
  }
  const failure = failureOf(thrown);
  expect(failure.exitCode).toBe(1);
  expect(failure.line).toContain("this is a bug of strata");
  expect(failure.line).toContain("failure.test.ts");
});

it("makes sentences of the lines of QEMU's words, and says what to do", () => {
  const locked = new BlockError("IMAGE_LOCKED", 'Failed to get "write" lock\nIs another process using [x]?');
  expect(failureOf(withLockHelp(locked, "End it first")).line).toBe(
    'strata: Failed to get "write" lock. Is another process using [x]? End it first',
  );
  expect(failureOf(new BlockError("EINVAL", "Error: no such thing")).line).toBe("strata: no such thing");
  const other = new BlockError("ENOENT", "no such image");
  expect(withLockHelp(other, "End it first")).toBe(other);
});

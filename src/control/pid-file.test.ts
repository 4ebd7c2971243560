import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { systemCalls } from "../sys/choose-calls.ts";
import { writePidFile } from "./pid-file.ts";

let path: string;

beforeEach(() => {
  path = join(mkdtempSync(join(tmpdir(), "pid-")), "pid");
});

afterEach(() => rmSync(join(path, ".."), { recursive: true, force: true }));

it("replaces what a killed daemon left, and goes with the daemon", () => {
  writeFileSync(path, "1234567890\n");
  const file = writePidFile(path, 42);
  expect(readFileSync(path, "latin1")).toBe("42\n");
  file.remove();
  expect(existsSync(path)).toBe(false);
});

it.skipIf(!systemCalls().complete)("leaves the file to the daemon that holds it", () => {
  const first = writePidFile(path, 42);
  expect(() => writePidFile(path, 43)).toThrow(
    `Cannot lock pid file: Resource temporarily unavailable ('${path}' belongs to process 42, which is running)`,
  );
  expect(readFileSync(path, "latin1")).toBe("42\n");
  first.remove();
  writePidFile(path, 43).remove();
});

it("says where it could not be made", () => {
  expect(() => writePidFile("/nonexistent/pid", 1)).toThrow(
    "cannot create PID file: Could not create '/nonexistent/pid': No such file or directory",
  );
});

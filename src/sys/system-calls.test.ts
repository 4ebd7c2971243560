import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import type { Logger } from "../base/logger.ts";
import { LIBC, OUTSIDE_OF_100 } from "./testing/places.ts";

function recordingLogger(): { logger: Logger; warnings: string[] } {
  const warnings: string[] = [];
  const ignore = () => {};
  return {
    logger: { debug: ignore, info: ignore, warn: (text) => warnings.push(text), error: ignore },
    warnings,
  };
}

beforeEach(() => void vi.resetModules());
afterEach(() => void vi.unstubAllEnvs());

it("goes without foreign calls where it is told to, and says so once", async () => {
  vi.stubEnv("STRATA_NO_FFI", "1");
  const { systemCalls } = await import("./choose-calls.ts");
  const { logger, warnings } = recordingLogger();
  expect(systemCalls(logger).complete).toBe(false);
  expect(systemCalls(logger).complete).toBe(false);
  expect(warnings).toEqual([expect.stringContaining("images are not locked")]);
});

it.skipIf(LIBC === undefined)("uses the C library otherwise, without a word", async () => {
  vi.stubEnv("STRATA_NO_FFI", "");
  const { systemCalls } = await import("./choose-calls.ts");
  const { logger, warnings } = recordingLogger();
  expect(systemCalls(logger).complete).toBe(true);
  expect(warnings).toEqual([]);
});

it.skipIf(LIBC === undefined)("never hands the kernel memory outside of a buffer", () => {
  const memory = Buffer.alloc(100);
  const fd = 0;
  for (const [at, bytes] of OUTSIDE_OF_100) {
    expect(() => LIBC!.pread(fd, 0, bytes, memory, at)).toThrow(/outside of its buffer/);
    expect(() => LIBC!.pwrite(fd, 0, bytes, memory, at)).toThrow(/outside of its buffer/);
  }
});

it("imports koffi in one file only", () => {
  const root = fileURLToPath(new URL("../..", import.meta.url));
  const found = spawnSync("grep", ["-rlE", '(from |import\\(|\\)\\()"koffi"', `${root}src`, `${root}nbd`], {
    encoding: "utf8",
  });
  const files = found.stdout.split("\n").filter((name) => name.endsWith(".ts") && !name.endsWith(".test.ts"));
  expect(files.map((name) => name.slice(root.length))).toEqual(["src/sys/load-koffi.ts"]);
});

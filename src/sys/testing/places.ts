// Where tests of host files put them, which foreign programs they find, and ranges that no call may take.

import { spawnSync } from "node:child_process";
import { accessSync, constants, mkdtempSync, rmSync, statfsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadLibc } from "../libc.ts";
import { portableCalls } from "../portable-calls.ts";
import type { SystemCalls } from "../system-calls.ts";

/** A new directory; `remove` takes it away with all that it holds. */
export function temporaryDirectory(parent = tmpdir()): { path: string; remove(): void } {
  const path = mkdtempSync(join(parent, "strata-test-"));
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) };
}

/** A directory on a memory file system, if this host has one at the usual place. */
export const MEMORY_PLACE: string | undefined = (() => {
  try {
    accessSync("/dev/shm", constants.W_OK);
    return statfsSync("/dev/shm").type === 0x0102_1994 ? "/dev/shm" : undefined;
  } catch {
    return undefined;
  }
})();

/** The C library's calls, or undefined where koffi cannot be loaded or is not wanted. */
export const LIBC: SystemCalls | undefined = (() => {
  const calls = loadLibc();
  return typeof calls === "string" ? undefined : calls;
})();

/** Both ways to reach the host, for `describe.each`. */
export const BOTH_CALLS: readonly (readonly [string, SystemCalls])[] = [
  ...(LIBC === undefined ? [] : [["the C library", LIBC] as const]),
  ["node:fs alone", portableCalls],
];

/** Disk and memory file systems, for `describe.each`. */
export const PLACES: readonly (readonly [string, string])[] = [
  ["the temporary directory", tmpdir()],
  ...(MEMORY_PLACE === undefined ? [] : [["a memory file system", MEMORY_PLACE] as const]),
];

/** Ranges that are not inside of a buffer of 100 bytes: where they begin, and their bytes. */
export const OUTSIDE_OF_100: readonly (readonly [at: number, bytes: number])[] = [
  [-1, 10],
  [0, 101],
  [91, 10],
  [Number.NaN, 1],
  [0, Number.NaN],
  [0, -1],
];

export function hasProgram(name: string): boolean {
  return spawnSync(name, ["--version"], { stdio: "ignore" }).error === undefined;
}

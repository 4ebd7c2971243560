// A directory for one test, gone when the test is over. In memory where the host has such a place, because a
// merge test writes hundreds of megabytes; `onDisk` asks for a real file system instead.

import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { onTestFinished } from "vitest";

const MEMORY = "/dev/shm";

/** A new empty directory; STRATA_KEEP=1 keeps it for a look afterwards. */
export function scratchDirectory(where: "inMemory" | "onDisk" = "inMemory"): string {
  const parent = where === "inMemory" && existsSync(MEMORY) ? MEMORY : tmpdir();
  const directory = mkdtempSync(path.join(parent, "strata-"));
  if (process.env["STRATA_KEEP"] !== "1") {
    onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  }
  return directory;
}

// The file that holds the process id while the daemon runs.

import fs from "node:fs";
import { fsError } from "../sys/host-error.ts";

export interface PidFile {
  /** Removes the file. */
  remove(): void;
}

/** @throws BlockError in QEMU's words */
export function writePidFile(path: string, pid: number): PidFile {
  try {
    fs.writeFileSync(path, `${pid}\n`, { mode: 0o600 });
  } catch (error) {
    throw fsError(error, `cannot create PID file: Could not create '${path}'`);
  }
  return { remove: () => fs.rmSync(path, { force: true }) };
}

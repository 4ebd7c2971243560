// What `strata attach` leaves for `strata detach`: which daemon serves the device and has to end with it.
//
//   /run/strata/nbdN.attached   JSON, one per device for which attach started a daemon
//
//   1. Devices belong to the machine, not to a session: the place does not depend on XDG_RUNTIME_DIR, so that
//      a unit of systemd detaches what a person attached.
//   2. A reboot takes devices, daemons and records away together.

import { readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { type ControlEnvironment, controlDirectory, makeControlDirectory } from "../control-directory.ts";

export interface AttachRecord {
  /** The image. */
  readonly disk: string;
  readonly uri: string;
  /** The daemon that attach started. */
  readonly pid: number;
  readonly qmp: string;
  readonly log: string;
}

function recordFile(environment: ControlEnvironment, index: number): string {
  const directory = controlDirectory({ ...environment, runtimeDirectory: undefined });
  makeControlDirectory(directory, environment.uid);
  return path.join(directory, `nbd${index}.attached`);
}

export function readRecord(environment: ControlEnvironment, index: number): AttachRecord | undefined {
  try {
    return JSON.parse(readFileSync(recordFile(environment, index), "utf8")) as AttachRecord;
  } catch (error) {
    // One that a crash cut short says nothing either.
    if (error instanceof SyntaxError || (error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

export function writeRecord(environment: ControlEnvironment, index: number, record: AttachRecord): void {
  writeFileSync(recordFile(environment, index), `${JSON.stringify(record, undefined, 2)}\n`, { mode: 0o600 });
}

export function removeRecord(environment: ControlEnvironment, index: number): void {
  rmSync(recordFile(environment, index), { force: true });
}

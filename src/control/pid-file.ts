// The file that holds the process id while the daemon runs.
//
//   1. It is locked as the reference locks it, so that a second daemon of the same name is refused before it
//      takes the first one's file away.
//   2. Nothing in it changes before the lock is held.

import fs from "node:fs";
import { BlockError } from "../base/errors.ts";
import { systemCalls } from "../sys/choose-calls.ts";
import { fsError } from "../sys/host-error.ts";

/** The byte that QEMU's programs lock. */
const LOCKED_BYTE = 0;

export interface PidFile {
  /** Removes the file. */
  remove(): void;
}

/** @throws BlockError in QEMU's words; EBUSY while another daemon holds the file */
export function writePidFile(path: string, pid: number): PidFile {
  let fd: number | undefined;
  try {
    fd = fs.openSync(path, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o600);
    lock(fd, path);
    fs.ftruncateSync(fd);
    fs.writeSync(fd, `${pid}\n`);
  } catch (error) {
    if (fd !== undefined) fs.closeSync(fd);
    if (error instanceof BlockError) throw error;
    throw fsError(error, `cannot create PID file: Could not create '${path}'`);
  }
  const held = fd;
  return {
    remove: () => {
      fs.rmSync(path, { force: true });
      fs.closeSync(held);
    },
  };
}

function lock(fd: number, path: string): void {
  const calls = systemCalls();
  if (!calls.complete) return;
  if (calls.lockByte(fd, LOCKED_BYTE, true) >= 0 && calls.testByte(fd, LOCKED_BYTE) !== 1) return;
  const holder = fs.readFileSync(path, "latin1").trim();
  throw new BlockError(
    "EBUSY",
    "cannot create PID file: Cannot lock pid file: Resource temporarily unavailable " +
      `('${path}' belongs to process ${holder}, which is running)`,
  );
}

// Opens again what a descriptor stands for, with other rights. Never by its path: another file may stand
// there now.

import { closeSync, constants, fstatSync, openSync, type Stats } from "node:fs";
import { BlockError } from "../base/errors.ts";
import { Descriptor } from "./descriptor.ts";
import { fsError } from "./host-error.ts";

/** @throws BlockError when the host refuses, or when the file at `path` is another one by now */
export function reopen(fd: number, path: string, writable: boolean): Descriptor {
  const flags = writable ? constants.O_RDWR : constants.O_RDONLY;
  const what = `Could not reopen '${path}' ${writable ? "for writing" : "read-only"}`;
  try {
    return new Descriptor(openSync(`/proc/self/fd/${fd}`, flags));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw fsError(error, what);
  }
  // No /proc here: by path after all, but only if it is the same file.
  let again: number;
  try {
    again = openSync(path, flags);
  } catch (error) {
    throw fsError(error, what);
  }
  if (isSame(fstatSync(fd), fstatSync(again))) return new Descriptor(again);
  closeSync(again);
  throw new BlockError("EIO", `${what}: another file stands at this path now`);
}

function isSame(one: Stats, other: Stats): boolean {
  return one.dev === other.dev && one.ino === other.ino;
}

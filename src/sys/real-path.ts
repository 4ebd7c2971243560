import { realpathSync, statSync } from "node:fs";
import path from "node:path";
import { BlockError } from "../base/errors.ts";
import { fsError } from "./host-error.ts";

/**
 * The absolute name of a file without symbolic links. Of a file that is not there: that of the folder which
 * is, with the rest behind it. @throws BlockError what the host says
 */
export function realPath(name: string): string {
  if (name.includes("\0")) throw new BlockError("EINVAL", "a file name holds a NUL character");
  const absolute = path.resolve(name);
  try {
    return realpathSync.native(absolute);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const parent = path.dirname(absolute);
    if ((code !== "ENOENT" && code !== "ENOTDIR") || parent === absolute) {
      throw fsError(error, `Could not open '${name}'`);
    }
    return path.join(realPath(parent), path.basename(absolute));
  }
}

/** As `realPath`, of a folder that must be there. @throws BlockError what the host says */
export function realDirectory(name: string): string {
  const what = `Could not open '${name}'`;
  try {
    if (statSync(name).isDirectory()) return realpathSync.native(path.resolve(name));
  } catch (error) {
    throw fsError(error, what);
  }
  throw new BlockError("EINVAL", `${what}: Not a directory`);
}

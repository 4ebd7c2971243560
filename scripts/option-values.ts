// Values of options that several scripts take, looked at before the work begins: what an hour measured must
// not be lost because there is no folder for it.

import fs from "node:fs";
import path from "node:path";
import { InvalidArgumentError } from "commander";

/** A number above 0. */
export function positive(text: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new InvalidArgumentError("It must be a number above 0.");
  return value;
}

/** A folder that exists, as an absolute path: what a daemon tells of its files is compared with that. */
export function folder(text: string): string {
  if (!fs.statSync(text, { throwIfNoEntry: false })?.isDirectory()) {
    throw new InvalidArgumentError("It must be a folder that exists.");
  }
  return path.resolve(text);
}

/** A file that can be written; what stands in it stays for now, and where none is, none is left behind. */
export function resultFile(text: string): string {
  const isNew = !fs.existsSync(text);
  try {
    fs.closeSync(fs.openSync(text, "a"));
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    throw new InvalidArgumentError(
      code === "ENOENT" ? "Its folder does not exist." : `It cannot be written (${code}).`,
    );
  }
  if (isNew) fs.rmSync(text);
  return text;
}

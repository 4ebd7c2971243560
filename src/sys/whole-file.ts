// Small files read and written as a whole: pid files, keys, reports.

import {
  closeSync,
  fstatSync,
  fsyncSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { BlockError } from "../base/errors.ts";
import { KiB } from "../base/units.ts";
import { fsError } from "./host-error.ts";

/** Most files are shorter; the length that a file tells may be wrong, or that of a pipe. */
const PIECE_BYTES = 64 * KiB;

/**
 * @param what begins the error: what was tried
 * @throws BlockError; EOVERFLOW when the file has more than `bytesMax` bytes
 */
export function readWholeFile(path: string, bytesMax: number, what = `Could not read '${path}'`): Buffer {
  try {
    const fd = openSync(path, "r");
    try {
      if (fstatSync(fd).isDirectory()) throw new BlockError("EINVAL", `${what}: Is a directory`);
      const pieces: Buffer[] = [];
      const piece = Buffer.alloc(PIECE_BYTES);
      let bytes = 0;
      for (;;) {
        const count = readSync(fd, piece, 0, Math.min(PIECE_BYTES, bytesMax + 1 - bytes), null);
        if (count === 0) return Buffer.concat(pieces, bytes);
        bytes += count;
        if (bytes > bytesMax) throw new BlockError("EOVERFLOW", `${what}: more than ${bytesMax} bytes`);
        pieces.push(Buffer.from(piece.subarray(0, count)));
      }
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    throw fsError(error, what);
  }
}

/** Replaces the file: afterwards, even after a power cut, it is the old one or the new one as a whole. */
export function writeWholeFile(path: string, content: string | Buffer): void {
  const aside = join(dirname(path), `.${basename(path)}.${process.pid}.new`);
  try {
    writeFileSync(aside, content, { flag: "wx" });
    const fd = openSync(aside, "r+");
    try {
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(aside, path);
  } catch (error) {
    rmSync(aside, { force: true });
    throw fsError(error, `Could not write '${path}'`);
  }
  syncDirectoryOf(path);
}

/** Makes the name of a new or renamed file durable. File systems that cannot sync a directory need not. */
export function syncDirectoryOf(path: string): void {
  const directory = dirname(path);
  try {
    const fd = openSync(directory, "r");
    try {
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    // No right to read the directory, or one that knows no sync: the file itself is what counts.
    if (code === "EINVAL" || code === "EACCES" || code === "EPERM" || code === "ENOTSUP") return;
    throw fsError(error, `Could not make the name '${path}' durable`);
  }
}

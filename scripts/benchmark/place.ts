// Where the images are: what kind of file system that is, and its page cache.

import { execFileSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";

/** The `f_type` of statfs(2), from linux/magic.h. */
const TYPES: Readonly<Record<number, string>> = {
  16914836: "tmpfs",
  2240043254: "ramfs",
  61267: "ext4",
  1481003842: "xfs",
  2435016766: "btrfs",
  2035054128: "overlayfs",
  26985: "nfs",
  4076150800: "f2fs",
  801189825: "zfs",
};

export function fileSystemType(folder: string): string {
  const { type } = fs.statfsSync(folder);
  return TYPES[type] ?? `file system 0x${type.toString(16)}`;
}

/** Whether pages can be dropped and read again. */
export function isOnDisk(fileSystem: string): boolean {
  return fileSystem !== "tmpfs" && fileSystem !== "ramfs";
}

/** Whether a job can share extents between files; then the next run must not find them shared. */
export function canShareExtents(fileSystem: string): boolean {
  return fileSystem === "xfs" || fileSystem === "btrfs";
}

/** Waits until the files are on the disk, so that no run pays for the writes of the one before. */
export function settle(files: readonly string[]): void {
  for (const file of files) {
    const descriptor = fs.openSync(file, "r");
    fs.fsyncSync(descriptor);
    fs.closeSync(descriptor);
  }
}

/** Takes settled files out of the page cache, and only them: others work on this machine too. */
export function dropFromPageCache(files: readonly string[]): void {
  for (const file of files) {
    execFileSync("dd", [`if=${file}`, "iflag=nocache", "count=0", "status=none"]);
  }
}

/** The default place: memory, where only the software counts. */
export function memoryFolder(): string {
  return fs.existsSync("/dev/shm") ? "/dev/shm" : os.tmpdir();
}

/** Runs `action` on a new folder that is gone afterwards, when the user interrupts it too. */
export async function withFolder<T>(parent: string, action: (folder: string) => Promise<T>): Promise<T> {
  const folder = fs.mkdtempSync(path.join(parent, "strata-bench-"));
  const remove = () => fs.rmSync(folder, { recursive: true, force: true });
  const interrupted = () => process.exit(130);
  process.on("exit", remove);
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, interrupted);
  try {
    return await action(folder);
  } finally {
    for (const signal of ["SIGINT", "SIGTERM"]) process.off(signal, interrupted);
    process.off("exit", remove);
    remove();
  }
}

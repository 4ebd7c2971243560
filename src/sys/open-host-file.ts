// Opens or creates a file of the host as a HostFile.

import {
  closeSync,
  constants,
  fstatSync,
  openSync,
  readFileSync,
  type Stats,
  statfsSync,
  statSync,
} from "node:fs";
import { type Clock, systemClock } from "../base/clock.ts";
import { BlockError } from "../base/errors.ts";
import { type Logger, silentLogger } from "../base/logger.ts";
import { systemCalls } from "./choose-calls.ts";
import { hostRing } from "./choose-ring.ts";
import { Descriptor } from "./descriptor.ts";
import { DiskFile } from "./disk-file.ts";
import { cachesWrites, FileSystemType, isInMemory } from "./file-systems.ts";
import { Errno, fsError, hostError } from "./host-error.ts";
import { SeekFrom, type SystemCalls } from "./system-calls.ts";

export interface OpenOptions {
  /** Opened for reading and writing; otherwise for reading only. */
  readonly writable: boolean;
  /** Makes the file where there is none; "exclusive": there must be none. What it holds stays. */
  readonly create?: boolean | "exclusive";
  /** Whether `lock` takes locks where the host has them. Default true. */
  readonly locking?: boolean;
  /** Never io_uring: reads that wait for the disk take the thread pool, as with QEMU's aio=threads. */
  readonly threads?: boolean;
  readonly logger?: Logger;
  readonly clock?: Clock;
  /** For tests. */
  readonly calls?: SystemCalls;
}

/**
 * Opens a regular file or a block device. No lock is taken: call `lock`.
 * @throws BlockError with the host's errno in QEMU's words; EINVAL for a directory, FIFO, socket or character
 * device
 */
export function openHostFile(path: string, options: OpenOptions): DiskFile {
  const { logger = silentLogger } = options;
  const calls = options.calls ?? systemCalls(logger);
  const what = `Could not open '${path}'`;
  let fd: number;
  try {
    // Before the open: that of a FIFO waits for its other end, for ever.
    if (options.create !== "exclusive") refuseOthers(path, statOrNothing(path), options.writable);
    fd = openSync(path, openFlags(options), 0o644);
  } catch (error) {
    throw fsError(error, what);
  }
  try {
    const stats = fstatSync(fd);
    refuseOthers(path, stats, options.writable);
    const blockDevice = stats.isBlockDevice();
    const type = blockDevice ? FileSystemType.UNKNOWN : fileSystemType(fd, path);
    return new DiskFile({
      path,
      descriptor: new Descriptor(fd),
      writable: options.writable,
      size: blockDevice ? deviceSize(fd, stats, calls) : stats.size,
      blockDevice,
      inMemory: isInMemory(type),
      cachesWrites: blockDevice || cachesWrites(type),
      fileSystem: { type, device: stats.dev },
      calls,
      ring: options.threads === true ? () => undefined : () => hostRing(logger),
      clock: options.clock ?? systemClock,
      locking: (options.locking ?? true) && calls.complete,
    });
  } catch (error) {
    closeSync(fd);
    throw fsError(error, what);
  }
}

function openFlags(options: OpenOptions): number {
  let flags = options.writable ? constants.O_RDWR : constants.O_RDONLY;
  if (options.create !== undefined && options.create !== false) flags |= constants.O_CREAT;
  if (options.create === "exclusive") flags |= constants.O_EXCL;
  return flags;
}

function statOrNothing(path: string): Stats | undefined {
  return statSync(path, { throwIfNoEntry: false });
}

function refuseOthers(path: string, stats: Stats | undefined, writable: boolean): void {
  if (stats === undefined || stats.isFile() || stats.isBlockDevice()) return;
  if (stats.isDirectory() && writable) throw hostError(Errno.EISDIR, `Could not open '${path}'`);
  throw new BlockError("EINVAL", `'file' driver requires '${path}' to be a regular file`);
}

function fileSystemType(fd: number, path: string): number {
  for (const name of [`/proc/self/fd/${fd}`, path]) {
    try {
      return statfsSync(name).type >>> 0;
    } catch {
      // The next name; in the end it counts as some disk, which is right everywhere and slower.
    }
  }
  return FileSystemType.UNKNOWN;
}

function deviceSize(fd: number, stats: Stats, calls: SystemCalls): number {
  const end = calls.seek(fd, 0, SeekFrom.END);
  if (end >= 0) return end;
  // linux/kdev_t.h as stat(2) shows it: major in bits 8 to 19, minor in 0 to 7 and 20 to 31.
  const major = (stats.rdev >>> 8) & 0xfff;
  const minor = (stats.rdev & 0xff) | ((stats.rdev >>> 12) & 0xfff00);
  return Number(readFileSync(`/sys/dev/block/${major}:${minor}/size`, "utf8")) * 512;
}

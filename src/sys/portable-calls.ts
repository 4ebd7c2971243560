// The system calls by node:fs alone: what it lacks answers -EOPNOTSUPP, and the callers go on without.

import { readSync, writeSync, writevSync } from "node:fs";
import { Errno, errnoOf } from "./host-error.ts";
import type { SystemCalls } from "./system-calls.ts";

const UNSUPPORTED = -Errno.EOPNOTSUPP;

/** Buffers for one writev(2); the kernel takes no more. */
const PARTS_MAX = 1024;

function repeated(call: () => number): number {
  for (;;) {
    try {
      return call();
    } catch (error) {
      const errno = errnoOf(error);
      if (errno !== Errno.EINTR) return -errno;
    }
  }
}

export const portableCalls: SystemCalls = {
  complete: false,
  pread: (fd, offset, bytes, buffer, at) => repeated(() => readSync(fd, buffer, at, bytes, offset)),
  preadNoWait: () => UNSUPPORTED,
  pwrite: (fd, offset, bytes, buffer, at) => repeated(() => writeSync(fd, buffer, at, bytes, offset)),
  pwritev: (fd, offset, parts, skip) =>
    repeated(() => writevSync(fd, remainingParts(parts, skip).slice(0, PARTS_MAX), offset)),
  fallocate: () => UNSUPPORTED,
  seek: () => UNSUPPORTED,
  lockByte: () => UNSUPPORTED,
  testByte: () => UNSUPPORTED,
};

/** What is left of `parts` after their first `skip` bytes. */
export function remainingParts(parts: readonly Buffer[], skip: number): Buffer[] {
  const rest: Buffer[] = [];
  let before = skip;
  for (const part of parts) {
    if (before < part.length) rest.push(before === 0 ? part : part.subarray(before));
    before = Math.max(0, before - part.length);
  }
  return rest;
}

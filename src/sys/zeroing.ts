// Zeros and holes by fallocate(2), as QEMU's file driver tries them:
//
//   wanted        tries, each only while the file system has not refused it
//   a hole        grow by truncate what lies past the end | PUNCH_HOLE | and then as below
//   zeros kept    ZERO_RANGE | PUNCH_HOLE, then ALLOCATE | past the end: ALLOCATE
//
//   1. What the host lacks is answered as -EOPNOTSUPP and remembered per file; other errors are handed up as
//      they are.
//   2. A large range is done in pieces with turns of the loop between them, so that nobody waits for all of
//      it.

import { ftruncateSync } from "node:fs";
import type { Clock } from "../base/clock.ts";
import type { Completion } from "../base/completion.ts";
import { KiB, MiB } from "../base/units.ts";
import type { Descriptor } from "./descriptor.ts";
import { Errno, errnoOf, isUnsupported } from "./host-error.ts";
import type { HostFile } from "./host-file.ts";
import { FallocateMode, type SystemCalls } from "./system-calls.ts";

/** The first piece of a large range; the next ones are larger or smaller by the time that it took. */
const PIECE_FIRST = 16 * MiB;
const PIECE_MAX = 64 * 1024 * MiB;
const PIECE_MIN = 1 * MiB;
const PIECE_SHORT_MS = 0.5;
const PIECE_LONG_MS = 2;

const { ALLOCATE, KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE } = FallocateMode;
const UNSUPPORTED = -Errno.EOPNOTSUPP;

export class Zeroing {
  readonly #calls: SystemCalls;
  readonly #clock: Clock;
  readonly #blockDevice: boolean;
  /** Modes that this file system has refused. */
  readonly #refused = new Set<number>();

  constructor(calls: SystemCalls, clock: Clock, blockDevice: boolean) {
    this.#calls = calls;
    this.#clock = clock;
    this.#blockDevice = blockDevice;
  }

  /** Makes the range of a file of `size` bytes read as zeros: 0, or -errno. May grow the file. */
  zero(fd: number, offset: number, bytes: number, size: number, unmap: boolean): number {
    if (unmap) {
      const result = this.#makeHole(fd, offset, bytes, size);
      if (!isUnsupported(-result)) return result;
    }
    const zeroed = this.#fallocate(fd, ZERO_RANGE, offset, bytes);
    if (!isUnsupported(-zeroed)) return zeroed;
    if (!this.#blockDevice && !this.#refused.has(ALLOCATE)) {
      const punched = offset < size ? this.punch(fd, offset, Math.min(bytes, size - offset)) : 0;
      if (!isUnsupported(-punched))
        return punched < 0 ? punched : this.#fallocate(fd, ALLOCATE, offset, bytes);
    }
    return UNSUPPORTED;
  }

  /** Gives the space of the range, which lies within the file, back to the host: 0, or -errno. */
  punch(fd: number, offset: number, bytes: number): number {
    return this.#fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, bytes);
  }

  /** Runs `work` over the range, at once when it is not large. Keeps `descriptor` open meanwhile. */
  inPieces(
    offset: number,
    bytes: number,
    descriptor: Descriptor,
    work: (offset: number, bytes: number) => Completion,
  ): Completion {
    if (bytes <= PIECE_FIRST) return bytes > 0 ? work(offset, bytes) : undefined;
    descriptor.enter();
    return this.#inTurns(offset, bytes, work).finally(() => descriptor.leave());
  }

  async #inTurns(offset: number, bytes: number, work: (offset: number, bytes: number) => Completion) {
    let piece = PIECE_FIRST;
    for (let done = 0; done < bytes; ) {
      const length = Math.min(piece, bytes - done);
      const beganMs = this.#clock.nowMs();
      await work(offset + done, length);
      const tookMs = this.#clock.nowMs() - beganMs;
      if (tookMs < PIECE_SHORT_MS) piece = Math.min(piece * 2, PIECE_MAX);
      else if (tookMs > PIECE_LONG_MS) piece = Math.max(piece / 2, PIECE_MIN);
      done += length;
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  #makeHole(fd: number, offset: number, bytes: number, size: number): number {
    const inside = Math.min(bytes, size - offset);
    if (inside > 0) {
      const punched = this.punch(fd, offset, inside);
      if (punched < 0) return punched;
    }
    if (offset + bytes <= size) return 0;
    try {
      ftruncateSync(fd, offset + bytes);
      return 0;
    } catch (error) {
      return -errnoOf(error);
    }
  }

  #fallocate(fd: number, mode: number, offset: number, bytes: number): number {
    if (this.#refused.has(mode)) return UNSUPPORTED;
    const result = this.#calls.fallocate(fd, mode, offset, bytes);
    if (result === 0) return 0;
    if (isUnsupported(-result)) {
      this.#refused.add(mode);
      return UNSUPPORTED;
    }
    // Block devices say so about a range that is not aligned to them, some file systems about a mode they
    // lack.
    return result === -Errno.EINVAL ? UNSUPPORTED : result;
  }
}

const ZEROS = Buffer.alloc(1 * MiB);
/** More goes in larger writes, which take the pool on disk file systems. */
const SMALL = 64 * KiB;

/** Writes zeros as data. */
export function zeroData(file: HostFile, offset: number, bytes: number): Completion {
  if (bytes <= SMALL) return file.write(offset, bytes, ZEROS, 0);
  return zeroDataInTurns(file, offset, bytes);
}

async function zeroDataInTurns(file: HostFile, offset: number, bytes: number): Promise<void> {
  for (let done = 0; done < bytes; done += ZEROS.length) {
    await file.write(offset + done, Math.min(ZEROS.length, bytes - done), ZEROS, 0);
    if (done % (8 * MiB) === 0) await new Promise((resolve) => setImmediate(resolve));
  }
}

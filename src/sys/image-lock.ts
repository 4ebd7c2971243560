// Image locking as QEMU's file driver does it: OFD locks on single bytes of the image, all of them shared
// ones, so that they tell who does what without anybody blocking.
//
//   byte 100 + bit   held: "I do this"
//   byte 200 + bit   held: "nobody else may do this"
//   bits             0 consistent read | 1 write | 2 write unchanged | 3 resize
//
//   1. Take first, then look whether another holds the opposite byte. Two that come at once may both be
//      refused, but never both be let in.
//   2. A refusal gives back what was taken for it.
//   3. Another open file of this same process counts as another.
//
// Who holds what (QEMU 10): writer of qcow2 100 101 103 201 203; reader of qcow2 100 201 203; ours alike for
// raw too.

import { BlockError } from "../base/errors.ts";
import { Errno, hostError } from "./host-error.ts";
import type { LockRequest } from "./host-file.ts";
import type { SystemCalls } from "./system-calls.ts";

export const PERMISSION_BASE = 100;
export const SHARED_BASE = 200;

const BIT_NAMES = ["consistent read", "write", "write unchanged", "resize"] as const;
const CONSISTENT_READ = 1;
const WRITE = 2;
const RESIZE = 8;

/** Two sets of bits: what is done, and what others may not do. */
interface Held {
  readonly does: number;
  readonly forbids: number;
}

const NOTHING: Held = { does: 0, forbids: 0 };

function bitsFor(request: LockRequest | undefined): Held {
  if (request === undefined) return NOTHING;
  return {
    does: CONSISTENT_READ | (request.write ? WRITE | RESIZE : 0),
    forbids: request.shareWrite ? 0 : WRITE | RESIZE,
  };
}

export class ImageLock {
  readonly #calls: SystemCalls;
  readonly #path: string;
  #held = NOTHING;
  #request: LockRequest | undefined;

  constructor(calls: SystemCalls, path: string) {
    this.#calls = calls;
    this.#path = path;
  }

  /** What is held now, or undefined. */
  get request(): LockRequest | undefined {
    return this.#request;
  }

  /**
   * Changes what is held on `fd` to `request`; undefined gives everything back.
   * @throws BlockError IMAGE_LOCKED in QEMU's words when another process is in the way; then nothing has
   * changed.
   */
  change(fd: number, request: LockRequest | undefined): void {
    const before = this.#held;
    const wanted = bitsFor(request);
    try {
      this.#take(fd, wanted.does & ~before.does, wanted.forbids & ~before.forbids);
      this.#refuseConflicts(fd, wanted);
    } catch (error) {
      this.#give(fd, wanted.does & ~before.does, wanted.forbids & ~before.forbids);
      throw error;
    }
    this.#give(fd, before.does & ~wanted.does, before.forbids & ~wanted.forbids);
    this.#held = wanted;
    this.#request = request;
  }

  /** Takes what is held on `fd` too, another descriptor of the file. No check: the other still holds it. */
  copyTo(fd: number): void {
    this.#take(fd, this.#held.does, this.#held.forbids);
  }

  #take(fd: number, does: number, forbids: number): void {
    eachByte(does, forbids, (byte) => {
      const result = this.#calls.lockByte(fd, byte, true);
      // Somebody else's exclusive lock: not QEMU's doing, but the same message helps.
      if (result === -Errno.EAGAIN || result === -Errno.EACCES) throw this.#conflict(byte);
      if (result < 0) throw hostError(-result, `Failed to lock byte ${byte} of '${this.#path}'`);
    });
  }

  #give(fd: number, does: number, forbids: number): void {
    // A lock that cannot be given back goes with the descriptor.
    eachByte(does, forbids, (byte) => void this.#calls.lockByte(fd, byte, false));
  }

  #refuseConflicts(fd: number, wanted: Held): void {
    // What we do against what others forbid, then what we forbid against what others do.
    eachByte(wanted.forbids, wanted.does, (byte) => {
      const result = this.#calls.testByte(fd, byte);
      if (result < 0) throw hostError(-result, `Failed to lock byte ${byte} of '${this.#path}'`);
      if (result === 1) throw this.#conflict(byte);
    });
  }

  #conflict(byte: number): BlockError {
    const forbidden = byte >= SHARED_BASE;
    const name = BIT_NAMES[(byte - (forbidden ? SHARED_BASE : PERMISSION_BASE)) as 0 | 1 | 2 | 3];
    return new BlockError(
      "IMAGE_LOCKED",
      `Failed to get ${forbidden ? "" : "shared "}"${name}" lock\n` +
        `Is another process using the image [${this.#path}]?`,
    );
  }
}

/** Calls back for PERMISSION_BASE + bit of `low` and for SHARED_BASE + bit of `high`. */
function eachByte(low: number, high: number, call: (byte: number) => void): void {
  for (let bit = 0; bit < BIT_NAMES.length; bit++) if ((high & (1 << bit)) !== 0) call(SHARED_BASE + bit);
  for (let bit = 0; bit < BIT_NAMES.length; bit++) if ((low & (1 << bit)) !== 0) call(PERMISSION_BASE + bit);
}

// How a read of a host file reaches the kernel:
//
//   page cache (preadv2, RWF_NOWAIT) --EAGAIN, or the rest--> io_uring (ring-operations.ts)
//                                    no ring, or the file's share of it is taken (ring-share.ts): thread
//                                    pool, a few at a time (cold-reads.ts)
//   large: thread pool
//   memory file system: plain pread; host that cannot tell what is cached: pool (remembered per file)
//
//   1. A read that settles has filled its range, or has failed with the host's errno. Past the end of the
//      file there are zeros.
//   2. The descriptor that it began on stays open so long.
//   3. Of what the ring says EIO alone is taken for the file's error: all others may be about the ring, so
//      the pool is asked.

import type { Completion } from "../base/completion.ts";
import type { BlockError } from "../base/errors.ts";
import { KiB } from "../base/units.ts";
import { type ColdRead, ColdReads } from "./cold-reads.ts";
import type { Descriptor } from "./descriptor.ts";
import { Errno, hostError, isUnsupported } from "./host-error.ts";
import type { Ring, RingShare } from "./ring-share.ts";
import type { SystemCalls } from "./system-calls.ts";

// What is larger takes the pool: see INLINE_WRITE_MAX in disk-writes.ts.
const INLINE_READ_MAX = 256 * KiB;

const InlineReads = { NEVER: 0, CACHED: 1, ALWAYS: 2 } as const;
type InlineReads = (typeof InlineReads)[keyof typeof InlineReads];

export interface ReadCounters {
  inlineReads: number;
  /** Reads that waited in the kernel, by io_uring. */
  ringReads: number;
  pooledReads: number;
}

export interface DiskReadsParts {
  readonly path: string;
  readonly descriptor: Descriptor;
  /** On tmpfs or ramfs. */
  readonly inMemory: boolean;
  readonly calls: SystemCalls;
  readonly ring: RingShare;
  readonly counters: ReadCounters;
}

export class DiskReads {
  /** For reads that begin from now on. */
  descriptor: Descriptor;
  readonly #path: string;
  readonly #calls: SystemCalls;
  readonly #ring: RingShare;
  readonly #counters: ReadCounters;
  readonly #coldReads: ColdReads;
  #inlineReads: InlineReads;

  constructor(parts: DiskReadsParts) {
    this.descriptor = parts.descriptor;
    this.#path = parts.path;
    this.#calls = parts.calls;
    this.#ring = parts.ring;
    this.#counters = parts.counters;
    this.#inlineReads = parts.inMemory ? InlineReads.ALWAYS : InlineReads.CACHED;
    this.#coldReads = new ColdReads({
      look: (read) => this.#lookAgain(read),
      wait: (read) => this.#readPooled(read.offset, read.done, read.bytes, read.buffer, read.at),
    });
  }

  /** @throws BlockError */
  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    let done = 0;
    if (this.#inlineReads !== InlineReads.NEVER && bytes <= INLINE_READ_MAX) {
      done = this.#readInline(offset, bytes, buffer, at);
      if (done === bytes) {
        this.#counters.inlineReads++;
        return;
      }
      if (this.#inlineReads === InlineReads.CACHED) return this.#readCold(offset, done, bytes, buffer, at);
    }
    return this.#readPooled(offset, done, bytes, buffer, at);
  }

  async #readCold(offset: number, from: number, bytes: number, buffer: Buffer, at: number): Promise<void> {
    const { descriptor } = this;
    descriptor.enter();
    try {
      const ring = this.#ring.take();
      if (ring === undefined) return await this.#coldReads.read(offset, from, bytes, buffer, at);
      const done = await this.#readByRing(ring, descriptor.fd, offset, from, bytes, buffer, at);
      if (done < bytes) await this.#readPooled(offset, done, bytes, buffer, at);
    } finally {
      descriptor.leave();
    }
  }

  /** How many of the bytes are there when the ring can do no more. */
  async #readByRing(
    ring: Ring,
    fd: number,
    offset: number,
    from: number,
    bytes: number,
    buffer: Buffer,
    at: number,
  ): Promise<number> {
    this.#counters.ringReads++;
    let done = from;
    try {
      while (done < bytes) {
        const result = await ring.read(fd, offset + done, bytes - done, buffer, at + done);
        if (result > 0) done += result;
        else if (result === 0) return zeroRest(done, bytes, buffer, at);
        else if (result === -Errno.EIO) throw this.#error(Errno.EIO, offset, bytes);
        else break;
      }
    } finally {
      this.#ring.giveBack();
    }
    return done;
  }

  /** The rest of a read that has waited for the host's disk; false: not all of it is there yet. */
  #lookAgain(read: ColdRead): boolean {
    const { offset, done, bytes, buffer, at } = read;
    read.done += this.#readInline(offset + done, bytes - done, buffer, at + done);
    if (read.done < bytes) return false;
    this.#counters.inlineReads++;
    return true;
  }

  /** Reads what can be had at once; less than `bytes` when the rest has to come from the disk. */
  #readInline(offset: number, bytes: number, buffer: Buffer, at: number): number {
    const { fd } = this.descriptor;
    let done = 0;
    while (done < bytes) {
      const result =
        this.#inlineReads === InlineReads.ALWAYS
          ? this.#calls.pread(fd, offset + done, bytes - done, buffer, at + done)
          : this.#calls.preadNoWait(fd, offset + done, bytes - done, buffer, at + done);
      if (result > 0) done += result;
      else if (result === 0) return zeroRest(done, bytes, buffer, at);
      else if (result === -Errno.EAGAIN) return done;
      else if (isUnsupported(-result) || result === -Errno.EINVAL) {
        // The pool's read tells it if this was about something else.
        this.#inlineReads = InlineReads.NEVER;
        return done;
      } else throw this.#error(-result, offset, bytes);
    }
    return done;
  }

  async #readPooled(offset: number, from: number, bytes: number, buffer: Buffer, at: number): Promise<void> {
    this.#counters.pooledReads++;
    const { descriptor } = this;
    descriptor.enter();
    try {
      let done = from;
      while (done < bytes) {
        const result = await descriptor.read(offset + done, bytes - done, buffer, at + done);
        if (result > 0) done += result;
        else if (result === 0) done = zeroRest(done, bytes, buffer, at);
        else if (result !== -Errno.EINTR) throw this.#error(-result, offset, bytes);
      }
    } finally {
      descriptor.leave();
    }
  }

  #error(errno: number, offset: number, bytes: number): BlockError {
    return hostError(errno, `Could not read ${bytes} bytes at offset ${offset} of '${this.#path}'`);
  }
}

function zeroRest(done: number, bytes: number, buffer: Buffer, at: number): number {
  buffer.fill(0, at + done, at + bytes);
  return bytes;
}

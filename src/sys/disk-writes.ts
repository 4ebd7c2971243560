// How a write of a host file reaches the kernel:
//
//   small   pwrite at once --> unless the host throttled one lately (inline-writes.ts), or they take long
//           while more is asked of the file (slow-writes.ts), or the file system may keep its callers waiting
//   large, and those --> io_uring (ring-operations.ts)
//                        no ring, the file's share of it is taken, or such a file system: thread pool
//
//   1. A write that settles is in the host's cache whole, or has failed with the host's errno.
//   2. The descriptor that it began on stays open so long.
//   3. Of what the ring says EIO alone is taken for the file's error: all others may be about the ring, so
//      the pool writes the rest. The ring has done with the buffer by then.

import type { Clock } from "../base/clock.ts";
import type { Completion } from "../base/completion.ts";
import type { BlockError } from "../base/errors.ts";
import { KiB } from "../base/units.ts";
import type { Descriptor } from "./descriptor.ts";
import type { ReadCounters } from "./disk-reads.ts";
import type { EndsInFlight } from "./ends-in-flight.ts";
import { Errno, hostError } from "./host-error.ts";
import { InlineWrites } from "./inline-writes.ts";
import { remainingParts } from "./portable-calls.ts";
import type { RingShare } from "./ring-share.ts";
import { SlowWrites } from "./slow-writes.ts";
import type { SystemCalls } from "./system-calls.ts";

// What is larger leaves the loop. Up to here a copy costs less than the way to a thread and back: in us of
// CPU at depth 4, inline against pool, on ext4 reads of 4 KiB 1.0 : 23, of 64 KiB 4.4 : 23, writes 3.8 : 20
// and 6 : 27. At 1 MiB the loop serves others meanwhile, on another core: requests of 1 MiB over a socket get
// 1.2 to 1.5 times the throughput. (On a busy machine it is the other way round.) Merges copy elsewhere
// (host-copies.ts).
export const INLINE_WRITE_MAX = 256 * KiB;
const PARTS_MAX = 1024;

/** What was done on the event loop, in the ring and in the pool. */
export interface HostFileCounters extends ReadCounters {
  inlineWrites: number;
  ringWrites: number;
  pooledWrites: number;
  /** Reads whose data went to the client without a copy. */
  pipedReads: number;
}

export function newCounters(): HostFileCounters {
  return {
    inlineReads: 0,
    ringReads: 0,
    pooledReads: 0,
    inlineWrites: 0,
    ringWrites: 0,
    pooledWrites: 0,
    pipedReads: 0,
  };
}

export interface DiskWritesParts {
  readonly path: string;
  readonly descriptor: Descriptor;
  /** On tmpfs or ramfs: a write never sleeps. */
  readonly inMemory: boolean;
  /** A small write is a copy into the page cache: it waits for nobody. */
  readonly cachesWrites: boolean;
  readonly calls: SystemCalls;
  readonly ring: RingShare;
  readonly clock: Clock;
  readonly counters: HostFileCounters;
  /** Of the writes that are not done when the call returns. */
  readonly inFlight: EndsInFlight;
  /** The file reaches at least to there, and has something that no sync has covered. */
  readonly written: (end: number) => void;
  /** Part of a write may have been done. */
  readonly failed: () => void;
}

export class DiskWrites {
  /** For writes that begin from now on. */
  descriptor: Descriptor;
  readonly #parts: DiskWritesParts;
  readonly #calls: SystemCalls;
  readonly #counters: HostFileCounters;
  readonly #inlineMax: number;
  readonly #inline: InlineWrites;
  /** Undefined in memory file systems, where no write is slow. */
  readonly #slow: SlowWrites | undefined;

  constructor(parts: DiskWritesParts) {
    this.descriptor = parts.descriptor;
    this.#parts = parts;
    this.#calls = parts.calls;
    this.#counters = parts.counters;
    this.#inlineMax = parts.cachesWrites ? INLINE_WRITE_MAX : -1;
    this.#inline = new InlineWrites(parts.clock, !parts.inMemory);
    this.#slow = parts.inMemory ? undefined : new SlowWrites(() => parts.ring.hasRoom);
  }

  /** @throws BlockError */
  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    const mayLoop = bytes <= this.#inlineMax && !this.#goesBeside();
    const beganMs = mayLoop ? this.#inline.begin() : -1;
    if (beganMs < 0) return this.#writeBeside(offset, bytes, buffer, at);
    this.#counters.inlineWrites++;
    const { fd } = this.descriptor;
    for (let done = 0; done < bytes; ) {
      const result = this.#calls.pwrite(fd, offset + done, bytes - done, buffer, at + done);
      if (result <= 0) throw this.#error(-result, offset, bytes);
      done += result;
    }
    const tookMs = this.#inline.finished(beganMs);
    this.#slow?.wroteOnLoop(bytes, tookMs);
    this.#parts.written(offset + bytes);
  }

  /** Writes the parts one behind the other. @throws BlockError */
  writeVector(offset: number, parts: readonly Buffer[]): Completion {
    let bytes = 0;
    for (const part of parts) bytes += part.length;
    const beganMs = bytes <= this.#inlineMax ? this.#inline.begin() : -1;
    if (beganMs < 0) return this.#writeVectorPooled(offset, parts, bytes);
    this.#counters.inlineWrites++;
    const { fd } = this.descriptor;
    for (let done = 0; done < bytes; ) {
      const result = this.#calls.pwritev(fd, offset + done, parts, done);
      if (result <= 0) throw this.#error(-result, offset, bytes);
      done += result;
    }
    this.#inline.finished(beganMs);
    this.#parts.written(offset + bytes);
  }

  /** For the ring alone: in the pool a slow write costs twice what it costs on the loop. */
  #goesBeside(): boolean {
    if (this.#slow?.beside !== true) return false;
    if (this.#parts.ring.hasRoom) return true;
    this.#slow.wroteBeside(0);
    return false;
  }

  #writeBeside(offset: number, bytes: number, buffer: Buffer, at: number): Promise<void> {
    return this.#offLoop(offset + bytes, async (descriptor) => {
      const done = await this.#writeByRing(descriptor, offset, bytes, buffer, at);
      await this.#writePooled(offset, done, bytes, (from) =>
        descriptor.write(offset + from, bytes - from, buffer, at + from),
      );
    });
  }

  #writeVectorPooled(offset: number, parts: readonly Buffer[], bytes: number): Promise<void> {
    return this.#offLoop(offset + bytes, (descriptor) =>
      this.#writePooled(offset, 0, bytes, (from) =>
        descriptor.writev(offset + from, remainingParts(parts, from).slice(0, PARTS_MAX)),
      ),
    );
  }

  /** Does a write up to `end`, all on one descriptor, which stays open meanwhile. */
  async #offLoop(end: number, write: (descriptor: Descriptor) => Promise<void>): Promise<void> {
    const { descriptor } = this;
    descriptor.enter();
    this.#parts.inFlight.began(end);
    try {
      await write(descriptor);
      this.#parts.written(end);
    } finally {
      this.#parts.inFlight.ended();
      descriptor.leave();
    }
  }

  /** How many of the bytes are written when the ring can do no more. */
  async #writeByRing(
    { fd }: Descriptor,
    offset: number,
    bytes: number,
    buffer: Buffer,
    at: number,
  ): Promise<number> {
    const ring = this.#parts.cachesWrites && fd >= 0 ? this.#parts.ring.take() : undefined;
    if (ring === undefined) return 0;
    this.#counters.ringWrites++;
    const before = operations(this.#counters);
    let done = 0;
    try {
      while (done < bytes) {
        const result = await ring.write(fd, offset + done, bytes - done, buffer, at + done);
        if (result > 0) done += result;
        else if (result === -Errno.EIO) throw this.#error(Errno.EIO, offset, bytes);
        else break;
      }
    } finally {
      this.#parts.ring.giveBack();
      // A ring that leaves writes to the pool is no help, whatever came meanwhile.
      const company = done === bytes ? operations(this.#counters) - before : 0;
      if (bytes <= this.#inlineMax) this.#slow?.wroteBeside(company);
    }
    return done;
  }

  /** Repeats a step in the pool until all is written. */
  async #writePooled(
    offset: number,
    from: number,
    bytes: number,
    step: (done: number) => Promise<number>,
  ): Promise<void> {
    if (from === bytes) return;
    this.#counters.pooledWrites++;
    for (let done = from; done < bytes; ) {
      const result = await step(done);
      if (result > 0) done += result;
      else if (result !== -Errno.EINTR) throw this.#error(-result, offset, bytes);
    }
  }

  #error(errno: number, offset: number, bytes: number): BlockError {
    this.#parts.failed();
    // A write that takes nothing and names no reason has no space.
    return hostError(
      errno === 0 ? Errno.ENOSPC : errno,
      `Could not write ${bytes} bytes at offset ${offset} of '${this.#parts.path}'`,
    );
  }
}

/** How many reads and writes have begun. */
function operations(counters: HostFileCounters): number {
  const reads = counters.inlineReads + counters.ringReads + counters.pooledReads + counters.pipedReads;
  return reads + counters.inlineWrites + counters.ringWrites + counters.pooledWrites;
}

// A range of one or more files that stands in pipes: pages of the page cache, no copy of them. What is
// written to those places of the files later shows through until the data has been read at the other end.
//
//   1. A pipe goes back to the pool empty; one that still holds data is closed.
//   2. How many pipes there are at a time is bounded, for the whole process, and idle ones are closed: each
//      takes two descriptors, and the kernel bounds what all processes of a user have in pipes together
//      (pipe-user-pages-soft, 64 MiB by default).
//   3. Whatever does not go as hoped is no error: the data is read the other way then, which tells the
//      reason.

import { type Clock, systemClock } from "../base/clock.ts";
import { KiB, MiB } from "../base/units.ts";
import { Errno } from "./host-error.ts";
import { type PipeCalls, type PipeEnds, pipeCalls } from "./pipe-calls.ts";

/** What the kernel grants without privileges (pipe-max-size). */
const PIPE_BYTES = 1 * MiB;
/** A smaller pipe is not worth the calls. */
const PIPE_BYTES_MIN = 256 * KiB;
const PIPES_MAX = 16;
/** Empty pipes are closed when they were not needed for so long. */
const IDLE_MS = 5000;
/** After the kernel refused a pipe, so many are not asked for. */
const PAUSE = 1000;
/** A pipe has a slot for each page, whatever part of it is used. */
const PAGE_BYTES = 4 * KiB;

export interface Pipe {
  readonly ends: PipeEnds;
  bytes: number;
  slots: number;
}

/** The pipes of a process. */
export class PipePool {
  readonly calls: PipeCalls | undefined;
  readonly #clock: Clock;
  readonly #free: Pipe[] = [];
  /** How many of the free ones were not needed since the last sweep. */
  #unneeded = 0;
  #sweeping = false;
  #open = 0;
  #pause = 0;

  constructor(calls: PipeCalls | undefined, clock: Clock = systemClock) {
    this.calls = calls;
    this.#clock = clock;
  }

  /** Pipes that are open. */
  get open(): number {
    return this.#open;
  }

  take(): Pipe | undefined {
    const free = this.#free.pop();
    if (free !== undefined) {
      this.#unneeded = Math.min(this.#unneeded, this.#free.length);
      return free;
    }
    if (this.calls === undefined || this.#open >= PIPES_MAX) return undefined;
    if (this.#pause > 0) {
      this.#pause--;
      return undefined;
    }
    const ends = this.calls.open(PIPE_BYTES);
    if (ends !== undefined && ends.capacity >= PIPE_BYTES_MIN) {
      this.#open++;
      return { ends, bytes: 0, slots: 0 };
    }
    if (ends !== undefined) this.calls.close(ends);
    this.#pause = PAUSE;
    return undefined;
  }

  give(pipe: Pipe): void {
    if (pipe.bytes > 0) {
      this.#close(pipe);
      return;
    }
    pipe.slots = 0;
    this.#free.push(pipe);
    if (!this.#sweeping) this.#sweepLater();
  }

  #sweepLater(): void {
    this.#sweeping = true;
    this.#clock.after(IDLE_MS, () => {
      for (const pipe of this.#free.splice(0, this.#unneeded)) this.#close(pipe);
      this.#unneeded = this.#free.length;
      this.#sweeping = false;
      if (this.#open > 0) this.#sweepLater();
    });
  }

  #close(pipe: Pipe): void {
    this.#open--;
    this.calls!.close(pipe.ends);
  }
}

const processPipes = new PipePool(pipeCalls());

export class PipedData {
  /** Bytes that stand in the pipes. */
  bytes = 0;
  readonly #pool: PipePool;
  readonly #pipes: Pipe[] = [];

  constructor(pool: PipePool = processPipes) {
    this.#pool = pool;
  }

  /** Takes [offset, offset+bytes) of a file up at once. False: not all of it. */
  add(fd: number, offset: number, bytes: number): boolean {
    for (let at = offset, moved = 0; at < offset + bytes; at += moved) {
      const pipe = this.#pipeFor(at);
      if (pipe === undefined) return false;
      moved = this.#pool.calls!.fill(fd, at, pipe.ends, Math.min(offset + bytes - at, room(pipe, at)));
      if (!this.#added(pipe, at, moved)) return false;
    }
    return true;
  }

  /** The same in the thread pool, for files whose data may have to come from a disk. `fd` stays open. */
  async addInPool(fd: number, offset: number, bytes: number): Promise<boolean> {
    for (let at = offset, moved = 0; at < offset + bytes; at += moved) {
      const pipe = this.#pipeFor(at);
      if (pipe === undefined) return false;
      const part = Math.min(offset + bytes - at, room(pipe, at));
      moved = await this.#pool.calls!.fillInPool(fd, at, pipe.ends, part);
      if (!this.#added(pipe, at, moved)) return false;
    }
    return true;
  }

  /** Moves what a socket takes now: bytes; 0: none now; below 0: the system cannot. */
  moveTo(socket: number): number {
    const pipe = this.#pipes[0];
    if (pipe === undefined) return 0;
    const moved = this.#pool.calls!.empty(pipe.ends, socket, pipe.bytes);
    if (moved > 0) this.#removed(pipe, moved);
    return moved === -Errno.EAGAIN ? 0 : moved;
  }

  /**
   * Copies the next `buffer.length` bytes out; there are as many.
   * @throws what the system says: a page that was taken up may be lost to it meanwhile
   */
  take(buffer: Buffer): void {
    for (let done = 0; done < buffer.length; ) {
      const pipe = this.#pipes[0]!;
      const wanted = Math.min(buffer.length - done, pipe.bytes);
      const taken = this.#pool.calls!.read(pipe.ends, buffer, done, wanted);
      this.#removed(pipe, taken);
      done += taken;
    }
  }

  /** Lets go of what is left. */
  drop(): void {
    for (const pipe of this.#pipes) this.#pool.give(pipe);
    this.#pipes.length = 0;
    this.bytes = 0;
  }

  #pipeFor(offset: number): Pipe | undefined {
    const last = this.#pipes.at(-1);
    if (last !== undefined && room(last, offset) > 0) return last;
    const pipe = this.#pool.take();
    if (pipe !== undefined) this.#pipes.push(pipe);
    return pipe;
  }

  /** False: nothing was, and `bytes` tells why. */
  #added(pipe: Pipe, offset: number, bytes: number): boolean {
    if (bytes <= 0) return false;
    pipe.bytes += bytes;
    pipe.slots += Math.floor((offset + bytes - 1) / PAGE_BYTES) - Math.floor(offset / PAGE_BYTES) + 1;
    this.bytes += bytes;
    return true;
  }

  #removed(pipe: Pipe, bytes: number): void {
    pipe.bytes -= bytes;
    this.bytes -= bytes;
    if (pipe.bytes > 0) return;
    this.#pipes.shift();
    this.#pool.give(pipe);
  }
}

/** Bytes from `offset` of a file on that the pipe has slots for. */
function room({ ends, slots }: Pipe, offset: number): number {
  return Math.max(0, ends.capacity - slots * PAGE_BYTES - (offset % PAGE_BYTES));
}

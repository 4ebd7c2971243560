// Copies between two files inside the host: copy_file_range.
//
//   tmpfs, ext4   one copy in the page cache instead of two through a buffer, a third less CPU (measured in
//                 us of CPU per MiB: 450 to 330, and 265 to 237)
//   XFS, Btrfs    no copy at all: the extents are shared, where the ranges lie on blocks of the file system
//
// In a memory file system the event loop copies while it has nothing better to do: threads would contend for
// the file's lock, and each copy would be handed over twice (566 us of CPU per MiB instead of 340).
//
// Only on these file systems, and within one: others have answered with holes, or with the bytes of a moment
// ago. After a call that took nothing the pair is given up for a while; whoever copies reads and writes then,
// and meets the host's error there.

import type { Clock } from "../base/clock.ts";
import { KiB } from "../base/units.ts";
import { type FileSystem, FileSystemType } from "./file-systems.ts";
import type { SystemCalls } from "./system-calls.ts";

const SHARING: readonly number[] = [FileSystemType.XFS, FileSystemType.BTRFS];
const COPYING: readonly number[] = [...SHARING, FileSystemType.TMPFS, FileSystemType.EXT];

/** What one turn of the event loop copies: 40 us. */
const PIECE_BYTES = 128 * KiB;
/** Copies that are not tried after one that failed. */
const PAUSE = 64;

export class HostCopies {
  readonly #calls: SystemCalls;
  readonly #fileSystem: FileSystem;
  readonly #clock: Clock;
  #pause = 0;
  /** Settles when nobody copies in turns. */
  #inTurns: Promise<unknown> = Promise.resolve();

  constructor(calls: SystemCalls, fileSystem: FileSystem, clock: Clock) {
    this.#calls = calls;
    this.#fileSystem = fileSystem;
    this.#clock = clock;
  }

  /** Copies at once are for memory: where a disk may have to be waited for they are not worth it. */
  get areQuick(): boolean {
    return this.#calls.copyRangeAtOnce !== undefined && this.#fileSystem.type === FileSystemType.TMPFS;
  }

  get sharesSpace(): boolean {
    return this.#calls.copyRange !== undefined && SHARING.includes(this.#fileSystem.type);
  }

  /** Whether both are on one file system that can be trusted with a copy. */
  isBeside(other: HostCopies): boolean {
    const { type, device } = this.#fileSystem;
    return COPYING.includes(type) && other.#fileSystem.type === type && other.#fileSystem.device === device;
  }

  /** False when the host does not copy; part of the range may have been written. */
  async copy(
    sourceFd: number,
    sourceOffset: number,
    fd: number,
    offset: number,
    bytes: number,
  ): Promise<boolean> {
    const calls = this.#calls;
    if (calls.copyRange === undefined || !this.#isDue(sourceFd, fd)) return false;
    for (let done = 0; done < bytes; ) {
      const left = bytes - done;
      const copied = await calls.copyRange(sourceFd, sourceOffset + done, fd, offset + done, left);
      if (copied <= 0) return this.#failed();
      done += copied;
    }
    return true;
  }

  /** The same without the thread pool, where that is quick. */
  copyAtOnce(sourceFd: number, sourceOffset: number, fd: number, offset: number, bytes: number): boolean {
    if (!this.areQuick || !this.#isDue(sourceFd, fd)) return false;
    for (let done = 0; done < bytes; ) {
      const left = bytes - done;
      const copied = this.#calls.copyRangeAtOnce!(sourceFd, sourceOffset + done, fd, offset + done, left);
      if (copied <= 0) return this.#failed();
      done += copied;
    }
    return true;
  }

  /** Where that is quick: in pieces on the event loop, one in each of its turns, whoever else copies so. */
  copyInTurns(
    sourceFd: number,
    sourceOffset: number,
    fd: number,
    offset: number,
    bytes: number,
  ): Promise<boolean> {
    const copying = this.#inTurns.then(async () => {
      for (let done = 0; done < bytes; done += PIECE_BYTES) {
        const piece = Math.min(PIECE_BYTES, bytes - done);
        if (!this.copyAtOnce(sourceFd, sourceOffset + done, fd, offset + done, piece)) return false;
        await this.#clock.turn();
      }
      return true;
    });
    this.#inTurns = copying.catch(() => undefined);
    return copying;
  }

  #failed(): false {
    this.#pause = PAUSE;
    return false;
  }

  #isDue(sourceFd: number, fd: number): boolean {
    if (sourceFd < 0 || fd < 0) return false;
    if (this.#pause === 0) return true;
    this.#pause--;
    return false;
  }
}

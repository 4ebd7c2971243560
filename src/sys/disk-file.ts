// The real HostFile. How a request reaches the kernel:
//
//   read    page cache at once; what has to come from the disk by io_uring or the pool (disk-reads.ts)
//   write   small: pwrite at once, unless it would keep the loop waiting; otherwise io_uring or the pool
//           (disk-writes.ts)
//   zeros, discard   fallocate at once, large ranges in pieces; zeros as data where the host lacks it
//   sync    pool, in groups (group-sync.ts)
//
//   1. An operation that settles has done all of its work, or has failed with the host's errno.
//   2. `size` is right whenever nothing is in flight, also after a write that failed half way. Nothing
//      makes the file shorter by what it takes for its size while a write past that is in flight.
//   3. Nothing is written through a descriptor after it was closed (descriptor.ts).
//   4. What changes the file tells `#sync` when it settles, not when it begins: a sync must cover it from
//      then on.

import { fstatSync, ftruncateSync } from "node:fs";
import type { Clock } from "../base/clock.ts";
import type { Completion } from "../base/completion.ts";
import type { BlockError } from "../base/errors.ts";
import { KiB } from "../base/units.ts";
import type { Descriptor } from "./descriptor.ts";
import { DiskReads } from "./disk-reads.ts";
import { DiskWrites, type HostFileCounters, INLINE_WRITE_MAX, newCounters } from "./disk-writes.ts";
import { EndsInFlight } from "./ends-in-flight.ts";
import { FileExtents } from "./file-extents.ts";
import type { FileSystem } from "./file-systems.ts";
import { GroupSync } from "./group-sync.ts";
import { HostCopies } from "./host-copies.ts";
import { Errno, fsError, hostError, isUnsupported } from "./host-error.ts";
import type { HostExtent, HostFile, LockRequest } from "./host-file.ts";
import { ImageLock } from "./image-lock.ts";
import type { PipedData } from "./piped-data.ts";
import { reopen } from "./reopen.ts";
import { type Ring, RingShare } from "./ring-share.ts";
import type { SystemCalls } from "./system-calls.ts";
import { Zeroing, zeroData } from "./zeroing.ts";

// What is lent instead of read: below, a copy costs less than the calls, in the pool less than the way there.
const PIPE_BYTES_MIN = 64 * KiB;
const PIPE_POOLED_BYTES_MIN = 256 * KiB;
/** After data could not be lent it is read so many times. */
const PIPE_PAUSE = 64;

export interface DiskFileParts {
  readonly path: string;
  readonly descriptor: Descriptor;
  readonly writable: boolean;
  readonly size: number;
  /** A block device: its length is fixed and requests may have to be aligned. */
  readonly blockDevice: boolean;
  /** On tmpfs or ramfs. */
  readonly inMemory: boolean;
  /** A small write is a copy into the page cache: it waits for nobody. */
  readonly cachesWrites: boolean;
  readonly fileSystem: FileSystem;
  readonly calls: SystemCalls;
  /** Asked for when something has to wait for the disk. */
  readonly ring: () => Ring | undefined;
  readonly clock: Clock;
  /** Whether `lock` does anything. */
  readonly locking: boolean;
}

export class DiskFile implements HostFile {
  readonly path: string;
  readonly blockDevice: boolean;
  readonly counters: HostFileCounters = newCounters();

  readonly #lock: ImageLock;
  readonly #locking: boolean;
  readonly #inMemory: boolean;
  readonly #sync: GroupSync;
  readonly #zeroing: Zeroing;
  readonly #copies: HostCopies;
  readonly #reads: DiskReads;
  readonly #writes: DiskWrites;
  readonly #extents: FileExtents;
  readonly #inFlight = new EndsInFlight();
  #descriptor: Descriptor;
  #writable: boolean;
  #size: number;
  #pipePause = 0;

  constructor(parts: DiskFileParts) {
    this.path = parts.path;
    this.blockDevice = parts.blockDevice;
    this.#descriptor = parts.descriptor;
    this.#writable = parts.writable;
    this.#size = parts.size;
    this.#locking = parts.locking;
    this.#lock = new ImageLock(parts.calls, parts.path);
    this.#inMemory = parts.inMemory;
    this.#sync = new GroupSync(() => this.#datasync());
    this.#copies = new HostCopies(parts.calls, parts.fileSystem, parts.clock);
    const shared = { ...parts, counters: this.counters, ring: new RingShare(parts.ring) };
    this.#reads = new DiskReads(shared);
    this.#writes = new DiskWrites({
      ...shared,
      inFlight: this.#inFlight,
      written: (end) => this.#written(end),
      failed: () => this.#refreshSize(),
    });
    this.#extents = new FileExtents(parts.calls);
    this.#zeroing = new Zeroing(parts.calls, parts.clock, parts.blockDevice);
  }

  get writable(): boolean {
    return this.#writable;
  }

  get size(): number {
    return this.#size;
  }

  // --- reading ---------------------------------------------------------------------------------------------

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return this.#reads.read(offset, bytes, buffer, at);
  }

  // --- lending ---------------------------------------------------------------------------------------------

  get pipeBytesMin(): number {
    return this.#inMemory ? PIPE_BYTES_MIN : PIPE_POOLED_BYTES_MIN;
  }

  pipe(data: PipedData, offset: number, bytes: number): boolean | Promise<boolean> {
    if (this.#pipePause > 0) {
      this.#pipePause--;
      return false;
    }
    if (!this.#inMemory) return this.#pipePooled(data, offset, bytes);
    const taken = data.add(this.#descriptor.fd, offset, bytes);
    this.#piped(taken);
    return taken;
  }

  async #pipePooled(data: PipedData, offset: number, bytes: number): Promise<boolean> {
    const descriptor = this.#descriptor;
    descriptor.enter();
    try {
      const taken = await data.addInPool(descriptor.fd, offset, bytes);
      this.#piped(taken);
      return taken;
    } finally {
      descriptor.leave();
    }
  }

  #piped(taken: boolean): void {
    if (taken) this.counters.pipedReads++;
    else this.#pipePause = PIPE_PAUSE;
  }

  // --- writing ---------------------------------------------------------------------------------------------

  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return this.#writes.write(offset, bytes, buffer, at);
  }

  writeVector(offset: number, parts: readonly Buffer[]): Completion {
    return this.#writes.writeVector(offset, parts);
  }

  // --- copies inside the host ------------------------------------------------------------------------------

  sharesSpaceWith(source: HostFile): boolean {
    return source instanceof DiskFile && this.#copies.sharesSpace && this.#copies.isBeside(source.#copies);
  }

  async copyFrom(
    source: HostFile,
    sourceOffset: number,
    offset: number,
    bytes: number,
    idle: boolean,
  ): Promise<boolean> {
    // What lies past the end of the source reads as zeros: nothing to copy from there.
    if (!(source instanceof DiskFile) || sourceOffset + bytes > source.#size) return false;
    if (!this.#copies.isBeside(source.#copies)) return false;
    const [from, to] = [source.#descriptor, this.#descriptor];
    from.enter();
    to.enter();
    this.#inFlight.began(offset + bytes);
    try {
      const onLoop = idle && this.#copies.areQuick;
      const copied = onLoop
        ? await this.#copies.copyInTurns(from.fd, sourceOffset, to.fd, offset, bytes)
        : await this.#copies.copy(from.fd, sourceOffset, to.fd, offset, bytes);
      if (copied) this.#written(offset + bytes);
      else this.#refreshSize();
      return copied;
    } finally {
      this.#inFlight.ended();
      from.leave();
      to.leave();
    }
  }

  get copiesAtOnce(): boolean {
    return this.#copies.areQuick;
  }

  copyAtOnce(source: HostFile, sourceOffset: number, offset: number, bytes: number): boolean {
    if (!(source instanceof DiskFile) || bytes > INLINE_WRITE_MAX) return false;
    if (sourceOffset + bytes > source.#size) return false;
    if (!this.#copies.isBeside(source.#copies)) return false;
    const { fd } = this.#descriptor;
    if (!this.#copies.copyAtOnce(source.#descriptor.fd, sourceOffset, fd, offset, bytes)) {
      this.#refreshSize();
      return false;
    }
    source.counters.inlineReads++;
    this.counters.inlineWrites++;
    this.#written(offset + bytes);
    return true;
  }

  // --- zeros and holes -------------------------------------------------------------------------------------

  writeZeroes(offset: number, bytes: number, options: { unmap: boolean; cheapOnly: boolean }): Completion {
    const descriptor = this.#descriptor;
    return this.#zeroing.inPieces(offset, bytes, descriptor, (from, length) => {
      this.#extents.forget();
      const end = from + length;
      const size = Math.max(this.#size, this.#inFlight.end);
      const result = this.#zeroing.zero(descriptor.fd, from, length, size, options.unmap);
      if (result === 0) return this.#written(end);
      if (!isUnsupported(-result)) throw this.#zeroError(-result, from, length);
      if (options.cheapOnly) throw this.#zeroError(Errno.EOPNOTSUPP, from, length);
      return zeroData(this, from, length);
    });
  }

  discard(offset: number, bytes: number): Completion {
    const within = Math.min(bytes, this.#size - offset);
    if (within <= 0) return;
    const descriptor = this.#descriptor;
    return this.#zeroing.inPieces(offset, within, descriptor, (from, length) => {
      this.#extents.forget();
      const result = this.#zeroing.punch(descriptor.fd, from, length);
      this.#sync.changed();
      if (result === 0 || isUnsupported(-result)) return;
      throw hostError(-result, `Could not discard ${length} bytes at offset ${from} of '${this.path}'`);
    });
  }

  truncate(size: number): Completion {
    if (size === this.#size) return;
    if (size < this.#size) return this.#shrink(size);
    if (size < this.#inFlight.end) return this.#inFlight.idle().then(() => this.truncate(size));
    try {
      ftruncateSync(this.#descriptor.fd, size);
    } catch (error) {
      throw fsError(error, `Could not resize '${this.path}' to ${size} bytes`);
    }
    this.#written(size);
  }

  /** In the pool: giving back the space of a large file takes the host a while. */
  async #shrink(size: number): Promise<void> {
    const result = await this.#descriptor.truncate(size);
    this.#sync.changed();
    this.#extents.forget();
    if (result < 0) throw hostError(-result, `Could not resize '${this.path}' to ${size} bytes`);
    this.#size = size;
  }

  // --- state -----------------------------------------------------------------------------------------------

  sync(): Completion {
    // A memory file system has nothing below it.
    if (this.#inMemory) return;
    return this.#sync.sync();
  }

  async #datasync(): Promise<void> {
    for (;;) {
      const result = await this.#descriptor.datasync();
      if (result >= 0) return;
      if (result !== -Errno.EINTR)
        throw hostError(-result, `Could not write '${this.path}' to stable storage`);
    }
  }

  extentAt(offset: number): HostExtent {
    return this.#extents.at(this.#descriptor.fd, offset, this.#size);
  }

  allocatedBytes(): number {
    if (this.blockDevice) return this.#size;
    try {
      return fstatSync(this.#descriptor.fd).blocks * 512;
    } catch {
      return -1;
    }
  }

  lock(request: LockRequest): void {
    if (this.#locking) this.#lock.change(this.#descriptor.fd, request);
  }

  async setWritable(writable: boolean): Promise<void> {
    if (writable === this.#writable) return;
    if (!writable) await this.sync();
    const before = this.#descriptor;
    const held = this.#lock.request;
    const wanted = held === undefined ? undefined : { write: writable, shareWrite: held.shareWrite };
    const after = reopen(before.fd, this.path, writable);
    try {
      // The check is made on the old descriptor: on the new one our own locks would look like another's.
      this.#lock.change(before.fd, wanted);
      this.#lock.copyTo(after.fd);
    } catch (error) {
      await after.close(this.path);
      this.#lock.change(before.fd, held);
      throw error;
    }
    this.#descriptor = after;
    this.#reads.descriptor = after;
    this.#writes.descriptor = after;
    this.#writable = writable;
    await before.close(this.path);
  }

  close(): Promise<void> {
    return this.#descriptor.close(this.path);
  }

  // --- inside ----------------------------------------------------------------------------------------------

  #written(end: number): void {
    if (end > this.#size) this.#size = end;
    this.#sync.changed();
  }

  #zeroError(errno: number, offset: number, bytes: number): BlockError {
    this.#refreshSize();
    return hostError(errno, `Could not write ${bytes} zero bytes at offset ${offset} of '${this.path}'`);
  }

  /** After a failure: part of the work may have been done. */
  #refreshSize(): void {
    this.#sync.changed();
    if (this.blockDevice) return;
    try {
      this.#size = fstatSync(this.#descriptor.fd).size;
    } catch {
      // The error that brought us here is the one to tell.
    }
  }
}

import type { Completion } from "../base/completion.ts";
import type { PipedData } from "./piped-data.ts";

/** A stretch of a host file that is data, or a hole that reads as zeros. */
export interface HostExtent {
  readonly bytes: number;
  readonly data: boolean;
}

/** How this process shares the byte ranges that QEMU uses for image locking (see `image-lock.ts`). */
export interface LockRequest {
  readonly write: boolean;
  readonly shareWrite: boolean;
}

/**
 * A file of the host as the block layer sees it. The real one is `openHostFile`; the simulator of crash tests
 * is another. Buffers are borrowed until the completion settles.
 *
 * Every call does all of its work or fails with a BlockError that carries the host's errno and the path:
 * short reads, short writes and EINTR are dealt with inside.
 */
export interface HostFile {
  readonly path: string;
  readonly writable: boolean;
  /** Length of the file in bytes, kept up to date by this object's own calls. */
  readonly size: number;

  /** Fills `buffer[at .. at+bytes)`. What lies past the end of the file reads as zeros. */
  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion;
  /** Writes `buffer[at .. at+bytes)`; past the end of the file it grows. */
  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion;
  /** Writes the buffers one after the other from `offset`, in one system call where the host can. */
  writeVector(offset: number, parts: readonly Buffer[]): Completion;
  /**
   * Makes the range read as zeros, within the present length or past it (the file grows).
   * `unmap`: a hole is wanted; otherwise the space stays allocated. `cheapOnly`: ENOTSUP instead of writing
   * zeros.
   */
  writeZeroes(offset: number, bytes: number, options: { unmap: boolean; cheapOnly: boolean }): Completion;
  /**
   * Gives the space of the range back to the host. The range reads as zeros afterwards where the host can
   * punch holes; where it cannot, nothing happens and this is no error.
   */
  discard(offset: number, bytes: number): Completion;
  /**
   * Copies a range of another file to `offset` inside the host, which shares the space where it can; as good
   * as a write. False: not with these two files; part of the range may hold the copy then. Both ranges are
   * settled: nobody writes them meanwhile. `idle`: the event loop has nothing better to do than to copy.
   */
  copyFrom?(
    source: HostFile,
    sourceOffset: number,
    offset: number,
    bytes: number,
    idle: boolean,
  ): Promise<boolean>;
  /** Whether `copyAtOnce` is worth a try. */
  readonly copiesAtOnce?: boolean;
  /** The same as `copyFrom`, done when it returns. */
  copyAtOnce?(source: HostFile, sourceOffset: number, offset: number, bytes: number): boolean;
  /** Whether a copy from `source` shares its space. */
  sharesSpaceWith?(source: HostFile): boolean;
  /** The smallest range that is worth `pipe`, in bytes. */
  readonly pipeBytesMin?: number;
  /**
   * Takes the range up into pipes, without a copy: what is written there later may show through. False: not
   * all of it; it has to be read.
   */
  pipe?(data: PipedData, offset: number, bytes: number): boolean | Promise<boolean>;
  /** Everything that was written before this call is on stable storage when it is done (fdatasync). */
  sync(): Completion;
  /** Sets the length. Growth reads as zeros. */
  truncate(size: number): Completion;
  /** The stretch that begins at `offset` (SEEK_DATA, SEEK_HOLE); all data where the host cannot tell. */
  extentAt(offset: number): HostExtent;
  /** Bytes that the file takes on the host, or -1 when it cannot tell. */
  allocatedBytes(): number;
  /** Takes, changes or gives back (both false, sharing all) the locks. @throws BlockError IMAGE_LOCKED */
  lock(request: LockRequest): void;
  /**
   * Opens the same file again for writing too, or for reading only, and moves on to that; what was in flight
   * ends on the old descriptor. Locks that are held follow (`write` becomes `writable`). On an error nothing
   * has changed.
   */
  setWritable(writable: boolean): Promise<void>;
  close(): Promise<void>;
}

// System calls that finish at once, in one form for both ways to make them: through the C library (libc.ts)
// or, where that cannot be loaded, through node:fs (portable-calls.ts).
//
//   1. A result below zero is -errno. EINTR is repeated inside; short results are handed up.
//   2. Nothing is allocated per call.

export const SeekFrom = { END: 2, DATA: 3, HOLE: 4 } as const;

/** linux/falloc.h */
export const FallocateMode = { ALLOCATE: 0, KEEP_SIZE: 1, PUNCH_HOLE: 2, ZERO_RANGE: 16 } as const;

export interface SystemCalls {
  /** Whether the calls beyond node:fs exist: NOWAIT reads, fallocate, seeks, locks. */
  readonly complete: boolean;
  pread(fd: number, offset: number, bytes: number, buffer: Buffer, at: number): number;
  /** Only what the page cache holds: -EAGAIN when that is nothing, -EOPNOTSUPP where the host cannot tell. */
  preadNoWait(fd: number, offset: number, bytes: number, buffer: Buffer, at: number): number;
  pwrite(fd: number, offset: number, bytes: number, buffer: Buffer, at: number): number;
  /** Writes from byte `skip` of `parts` on; may take fewer parts than there are. */
  pwritev(fd: number, offset: number, parts: readonly Buffer[], skip: number): number;
  fallocate(fd: number, mode: number, offset: number, bytes: number): number;
  /** lseek: the position found. */
  seek(fd: number, offset: number, whence: number): number;
  /**
   * copy_file_range in the thread pool: bytes copied, 0 or less when nothing was; the reason is not known
   * then.
   */
  copyRange?(
    sourceFd: number,
    sourceOffset: number,
    fd: number,
    offset: number,
    bytes: number,
  ): Promise<number>;
  /** copy_file_range: bytes copied. */
  copyRangeAtOnce?(sourceFd: number, sourceOffset: number, fd: number, offset: number, bytes: number): number;
  /** Takes (shared) or gives back the OFD lock on one byte. */
  lockByte(fd: number, byte: number, take: boolean): number;
  /** Whether another open file holds a lock on the byte: 1 or 0. */
  testByte(fd: number, byte: number): number;
}

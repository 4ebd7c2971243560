import type { Completion } from "../src/base/completion.ts";

/** Extent flags of `base:allocation`, as on the wire. */
export const StatusFlags = { HOLE: 1, ZERO: 2 } as const;

/** Takes extents of a block status reply in order; false when no more is wanted. */
export type StatusSink = (bytes: number, flags: number) => boolean;

/**
 * The data of a read that nobody copies: it stands in the kernel until the client has read it, and what is
 * written to its place meanwhile may show through.
 */
export interface LentData {
  /** Bytes that no socket has taken yet. */
  readonly bytes: number;
  /** Moves on what the unix socket takes now: bytes; 0: none now; below 0: the system cannot. */
  moveTo(socket: number): number;
  /** Copies the next `buffer.length` bytes out; there are as many. */
  take(buffer: Buffer): void;
  /** The client has all of it, or never will. Once. */
  release(): void;
}

/**
 * What a server needs of a disk. All offsets and lengths are in bytes and checked by the session before:
 * inside `size`, no write to a read-only backend. An operation is done when it returns undefined, otherwise
 * when its promise settles. Buffers are borrowed until then. Errors are mapped by `errno`.
 */
export interface NbdBackend {
  readonly size: number;
  readonly readOnly: boolean;
  readonly description: string | undefined;
  /** Powers of two; what NBD_INFO_BLOCK_SIZE tells. */
  readonly blockSize: { readonly minimum: number; readonly preferred: number; readonly maximum: number };
  /** Whether a flush on one connection covers writes that were answered on all others. */
  readonly multiConn: boolean;
  /** Meta contexts beside base:allocation, such as qemu:allocation-depth. */
  readonly contexts: readonly string[];

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion;
  /**
   * The range as data that is lent: asked of large reads where the connection can take it. Undefined: it has
   * to be read. Never fails.
   */
  lend?(offset: number, bytes: number): LentData | undefined | Promise<LentData | undefined>;
  write(offset: number, bytes: number, buffer: Buffer, at: number, fua: boolean): Completion;
  writeZeroes(
    offset: number,
    bytes: number,
    options: { readonly fua: boolean; readonly mayUnmap: boolean; readonly fastOnly: boolean },
  ): Completion;
  trim(offset: number, bytes: number, fua: boolean): Completion;
  flush(): Completion;
  /** Brings the range into memory; a hint. */
  cache(offset: number, bytes: number): Completion;
  /**
   * Status of [offset, offset+bytes) for one context, merged over neighbours; may end early when the sink has
   * enough.
   */
  status(context: string, offset: number, bytes: number, sink: StatusSink): Completion;
  /** The NBD errno that stands for what an operation threw, and a sentence for the client. */
  errno(error: unknown): number;
}

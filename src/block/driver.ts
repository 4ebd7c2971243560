// The contract between a node and the code behind it.
//
// A driver is written once: it finishes synchronously when everything is at hand and hands up a promise
// otherwise. Arguments are plain numbers instead of a request object: nothing is allocated for a request that
// is served at once, and a driver that splits a request makes no sub-requests (docs/decisions.md, "Positional
// arguments").
//
//   1. The node is the one door: range, rights, drain and count are checked there. A driver trusts its
//      arguments.
//   2. Buffers are borrowed until the completion settles.
//   3. `write` and `writeZeroes` of a growing leaf (a host file) may go past `size`; of all others never.
//   4. A driver reaches its children through `host.file` and `host.backing`, and reads these two again after
//      each await: an await voids what was looked up before.

import type { Completion } from "../base/completion.ts";
import type { DebugEvent } from "./debug-event.ts";
import type { ExtentSink } from "./extent.ts";
import type { Loan } from "./loan.ts";
import type { BlockNode } from "./node.ts";

/** Flags of a write or a write of zeros. */
export const WriteFlags = {
  NONE: 0,
  /** Durable before it completes. Done by the node (a flush follows), so a driver never sees it. */
  FUA: 1,
  /** Zeros may be made by giving space back. */
  MAY_UNMAP: 2,
  /** ENOTSUP rather than writing zeros as data. */
  NO_FALLBACK: 4,
} as const;

/** What a layer alone holds of a range, as far as it knows without waiting. */
export const Holding = {
  /** The backing shows through all of it. */
  NOTHING: 0,
  SOMETHING: 1,
  /** A table has to be loaded first. */
  UNKNOWN: 2,
} as const;
export type Holding = (typeof Holding)[keyof typeof Holding];

/** What a driver sees of the node that it stands behind. */
export interface DriverHost {
  readonly name: string;
  /** The node that holds this one's bytes; undefined for a leaf. */
  readonly file: BlockNode | undefined;
  /** The backing node. It changes only while the node is drained. */
  readonly backing: BlockNode | undefined;
}

/** Damage that was found in an image that is in use: QMP's BLOCK_IMAGE_CORRUPTED. */
export interface CorruptionReport {
  readonly node: string;
  readonly message: string;
  /** Where in the image's file, in bytes, if that is known. */
  readonly offset?: number | undefined;
  readonly bytes?: number | undefined;
  /** Whether the image takes no more writes. */
  readonly fatal: boolean;
}

/** What an image knows of itself, in the members of QMP's ImageInfo. Sizes in bytes. */
export interface ImageDetails {
  readonly clusterSize?: number;
  /** Backing file as it stands in the image: name and format, unresolved. */
  readonly backingFile?: string;
  readonly backingFormat?: string;
  readonly compressed?: boolean;
  /** `format-specific` of QMP: the type's name and its data, in QAPI's spelling. */
  readonly formatSpecific?: { readonly type: string; readonly data: Record<string, unknown> };
  readonly snapshots?: readonly Record<string, unknown>[];
  readonly corrupt?: boolean;
  /** Bytes up to the highest cluster in use. */
  readonly endOffset?: number;
}

/** What a driver counts; shown by `strata chain` and the monitors. */
export type Counters = Readonly<Record<string, number>>;

export interface Driver {
  /** QEMU's name of the driver: file, raw, qcow2 ... */
  readonly driverName: string;
  /** Length of the virtual disk, in bytes below 2**53. */
  readonly size: number;
  /** A leaf that grows when it is written past its end. */
  readonly growable: boolean;
  /** Whether `backing` is possible: raw has none. */
  readonly supportsBacking: boolean;
  /**
   * It has no data of its own and shows what its `file` holds, so that a chain goes on there. Of what it
   * tells by `extents`, chains take only whether that failed.
   */
  readonly isFilter?: boolean;
  /** Unit in which copy-up and allocation work; 512 or more; a power of two. */
  readonly clusterSize: number;

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion;
  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion;
  /** Several buffers one after the other; optional, the node falls back to single writes. */
  writeVector?(offset: number, parts: readonly Buffer[]): Completion;
  /**
   * For a leaf: as a write of what `source`, a leaf too, holds at `sourceOffset`, but inside the host. False:
   * not with these two; part of the range may have been written. Nobody writes either range meanwhile.
   * `idle`: no guest is at work, so the event loop may do it.
   */
  copyFrom?(
    source: Driver,
    sourceOffset: number,
    offset: number,
    bytes: number,
    idle: boolean,
  ): Promise<boolean>;
  /** Whether `copyAtOnce` is worth a try: it is a copy in memory. */
  readonly copiesAtOnce?: boolean;
  /** The same as `copyFrom`, done when it returns. */
  copyAtOnce?(source: Driver, sourceOffset: number, offset: number, bytes: number): boolean;
  /** Whether such a copy takes no space on the host. */
  sharesSpaceWith?(source: Driver): boolean;
  writeZeroes(offset: number, bytes: number, flags: number): Completion;
  /** A hint for a raw leaf; in an image with a backing link a discarded cluster reads as zeros. */
  discard(offset: number, bytes: number): Completion;
  /** All writes that settled before the call are durable after it. */
  flush(): Completion;
  /**
   * Tells what this layer alone holds of [offset, offset+bytes): data, zero, or unallocated (the backing
   * shows through). Reports in order and without gaps, merged where neighbours are alike, until `out` has
   * enough or all is told.
   */
  extents(offset: number, bytes: number, out: ExtentSink): Completion;
  /**
   * What this layer alone holds of a range of up to a few clusters, at once. A driver that has no such thing
   * is always asked for the data itself.
   */
  holding?(offset: number, bytes: number): Holding;
  /**
   * Where in `host.file` the range stands, if it is known at once that it is one piece of plain data there,
   * so that a read of it is a read of the file and nothing else; otherwise -1. True as long as nobody may
   * write to this layer.
   */
  placeOf?(offset: number, bytes: number): number;
  /**
   * Tells `loan` where all of the range stands, at once; false: it has to be read. A driver that looks at
   * data, holds requests back or counts them has no such thing. See loan.ts.
   */
  lend?(offset: number, bytes: number, loan: Loan): boolean;
  /**
   * Copies into this layer what it lacks of [offset, offset+bytes) and what the images from its backing down
   * to, but without, `base` hold (all of them where `base` is undefined). What the guest wrote in the
   * meantime stays. Settles to the bytes that were copied as data. Both ends are multiples of `clusterSize`,
   * or the end of the disk. `idle`: see `copyFrom`.
   */
  copyUp?(offset: number, bytes: number, base: BlockNode | undefined, idle: boolean): Promise<number>;
  /** Sets the length. @throws BlockError ENOTSUP where the driver cannot. */
  truncate(size: number): Completion;
  /** @throws BlockError when such a backing link could not be written: told before a merge begins */
  checkBackingLink?(file: string | undefined, format: string | undefined): void;
  /** Writes the backing link durably: the commit point of a merge. Undefined: no backing any more. */
  changeBackingLink?(file: string | undefined, format: string | undefined): Promise<void>;
  /**
   * From reading only to writing or back: tables written, flags in the header set or cleared, host file
   * reopened.
   */
  setWritable(writable: boolean): Promise<void>;
  details(): ImageDetails;
  /** Options without which its file would show another disk: a link to it has to give them. */
  windowOptions?(): Readonly<Record<string, number>>;
  /** Bytes that this layer takes on the host, or -1. */
  allocatedBytes(): number;
  counters?(): Counters;
  /** For a fault filter: the node above passes this place. See debug-event.ts. */
  debugEvent?(event: DebugEvent): void;
  /**
   * Writes out everything and lets go. The node is drained. An error here is told, the resources are gone
   * anyway.
   */
  close(): Promise<void>;
}

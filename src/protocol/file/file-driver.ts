// The `file` driver: a host file as a leaf of the graph. It adds nothing to the file but the driver's
// contract; how requests reach the host is in src/sys/disk-file.ts.
//
//   1. Growable: writes past the end make the file longer. `size` is its exact length, not rounded to
//      sectors.
//   2. Reads past the end give zeros.
//   3. A hole is a ZERO of this layer, never UNALLOCATED: nothing stands behind a file.

import type { Clock } from "../../base/clock.ts";
import type { Completion } from "../../base/completion.ts";
import type { Logger } from "../../base/logger.ts";
import { type Counters, type Driver, type ImageDetails, WriteFlags } from "../../block/driver.ts";
import { ExtentKind, type ExtentSink } from "../../block/extent.ts";
import type { Loan } from "../../block/loan.ts";
import type { HostFile } from "../../sys/host-file.ts";
import { openHostFile } from "../../sys/open-host-file.ts";

export interface FileDriverOptions {
  /** QEMU's name; `host_device` for a block device. Default `file`. */
  readonly driverName?: string;
  /** A block device does not grow. Default true. */
  readonly growable?: boolean;
  /** What the file can tell of its own work. */
  readonly counters?: () => Counters;
}

export class FileDriver implements Driver {
  readonly driverName: string;
  readonly growable: boolean;
  readonly supportsBacking = false;
  readonly clusterSize = 512;
  readonly #file: HostFile;
  readonly #counters: () => Counters;

  /** Takes the file over: `close` closes it. */
  constructor(file: HostFile, options: FileDriverOptions = {}) {
    this.#file = file;
    this.driverName = options.driverName ?? "file";
    this.growable = options.growable ?? true;
    this.#counters = options.counters ?? (() => ({}));
  }

  get size(): number {
    return this.#file.size;
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return this.#file.read(offset, bytes, buffer, at);
  }

  lend(offset: number, bytes: number, loan: Loan): boolean {
    const file = this.#file;
    if (file.pipe === undefined || bytes < file.pipeBytesMin!) return false;
    loan.add(file, offset, bytes);
    return true;
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return this.#file.write(offset, bytes, buffer, at);
  }

  writeVector(offset: number, parts: readonly Buffer[]): Completion {
    return this.#file.writeVector(offset, parts);
  }

  async copyFrom(
    source: Driver,
    sourceOffset: number,
    offset: number,
    bytes: number,
    idle: boolean,
  ): Promise<boolean> {
    if (!(source instanceof FileDriver) || this.#file.copyFrom === undefined) return false;
    return this.#file.copyFrom(source.#file, sourceOffset, offset, bytes, idle);
  }

  get copiesAtOnce(): boolean {
    return this.#file.copiesAtOnce === true;
  }

  copyAtOnce(source: Driver, sourceOffset: number, offset: number, bytes: number): boolean {
    if (!(source instanceof FileDriver)) return false;
    return this.#file.copyAtOnce?.(source.#file, sourceOffset, offset, bytes) === true;
  }

  sharesSpaceWith(source: Driver): boolean {
    return source instanceof FileDriver && this.#file.sharesSpaceWith?.(source.#file) === true;
  }

  writeZeroes(offset: number, bytes: number, flags: number): Completion {
    return this.#file.writeZeroes(offset, bytes, {
      unmap: (flags & WriteFlags.MAY_UNMAP) !== 0,
      cheapOnly: (flags & WriteFlags.NO_FALLBACK) !== 0,
    });
  }

  discard(offset: number, bytes: number): Completion {
    return this.#file.discard(offset, bytes);
  }

  flush(): Completion {
    // Read-only: nothing was written, and some file systems refuse the question.
    return this.#file.writable ? this.#file.sync() : undefined;
  }

  extents(offset: number, bytes: number, out: ExtentSink): void {
    const end = offset + bytes;
    for (let from = offset; from < end; ) {
      const extent = this.#file.extentAt(from);
      const length = Math.min(extent.bytes, end - from);
      if (!out.push(length, extent.data ? ExtentKind.DATA : ExtentKind.ZERO, from, false)) return;
      from += length;
    }
  }

  truncate(size: number): Completion {
    return this.#file.truncate(size);
  }

  setWritable(writable: boolean): Promise<void> {
    return this.#file.setWritable(writable);
  }

  details(): ImageDetails {
    return { formatSpecific: { type: "file", data: {} } };
  }

  allocatedBytes(): number {
    return this.#file.allocatedBytes();
  }

  counters(): Counters {
    return this.#counters();
  }

  async close(): Promise<void> {
    try {
      await this.flush();
    } finally {
      await this.#file.close();
    }
  }
}

export interface OpenFileOptions {
  readonly writable: boolean;
  /** Lets other processes write while this one has the file open: QEMU's `share-rw`. Default false. */
  readonly shareWrite?: boolean;
  /** QEMU's `locking`, false for "off". Default true. */
  readonly locking?: boolean;
  /** QEMU's aio=threads. Default false. */
  readonly threads?: boolean;
  readonly logger?: Logger;
  readonly clock?: Clock;
}

/**
 * Opens a file of the host, or a block device, as a leaf and locks it against other users of the image.
 * @throws BlockError with the host's errno, or IMAGE_LOCKED, in QEMU's words
 */
export async function openFileDriver(path: string, options: OpenFileOptions): Promise<FileDriver> {
  const { shareWrite = false, ...rest } = options;
  const file = openHostFile(path, rest);
  try {
    file.lock({ write: options.writable, shareWrite });
  } catch (error) {
    await file.close();
    throw error;
  }
  return new FileDriver(file, {
    driverName: file.blockDevice ? "host_device" : "file",
    growable: !file.blockDevice,
    counters: () => ({ ...file.counters }),
  });
}

// The `raw` driver: the bytes of its file, or a window of them, are the disk.
//
//   1. The disk is as long as the file, rounded up to whole sectors of 512 bytes as QEMU does it; what the
//      file lacks of the last sector reads as zeros, and writing there makes the file longer.
//   2. `size` makes the disk a fixed window, which cannot be resized; `offset` moves its beginning.
//   3. There is no backing link: no copy-up, nothing is ever unallocated.

import type { Completion } from "../../base/completion.ts";
import { BlockError } from "../../base/errors.ts";
import { alignUp } from "../../base/units.ts";
import { type DebugHook, debugHookOf } from "../../block/debug-event.ts";
import type { Driver, DriverHost, ImageDetails } from "../../block/driver.ts";
import { ExtentKind, type ExtentSink, NO_HOST_OFFSET } from "../../block/extent.ts";
import type { Loan } from "../../block/loan.ts";
import type { BlockNode } from "../../block/node.ts";

const SECTOR = 512;

export interface RawOptions {
  /** First byte of the disk in the file. Default 0. */
  readonly offset?: number;
  /** Length of the disk in bytes, a multiple of 512. Default: up to the end of the file. */
  readonly size?: number;
}

export class RawDriver implements Driver {
  readonly driverName = "raw";
  readonly growable = false;
  readonly supportsBacking = false;
  readonly clusterSize = SECTOR;
  readonly #host: DriverHost;
  readonly #offset: number;
  readonly #fixedSize: boolean;
  readonly #debug: DebugHook | undefined;
  #size: number;

  /** @throws BlockError EINVAL in QEMU's words when the options do not fit the file */
  constructor(host: DriverHost, options: RawOptions = {}) {
    this.#host = host;
    this.#offset = options.offset ?? 0;
    this.#debug = debugHookOf(host.file);
    this.#fixedSize = options.size !== undefined;
    this.#size = windowSize(alignUp(this.#file.size, SECTOR), this.#offset, options.size);
  }

  get size(): number {
    return this.#size;
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    const file = this.#file;
    const from = this.#offset + offset;
    this.#debug?.("read_aio");
    if (from + bytes <= file.size) return file.read(from, bytes, buffer, at);
    const inside = insideOf(file, from, bytes);
    buffer.fill(0, at + inside, at + bytes);
    return inside > 0 ? file.read(from, inside, buffer, at) : undefined;
  }

  lend(offset: number, bytes: number, loan: Loan): boolean {
    return this.#debug === undefined && this.#file.lend(this.#offset + offset, bytes, loan);
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    const file = this.#file;
    const from = this.#offset + offset;
    if (from + bytes > file.size) this.#refuseUnlessGrowable(file, from, bytes);
    this.#debug?.("write_aio");
    return file.write(from, bytes, buffer, at);
  }

  writeVector(offset: number, parts: readonly Buffer[]): Completion {
    const file = this.#file;
    const from = this.#offset + offset;
    let bytes = 0;
    for (const part of parts) bytes += part.length;
    if (from + bytes > file.size) this.#refuseUnlessGrowable(file, from, bytes);
    this.#debug?.("write_aio");
    return file.writeVector(from, parts);
  }

  writeZeroes(offset: number, bytes: number, flags: number): Completion {
    const file = this.#file;
    const from = this.#offset + offset;
    // What a file that cannot grow lacks of the last sector reads as zeros anyway.
    const inside = file.driver.growable ? bytes : insideOf(file, from, bytes);
    return inside > 0 ? file.writeZeroes(from, inside, flags) : undefined;
  }

  discard(offset: number, bytes: number): Completion {
    const file = this.#file;
    const from = this.#offset + offset;
    const inside = insideOf(file, from, bytes);
    return inside > 0 ? file.discard(from, inside) : undefined;
  }

  flush(): Completion {
    this.#debug?.("flush_to_os");
    this.#debug?.("flush_to_disk");
    return this.#file.flush();
  }

  extents(offset: number, bytes: number, out: ExtentSink): Completion {
    const file = this.#file;
    const from = this.#offset + offset;
    const inside = insideOf(file, from, bytes);
    const sink = file.file === undefined ? new CountingSink(out) : new LayeredSink(out, from, file);
    const done = inside > 0 ? file.extents(from, inside, sink) : undefined;
    if (done === undefined) tellTail(sink, bytes);
    else return done.then(() => tellTail(sink, bytes));
  }

  placeOf(offset: number, bytes: number): number {
    // A fault filter below is told of each read.
    if (this.#debug !== undefined) return NO_HOST_OFFSET;
    const from = this.#offset + offset;
    return from + bytes <= this.#file.size ? from : NO_HOST_OFFSET;
  }

  truncate(size: number): Completion {
    if (this.#fixedSize) throw new BlockError("ENOTSUP", "Cannot resize fixed-size raw disks");
    if (!Number.isSafeInteger(this.#offset + size)) {
      throw new BlockError("EINVAL", "Disk size too large for the chosen offset");
    }
    const done = this.#file.truncate(this.#offset + size);
    if (done === undefined) this.#size = alignUp(size, SECTOR);
    else {
      return done.then(() => {
        this.#size = alignUp(size, SECTOR);
      });
    }
  }

  /** Nothing of its own to write: the node has the file reopened. */
  async setWritable(): Promise<void> {}

  details(): ImageDetails {
    return {};
  }

  windowOptions(): Readonly<Record<string, number>> {
    return {
      ...(this.#offset === 0 ? {} : { offset: this.#offset }),
      ...(this.#fixedSize ? { size: this.#size } : {}),
    };
  }

  allocatedBytes(): number {
    return this.#file.driver.allocatedBytes();
  }

  async close(): Promise<void> {}

  get #file(): BlockNode {
    const file = this.#host.file;
    if (file === undefined) throw new BlockError("EINVAL", `raw node '${this.#host.name}' has no file`);
    return file;
  }

  #refuseUnlessGrowable(file: BlockNode, from: number, bytes: number): void {
    if (file.driver.growable) return;
    throw new BlockError(
      "ENOSPC",
      `Could not write ${bytes} bytes at offset ${from}: ` +
        `node '${file.name}' ends at ${file.size} and cannot grow`,
    );
  }
}

function windowSize(realSize: number, offset: number, size: number | undefined): number {
  for (const [name, value] of Object.entries({ offset, size: size ?? 0 })) {
    if (value >= 0) continue;
    throw new BlockError("EINVAL", `Value '${value}' is out of range for parameter '${name}'`);
  }
  if (offset > realSize) {
    throw new BlockError(
      "EINVAL",
      `Offset (${offset}) cannot be greater than size of the containing file (${realSize})`,
    );
  }
  if (size === undefined) return alignUp(realSize - offset, SECTOR);
  if (size > realSize - offset) {
    throw new BlockError(
      "EINVAL",
      `The sum of offset (${offset}) and size (${size}) has to be smaller or equal to the ` +
        ` actual size of the containing file (${realSize})`,
    );
  }
  if (size % SECTOR !== 0) throw new BlockError("EINVAL", `Specified size is not multiple of ${SECTOR}`);
  return size;
}

/** How much of the range the file holds. */
function insideOf(file: BlockNode, from: number, bytes: number): number {
  return Math.max(0, Math.min(bytes, file.size - from));
}

/** Hands extents on and knows how far they went. */
class CountingSink implements ExtentSink {
  protected readonly out: ExtentSink;
  told = 0;
  full = false;

  constructor(out: ExtentSink) {
    this.out = out;
  }

  push(bytes: number, kind: ExtentKind, hostOffset: number, compressed: boolean): boolean {
    const wanted = this.out.push(bytes, kind, hostOffset, compressed);
    if (wanted) this.told += bytes;
    else this.full = true;
    return wanted;
  }
}

/** Over a node that has layers of its own: its offsets count, and what it lacks shows what is behind it. */
class LayeredSink extends CountingSink {
  readonly #from: number;
  readonly #hasBacking: boolean;

  constructor(out: ExtentSink, from: number, file: BlockNode) {
    super(out);
    this.#from = from;
    this.#hasBacking = file.backing !== undefined;
  }

  override push(bytes: number, kind: ExtentKind): boolean {
    const missing = this.#hasBacking ? ExtentKind.DATA : ExtentKind.ZERO;
    const told = kind === ExtentKind.UNALLOCATED ? missing : kind;
    return super.push(bytes, told, this.#from + this.told, false);
  }
}

function tellTail(sink: CountingSink, bytes: number): void {
  // The rest of the last sector, which the file does not hold.
  if (!sink.full && sink.told < bytes) {
    sink.push(bytes - sink.told, ExtentKind.ZERO, NO_HOST_OFFSET, false);
  }
}

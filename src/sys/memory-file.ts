// A HostFile in memory, for tests: sparse, so that offsets of 2**40 bytes and more cost nothing. Everything
// finishes synchronously; put a FaultFile over it for the other way.

import { BlockError } from "../base/errors.ts";
import type { HostExtent, HostFile, LockRequest } from "./host-file.ts";

const BLOCK = 4096;

export interface MemoryFileOptions {
  readonly path?: string;
  readonly size?: number;
  readonly writable?: boolean;
  /** ENOSPC once this many bytes are taken. */
  readonly spaceMax?: number;
}

export class MemoryFile implements HostFile {
  readonly path: string;
  #writable: boolean;
  #size: number;
  readonly #spaceMax: number;
  readonly #blocks = new Map<number, Buffer>();
  #lock: LockRequest | undefined;
  #closed = false;

  constructor(options: MemoryFileOptions = {}) {
    this.path = options.path ?? "memory";
    this.#size = options.size ?? 0;
    this.#writable = options.writable ?? true;
    this.#spaceMax = options.spaceMax ?? Number.POSITIVE_INFINITY;
  }

  /** A file that holds `content`. */
  static of(content: Buffer, options: MemoryFileOptions = {}): MemoryFile {
    const file = new MemoryFile({ ...options, writable: true });
    file.write(0, content.length, content, 0);
    if (options.size !== undefined) file.truncate(options.size);
    file.#writable = options.writable ?? true;
    return file;
  }

  get writable(): boolean {
    return this.#writable;
  }

  get size(): number {
    return this.#size;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** What was asked for last. */
  get lockRequest(): LockRequest | undefined {
    return this.#lock;
  }

  /** A copy of the range, zeros past the end. */
  content(offset = 0, bytes = this.#size - offset): Buffer {
    const buffer = Buffer.alloc(bytes);
    this.read(offset, bytes, buffer, 0);
    return buffer;
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): void {
    this.#enter();
    for (const piece of pieces(offset, bytes)) {
      const block = this.#blocks.get(piece.index);
      const to = at + piece.done;
      if (block === undefined) buffer.fill(0, to, to + piece.bytes);
      else block.copy(buffer, to, piece.within, piece.within + piece.bytes);
    }
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): void {
    this.#enterToWrite();
    for (const piece of pieces(offset, bytes)) {
      const from = at + piece.done;
      buffer.copy(this.#blockToWrite(piece.index), piece.within, from, from + piece.bytes);
      this.#size = Math.max(this.#size, offset + piece.done + piece.bytes);
    }
  }

  writeVector(offset: number, parts: readonly Buffer[]): void {
    let to = offset;
    for (const part of parts) {
      this.write(to, part.length, part, 0);
      to += part.length;
    }
  }

  async copyFrom(source: HostFile, sourceOffset: number, offset: number, bytes: number): Promise<boolean> {
    return this.copyAtOnce(source, sourceOffset, offset, bytes);
  }

  readonly copiesAtOnce = true;

  copyAtOnce(source: HostFile, sourceOffset: number, offset: number, bytes: number): boolean {
    if (!(source instanceof MemoryFile) || sourceOffset + bytes > source.size) return false;
    this.write(offset, bytes, source.content(sourceOffset, bytes), 0);
    return true;
  }

  writeZeroes(offset: number, bytes: number, options: { unmap: boolean; cheapOnly: boolean }): void {
    this.#enterToWrite();
    this.#zero(offset, bytes, options.unmap);
    this.#size = Math.max(this.#size, offset + bytes);
  }

  discard(offset: number, bytes: number): void {
    this.#enterToWrite();
    const within = Math.min(bytes, this.#size - offset);
    if (within > 0) this.#zero(offset, within, true);
  }

  sync(): void {
    this.#enter();
  }

  truncate(size: number): void {
    this.#enterToWrite();
    if (size < this.#size) {
      const kept = Math.ceil(size / BLOCK);
      this.#blocks.get(kept - 1)?.fill(0, size - (kept - 1) * BLOCK);
      for (const index of [...this.#blocks.keys()]) if (index >= kept) this.#blocks.delete(index);
    }
    this.#size = size;
  }

  extentAt(offset: number): HostExtent {
    const first = Math.floor(offset / BLOCK);
    if (this.#blocks.has(first)) {
      let index = first;
      while (this.#blocks.has(index)) index++;
      return { bytes: index * BLOCK - offset, data: true };
    }
    let next = Number.POSITIVE_INFINITY;
    for (const index of this.#blocks.keys()) if (index > first && index < next) next = index;
    const end = next === Number.POSITIVE_INFINITY ? Number.MAX_SAFE_INTEGER : next * BLOCK;
    return { bytes: end - offset, data: false };
  }

  allocatedBytes(): number {
    return this.#blocks.size * BLOCK;
  }

  lock(request: LockRequest): void {
    this.#lock = request;
  }

  async setWritable(writable: boolean): Promise<void> {
    this.#writable = writable;
    if (this.#lock !== undefined) this.#lock = { ...this.#lock, write: writable };
  }

  async close(): Promise<void> {
    this.#closed = true;
  }

  #enter(): void {
    if (this.#closed) throw new BlockError("EIO", `'${this.path}' is closed`);
  }

  #enterToWrite(): void {
    this.#enter();
    if (!this.#writable) throw new BlockError("EPERM", `'${this.path}' is open for reading only`);
  }

  #blockToWrite(index: number): Buffer {
    let block = this.#blocks.get(index);
    if (block === undefined) {
      if ((this.#blocks.size + 1) * BLOCK > this.#spaceMax) {
        throw new BlockError("ENOSPC", `Could not write '${this.path}': No space left on device`);
      }
      block = Buffer.alloc(BLOCK);
      this.#blocks.set(index, block);
    }
    return block;
  }

  #zero(offset: number, bytes: number, unmap: boolean): void {
    // A range of 2**40 bytes has more blocks than are there.
    if (bytes / BLOCK > this.#blocks.size + 1024 && unmap) {
      this.#zeroPresent(offset, bytes);
      return;
    }
    for (const piece of pieces(offset, bytes)) {
      if (unmap && piece.bytes === BLOCK) this.#blocks.delete(piece.index);
      else if (!unmap || this.#blocks.has(piece.index)) {
        this.#blockToWrite(piece.index).fill(0, piece.within, piece.within + piece.bytes);
      }
    }
  }

  #zeroPresent(offset: number, bytes: number): void {
    for (const [index, block] of [...this.#blocks]) {
      const from = Math.max(0, offset - index * BLOCK);
      const to = Math.min(BLOCK, offset + bytes - index * BLOCK);
      if (from >= to) continue;
      if (to - from === BLOCK) this.#blocks.delete(index);
      else block.fill(0, from, to);
    }
  }
}

/** The parts of a range by block: block index, offset in it, bytes, and how many bytes came before. */
function* pieces(offset: number, bytes: number) {
  for (let done = 0; done < bytes; ) {
    const index = Math.floor((offset + done) / BLOCK);
    const within = offset + done - index * BLOCK;
    const length = Math.min(BLOCK - within, bytes - done);
    yield { index, within, bytes: length, done };
    done += length;
  }
}

import type { ImageFile } from "../image-file.ts";

const PAGE_BYTES = 64 * 1024;

/** An image file in memory for tests: sparse, growable, finishes everything at once. */
export class MemoryImage implements ImageFile {
  readonly pages = new Map<number, Buffer>();
  size = 0;
  flushes = 0;

  static from(bytes: Buffer): MemoryImage {
    const image = new MemoryImage();
    image.write(0, bytes.length, bytes, 0);
    return image;
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): void {
    this.#eachPage(offset, bytes, (page, within, part, done) => {
      const from = this.pages.get(page);
      if (from === undefined) buffer.fill(0, at + done, at + done + part);
      else from.copy(buffer, at + done, within, within + part);
    });
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): void {
    this.#eachPage(offset, bytes, (page, within, part, done) => {
      let into = this.pages.get(page);
      if (into === undefined) {
        into = Buffer.alloc(PAGE_BYTES);
        this.pages.set(page, into);
      }
      buffer.copy(into, within, at + done, at + done + part);
    });
    this.size = Math.max(this.size, offset + bytes);
  }

  writeZeroes(offset: number, bytes: number): void {
    this.discard(offset, bytes);
    this.size = Math.max(this.size, offset + bytes);
  }

  discard(offset: number, bytes: number): void {
    this.#eachPage(offset, bytes, (page, within, part) => {
      if (part === PAGE_BYTES) this.pages.delete(page);
      else this.pages.get(page)?.fill(0, within, within + part);
    });
  }

  flush(): void {
    this.flushes++;
  }

  truncate(size: number): void {
    if (size < this.size) {
      const last = Math.floor(size / PAGE_BYTES);
      for (const page of this.pages.keys()) if (page > last) this.pages.delete(page);
      this.pages.get(last)?.fill(0, size % PAGE_BYTES);
    }
    this.size = size;
  }

  /** All of it as one buffer; for small images. */
  bytes(): Buffer {
    const all = Buffer.alloc(this.size);
    this.read(0, this.size, all, 0);
    return all;
  }

  #eachPage(
    offset: number,
    bytes: number,
    visit: (page: number, within: number, part: number, done: number) => void,
  ): void {
    for (let done = 0; done < bytes; ) {
      const page = Math.floor((offset + done) / PAGE_BYTES);
      const within = (offset + done) % PAGE_BYTES;
      const part = Math.min(PAGE_BYTES - within, bytes - done);
      visit(page, within, part, done);
      done += part;
    }
  }
}

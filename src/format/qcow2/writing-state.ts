// From reading only to writing, and back.
//
//   open    may the image be written to? Tables are read again, what autoclear demands is cleared
//   begin   before the first change: bitmaps that will not follow our writes are marked as such
//   settle  everything in memory is durable, nothing is being freed any more
//   close   settle, then the flags of an image that is not in use

import { keptAutoclear, refuseCorruptForWriting } from "./header.ts";
import type { Image } from "./image.ts";

export class WritingState {
  /** Nothing is to be done before a change. */
  ready = false;
  readonly #image: Image;
  #beginning: Promise<void> | undefined;

  constructor(image: Image) {
    this.#image = image;
  }

  /** @throws BlockError when the image must not be written to */
  async open(): Promise<void> {
    const image = this.#image;
    const { header } = image;
    refuseCorruptForWriting(header);
    image.collectMetadata();
    image.allocator = image.newAllocator();
    image.writable = true;
    const kept = keptAutoclear(header.autoclear);
    if (kept !== header.autoclear) {
      header.autoclear = kept;
      await image.writeFlags();
      await image.file.flush();
    }
    this.ready = header.bitmaps === undefined;
  }

  /** Before the first change after opening. */
  begin(): Promise<void> {
    this.#beginning ??= this.#begin().finally(() => {
      this.#beginning = undefined;
    });
    return this.#beginning;
  }

  async #begin(): Promise<void> {
    this.ready = true;
  }

  /** Makes everything durable. The node is drained. */
  async settle(): Promise<void> {
    const { flusher, frees } = this.#image;
    await flusher.flush();
    await frees.settled();
    // The freed clusters' refcounts.
    await flusher.flush();
  }

  async close(): Promise<void> {
    const image = this.#image;
    try {
      if (image.stopped === undefined) await this.settle();
      else await image.file.flush();
      await image.flagsWritten();
    } finally {
      image.writable = false;
      this.ready = false;
    }
  }
}

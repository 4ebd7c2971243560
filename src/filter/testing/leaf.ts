// A host file as a leaf for the tests of this folder: peers of a layer do not import each other.

import type { Completion } from "../../base/completion.ts";
import { type Driver, type ImageDetails, WriteFlags } from "../../block/driver.ts";
import { ExtentKind, type ExtentSink } from "../../block/extent.ts";
import type { DriverFactory } from "../../block/open.ts";
import type { HostFile } from "../../sys/host-file.ts";

export class Leaf implements Driver {
  readonly driverName = "file";
  readonly supportsBacking = false;
  readonly clusterSize = 512;
  readonly growable: boolean;
  readonly #file: HostFile;

  constructor(file: HostFile, growable: boolean) {
    this.#file = file;
    this.growable = growable;
  }

  get size(): number {
    return this.#file.size;
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return this.#file.read(offset, bytes, buffer, at);
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return this.#file.write(offset, bytes, buffer, at);
  }

  writeVector(offset: number, parts: readonly Buffer[]): Completion {
    return this.#file.writeVector(offset, parts);
  }

  writeZeroes(offset: number, bytes: number, flags: number): Completion {
    const unmap = (flags & WriteFlags.MAY_UNMAP) !== 0;
    return this.#file.writeZeroes(offset, bytes, { unmap, cheapOnly: false });
  }

  discard(offset: number, bytes: number): Completion {
    return this.#file.discard(offset, bytes);
  }

  flush(): Completion {
    return this.#file.sync();
  }

  extents(offset: number, bytes: number, out: ExtentSink): void {
    for (let from = offset; from < offset + bytes; ) {
      const extent = this.#file.extentAt(from);
      const length = Math.min(extent.bytes, offset + bytes - from);
      if (!out.push(length, extent.data ? ExtentKind.DATA : ExtentKind.ZERO, from, false)) return;
      from += length;
    }
  }

  truncate(size: number): Completion {
    return this.#file.truncate(size);
  }

  async setWritable(): Promise<void> {}

  details(): ImageDetails {
    return {};
  }

  allocatedBytes(): number {
    return this.#file.allocatedBytes();
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}

/** Opens this file under any name. */
export function leafFactory(file: HostFile, growable: boolean): DriverFactory {
  return {
    driverName: "file",
    leaf: true,
    filename: (options) => String(options["filename"]),
    open: async () => new Leaf(file, growable),
  };
}

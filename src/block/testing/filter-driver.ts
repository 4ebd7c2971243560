// The least that a filter can be: it hands everything on, after a hook that may fail it or make it wait.

import type { Completion } from "../../base/completion.ts";
import type { Driver, DriverHost, ImageDetails } from "../driver.ts";
import type { ExtentSink } from "../extent.ts";
import type { BlockNode } from "../node.ts";
import type { Before } from "./interpose.ts";

export class FilterDriver implements Driver {
  readonly driverName = "filter";
  readonly growable = false;
  readonly supportsBacking = false;
  readonly isFilter = true;
  readonly clusterSize = 512;
  before: Before = () => {};
  readonly #host: DriverHost;

  constructor(host: DriverHost) {
    this.#host = host;
  }

  get size(): number {
    return this.#image.size;
  }

  get #image(): BlockNode {
    return this.#host.file!;
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return this.#call("read", offset, bytes, (image) => image.read(offset, bytes, buffer, at));
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return this.#call("write", offset, bytes, (image) => image.write(offset, bytes, buffer, at));
  }

  writeZeroes(offset: number, bytes: number, flags: number): Completion {
    return this.#call("writeZeroes", offset, bytes, (image) => image.writeZeroes(offset, bytes, flags));
  }

  discard(offset: number, bytes: number): Completion {
    return this.#call("discard", offset, bytes, (image) => image.discard(offset, bytes));
  }

  flush(): Completion {
    return this.#call("flush", 0, 0, (image) => image.flush());
  }

  extents(offset: number, bytes: number, out: ExtentSink): Completion {
    return this.#call("extents", offset, bytes, (image) => image.extents(offset, bytes, out));
  }

  async copyUp(offset: number, bytes: number, base: BlockNode | undefined, idle: boolean): Promise<number> {
    await this.before({ node: this.#host.name, operation: "copyUp", offset, bytes });
    return this.#image.copyUp(offset, bytes, base, idle);
  }

  truncate(size: number): Completion {
    return this.#image.truncate(size);
  }

  async setWritable(): Promise<void> {}

  details(): ImageDetails {
    return {};
  }

  allocatedBytes(): number {
    return -1;
  }

  async close(): Promise<void> {}

  #call(operation: string, offset: number, bytes: number, run: (image: BlockNode) => Completion): Completion {
    const waiting = this.before({ node: this.#host.name, operation, offset, bytes });
    return waiting === undefined ? run(this.#image) : waiting.then(() => run(this.#image));
  }
}

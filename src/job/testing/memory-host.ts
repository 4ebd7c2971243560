// A host in memory: files by path, and the drivers that open images in them. What happens to each call (it
// waits, it fails) is decided in one place, for all files.

import { BlockError } from "../../base/errors.ts";
import { silentLogger } from "../../base/logger.ts";
import type { Graph } from "../../block/graph.ts";
import { type DriverFactory, NodeOpener } from "../../block/open.ts";
import { type CreateOptions, createQcow2 } from "../../format/qcow2/create.ts";
import { qcow2Factory } from "../../format/qcow2/factory.ts";
import { hostImageFile } from "../../format/qcow2/image-file.ts";
import { RawDriver } from "../../format/raw/raw-driver.ts";
import { FileDriver } from "../../protocol/file/file-driver.ts";
import { type Delays, FaultFile } from "../../sys/fault-file.ts";
import type { HostFile, LockRequest } from "../../sys/host-file.ts";
import { MemoryFile } from "../../sys/memory-file.ts";

export class MemoryHost {
  readonly files = new Map<string, MemoryFile>();
  /** Files that are open, by path; one that may be written to is open once. */
  readonly open = new Map<string, number>();
  delays: Delays | undefined;
  /** Put over every file that is opened, nearest to the memory; for tests. */
  wrap: (file: HostFile) => HostFile = (file) => file;

  file(path: string): MemoryFile {
    const file = this.files.get(path);
    if (file === undefined)
      throw new BlockError("ENOENT", `Could not open '${path}': No such file or directory`);
    return file;
  }

  async createQcow2(path: string, options: CreateOptions, oddBytes = 0): Promise<void> {
    const file = new MemoryFile({ path });
    await createQcow2(hostImageFile(file), options);
    if (oddBytes > 0) {
      // Only foreign tools make disks whose size is no multiple of 512; the size stands at byte 24 of the
      // header.
      const size = Buffer.alloc(8);
      size.writeBigUInt64BE(BigInt(options.size - oddBytes));
      file.write(24, 8, size, 0);
    }
    this.files.set(path, file);
  }

  createRaw(path: string, content: Buffer): void {
    this.files.set(path, MemoryFile.of(content, { path }));
  }

  opener(graph: Graph): NodeOpener {
    return new NodeOpener(graph, [this.#fileFactory, rawFactory, qcow2Factory], silentLogger);
  }

  readonly #fileFactory: DriverFactory = {
    driverName: "file",
    leaf: true,
    filename: (options) => String(options["filename"]),
    open: async (_host, options, { readOnly }) => {
      const handle = new Handle(this, String(options["filename"]), !readOnly);
      handle.lock({ write: !readOnly, shareWrite: false });
      const file = new FaultFile(this.wrap(handle));
      // Asked for anew at each call: a test turns delays and faults off before it looks at the result.
      file.delays = {
        before: (kind) => this.delays?.before(kind),
        after: (kind) => this.delays?.after(kind),
        atOnce: (kind) => this.delays === undefined || this.delays.atOnce?.(kind) === true,
      };
      return new FileDriver(file);
    },
  };
}

const rawFactory: DriverFactory = {
  driverName: "raw",
  leaf: false,
  open: async (host) => new RawDriver(host),
};

/** One opening of a file: it may be read-only or closed while the file itself lives on. */
class Handle implements HostFile {
  readonly path: string;
  writable: boolean;
  readonly #host: MemoryHost;
  readonly #file: MemoryFile;
  #closed = false;

  constructor(host: MemoryHost, path: string, writable: boolean) {
    this.path = path;
    this.writable = writable;
    this.#host = host;
    this.#file = host.file(path);
    if ((host.open.get(path) ?? 0) > 0) {
      throw new BlockError(
        "IMAGE_LOCKED",
        `Failed to get lock: is another process using the image [${path}]?`,
      );
    }
    host.open.set(path, 1);
  }

  get size(): number {
    return this.#file.size;
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): void {
    this.#enter(false);
    this.#file.read(offset, bytes, buffer, at);
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): void {
    this.#enter(true);
    this.#file.write(offset, bytes, buffer, at);
  }

  writeVector(offset: number, parts: readonly Buffer[]): void {
    this.#enter(true);
    this.#file.writeVector(offset, parts);
  }

  readonly copiesAtOnce = true;

  copyAtOnce(source: HostFile, sourceOffset: number, offset: number, bytes: number): boolean {
    this.#enter(true);
    if (!(source instanceof Handle)) return false;
    source.#enter(false);
    return this.#file.copyAtOnce(source.#file, sourceOffset, offset, bytes);
  }

  writeZeroes(offset: number, bytes: number, options: { unmap: boolean; cheapOnly: boolean }): void {
    this.#enter(true);
    this.#file.writeZeroes(offset, bytes, options);
  }

  discard(offset: number, bytes: number): void {
    this.#enter(true);
    this.#file.discard(offset, bytes);
  }

  sync(): void {
    this.#enter(true);
  }

  truncate(size: number): void {
    this.#enter(true);
    this.#file.truncate(size);
  }

  extentAt(offset: number) {
    this.#enter(false);
    return this.#file.extentAt(offset);
  }

  allocatedBytes(): number {
    return this.#file.allocatedBytes();
  }

  lock(_request: LockRequest): void {}

  async setWritable(writable: boolean): Promise<void> {
    this.#enter(false);
    this.writable = writable;
  }

  async close(): Promise<void> {
    this.#enter(false);
    this.#closed = true;
    this.#host.open.delete(this.path);
  }

  #enter(writes: boolean): void {
    if (this.#closed) throw new Error(`'${this.path}' is used after it was closed`);
    if (writes && !this.writable)
      throw new Error(`'${this.path}' is changed, but it is open for reading only`);
  }
}

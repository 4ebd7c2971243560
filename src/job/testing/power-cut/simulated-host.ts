// A host whose files are simulated: every change and every sync goes into a log (host-log.ts), and each call
// may wait before it reaches the file and before it is answered, as the scheduler wants it.
//
// A sync waits in its middle too: what reaches the file then is not covered by it.

import type { Completion } from "../../../base/completion.ts";
import { BlockError } from "../../../base/errors.ts";
import { silentLogger } from "../../../base/logger.ts";
import type { Graph } from "../../../block/graph.ts";
import { type DriverFactory, NodeOpener } from "../../../block/open.ts";
import { qcow2Factory } from "../../../format/qcow2/factory.ts";
import { RawDriver } from "../../../format/raw/raw-driver.ts";
import { FileDriver } from "../../../protocol/file/file-driver.ts";
import type { Delays, FaultKind } from "../../../sys/fault-file.ts";
import type { HostExtent, HostFile, LockRequest } from "../../../sys/host-file.ts";
import type { HostEvent } from "./host-log.ts";
import { type FileContent, readSectors, SECTOR, type SectorChange, sectorChanges } from "./sectors.ts";

const LOOK_BYTES = 16;

/** How the host copies from file to file. */
export interface HostCopies {
  /** Undefined: not at all. The share of calls that give up after a part. */
  readonly failing: number | undefined;
  readonly sharesSpace: boolean;
  chance(probability: number): boolean;
}

export class SimulatedHost {
  readonly files = new Map<string, FileContent>();
  readonly log: HostEvent[] = [];
  readonly open = new Set<string>();
  /** Asked before and after each call. */
  delays: Delays | undefined;
  copies: HostCopies = { failing: undefined, sharesSpace: false, chance: () => false };
  copied = 0;
  copiedAtOnce = 0;
  /** Put over every file that is opened: breaks a rule on purpose. */
  wrap: (file: SimulatedFile) => HostFile = (file) => file;
  #syncs = 0;

  constructor(files: ReadonlyMap<string, FileContent>) {
    for (const [path, content] of files) this.files.set(path, content);
  }

  /** An empty file, its name durable. */
  create(path: string): SimulatedFile {
    this.files.set(path, { sectors: new Map(), size: 0 });
    this.log.push({ kind: "create", path });
    return new SimulatedFile(this, path, true);
  }

  file(path: string, writable: boolean): SimulatedFile {
    if (!this.files.has(path))
      throw new BlockError("ENOENT", `Could not open '${path}': No such file or directory`);
    return new SimulatedFile(this, path, writable);
  }

  opener(graph: Graph): NodeOpener {
    return new NodeOpener(graph, [this.#fileFactory, rawFactory, qcow2Factory], silentLogger);
  }

  nextSync(): number {
    return this.#syncs++;
  }

  readonly #fileFactory: DriverFactory = {
    driverName: "file",
    leaf: true,
    filename: (options) => String(options["filename"]),
    open: async (_host, options, { readOnly }) => {
      const path = String(options["filename"]);
      if (this.open.has(path)) throw new BlockError("IMAGE_LOCKED", `Failed to get lock on '${path}'`);
      const file = this.file(path, !readOnly);
      this.open.add(path);
      return new FileDriver(this.wrap(file));
    },
  };
}

const rawFactory: DriverFactory = {
  driverName: "raw",
  leaf: false,
  open: async (host) => new RawDriver(host),
};

/** One opening of a file. */
export class SimulatedFile implements HostFile {
  readonly path: string;
  writable: boolean;
  readonly host: SimulatedHost;
  /** The sectors belong to this host alone, which may change them. */
  #owned = false;
  #closed = false;

  constructor(host: SimulatedHost, path: string, writable: boolean) {
    this.host = host;
    this.path = path;
    this.writable = writable;
  }

  get content(): FileContent {
    return this.host.files.get(this.path)!;
  }

  get size(): number {
    return this.content.size;
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    this.#enter(false);
    // A look at what is cached: the driver goes on without it where that would wait.
    if (bytes <= LOOK_BYTES) return readSectors(this.content, offset, bytes, buffer, at);
    return this.#call("read", () => readSectors(this.content, offset, bytes, buffer, at));
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    this.#enter(true);
    return this.#call("write", () =>
      this.#change("write", offset, bytes, Buffer.from(buffer.subarray(at, at + bytes))),
    );
  }

  writeVector(offset: number, parts: readonly Buffer[]): Completion {
    this.#enter(true);
    return this.#call("write", () => {
      const content = Buffer.concat(parts);
      this.#change("write", offset, content.length, content);
    });
  }

  writeZeroes(offset: number, bytes: number, options: { unmap: boolean; cheapOnly: boolean }): Completion {
    this.#enter(true);
    return this.#call("zeroes", () =>
      this.#change(options.unmap ? "punch" : "zero", offset, bytes, undefined),
    );
  }

  discard(offset: number, bytes: number): Completion {
    this.#enter(true);
    return this.#call("discard", () => {
      const within = Math.min(bytes, this.size - offset);
      if (within > 0) this.#change("punch", offset, within, undefined);
    });
  }

  async copyFrom(source: HostFile, sourceOffset: number, offset: number, bytes: number): Promise<boolean> {
    const { copies } = this.host;
    const from = source instanceof SimulatedFile ? source : (source as { inner?: SimulatedFile }).inner;
    if (copies.failing === undefined || from === undefined || sourceOffset + bytes > from.size) return false;
    this.#enter(true);
    const fails = copies.chance(copies.failing);
    await this.#call("write", () => {
      const content = Buffer.alloc(fails ? Math.floor(bytes / 2) : bytes);
      readSectors(from.content, sourceOffset, content.length, content, 0);
      this.#change("copy", offset, content.length, content);
    });
    if (!fails) this.host.copied++;
    return !fails;
  }

  get copiesAtOnce(): boolean {
    return this.host.copies.failing !== undefined;
  }

  copyAtOnce(source: HostFile, sourceOffset: number, offset: number, bytes: number): boolean {
    const { copies } = this.host;
    const from = source instanceof SimulatedFile ? source : (source as { inner?: SimulatedFile }).inner;
    if (copies.failing === undefined || from === undefined || sourceOffset + bytes > from.size) return false;
    this.#enter(true);
    const fails = copies.chance(copies.failing);
    const content = Buffer.alloc(fails ? Math.floor(bytes / 2) : bytes);
    readSectors(from.content, sourceOffset, content.length, content, 0);
    this.#change("copy", offset, content.length, content);
    if (!fails) this.host.copiedAtOnce++;
    return !fails;
  }

  sharesSpaceWith(): boolean {
    return this.host.copies.failing !== undefined && this.host.copies.sharesSpace;
  }

  sync(): Completion {
    this.#enter(true);
    return this.#call("sync", () => {
      const { log, delays } = this.host;
      const id = this.host.nextSync();
      log.push({ kind: "sync begins", path: this.path, id });
      const end = () => {
        log.push({ kind: "sync ends", path: this.path, id });
      };
      const waiting = delays?.before("sync");
      return waiting === undefined ? end() : waiting.then(end);
    });
  }

  truncate(size: number): Completion {
    this.#enter(true);
    return this.#call("truncate", () => {
      const old = this.content;
      const gone = size >= old.size ? [] : [...old.sectors.keys()].filter((index) => index * SECTOR >= size);
      const changes = gone.map((index) => ({ index, content: undefined, end: 0 }));
      this.#apply(`truncate ${size}`, changes, size);
    });
  }

  extentAt(offset: number): HostExtent {
    this.#enter(false);
    const { sectors, size } = this.content;
    const data = sectors.has(Math.floor(offset / SECTOR));
    let end = Math.floor(offset / SECTOR) + 1;
    while (end * SECTOR < size && sectors.has(end) === data) end++;
    if (!data && end * SECTOR >= size) return { bytes: Number.MAX_SAFE_INTEGER - offset, data };
    return { bytes: end * SECTOR - offset, data };
  }

  allocatedBytes(): number {
    return this.content.sectors.size * SECTOR;
  }

  lock(_request: LockRequest): void {}

  async setWritable(writable: boolean): Promise<void> {
    this.#enter(false);
    this.writable = writable;
  }

  async close(): Promise<void> {
    this.#enter(false);
    this.#closed = true;
    this.host.open.delete(this.path);
  }

  /** Of a broken rule: the last sync never was. */
  forgetSync(): void {
    this.host.log.push({ kind: "sync was not", path: this.path });
  }

  #change(what: string, offset: number, bytes: number, content: Buffer | undefined): void {
    const old = this.content;
    const size = Math.max(old.size, offset + bytes);
    this.#apply(`${what} ${offset}+${bytes}`, sectorChanges(old, offset, bytes, content), size);
  }

  #apply(words: string, sectors: SectorChange[], size: number): void {
    const old = this.content;
    const map = this.#owned ? old.sectors : new Map(old.sectors);
    this.#owned = true;
    for (const { index, content } of sectors) {
      if (content === undefined) map.delete(index);
      else map.set(index, content);
    }
    this.host.files.set(this.path, { sectors: map, size });
    this.host.log.push({ kind: "change", path: this.path, words, sectors, size });
  }

  #call(kind: FaultKind, work: () => Completion): Completion {
    const { delays } = this.host;
    const before = delays?.before(kind);
    const after = delays?.after(kind);
    return before === undefined && after === undefined ? work() : delayed(before, work, after);
  }

  #enter(writes: boolean): void {
    if (this.#closed) throw new Error(`'${this.path}' is used after it was closed`);
    if (writes && !this.writable)
      throw new Error(`'${this.path}' is changed, but it is open for reading only`);
  }
}

async function delayed(
  before: Promise<void> | undefined,
  work: () => Completion,
  after: Promise<void> | undefined,
) {
  await before;
  await work();
  await after;
}

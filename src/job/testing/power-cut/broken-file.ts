// A file through which the driver's rules of order are broken on purpose. It knows what stands where it is
// written: the tables of the image that is open on it.

import type { Completion } from "../../../base/completion.ts";
import type { Graph } from "../../../block/graph.ts";
import type { Scheduler } from "../../../block/testing/scheduler.ts";
import type { Qcow2Driver } from "../../../format/qcow2/driver.ts";
import type { Image } from "../../../format/qcow2/image.ts";
import { entryOffset, reftableOffset } from "../../../format/qcow2/l2-entry.ts";
import type { HostExtent, HostFile, LockRequest } from "../../../sys/host-file.ts";
import type { SimulatedFile } from "./simulated-host.ts";

/** What is written; what stands where nothing refers to yet counts as data. */
export type Place = "header" | "name" | "l1" | "l2" | "reftable" | "refcounts" | "data";

export interface Breakage {
  /** After a sync that made `first` durable, a write of `then` comes as if that sync had never been. */
  readonly unordered?: readonly (readonly [
    first: Place,
    then: Place | ((offset: number, bytes: number) => boolean),
  ])[];
  /** Syncs are answered without being done when one of these was written since the last one. */
  readonly skippedSyncs?: readonly Place[];
  /** Writes there are answered at once, and done some steps later. */
  readonly late?: Place | "punch";
  /** Writes there reach the file only after the next sync but one has begun. */
  readonly held?: Place;
  /** Changes what is written to a place. */
  readonly change?: { readonly place: Place; content(image: Image, content: Buffer): void };
}

export interface World {
  readonly graph: Graph;
  readonly scheduler: Scheduler;
}

interface HeldWrite {
  syncs: number;
  readonly offset: number;
  readonly content: Buffer;
}

export class BrokenFile implements HostFile {
  readonly inner: SimulatedFile;
  readonly #breakage: Breakage;
  readonly #world: World;
  #sinceSync = new Set<Place>();
  #coveredByLast = new Set<Place>();
  #held: HeldWrite[] = [];

  constructor(inner: SimulatedFile, breakage: Breakage, world: World) {
    this.inner = inner;
    this.#breakage = breakage;
    this.#world = world;
  }

  get path(): string {
    return this.inner.path;
  }

  get writable(): boolean {
    return this.inner.writable;
  }

  get size(): number {
    return this.inner.size;
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return this.inner.read(offset, bytes, buffer, at);
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return this.#write(offset, Buffer.from(buffer.subarray(at, at + bytes)));
  }

  writeVector(offset: number, parts: readonly Buffer[]): Completion {
    return this.#write(offset, Buffer.concat(parts));
  }

  copyFrom(source: HostFile, sourceOffset: number, offset: number, bytes: number): Promise<boolean> {
    this.#note(this.#placeOf(offset), offset, bytes);
    return this.inner.copyFrom(source, sourceOffset, offset, bytes);
  }

  get copiesAtOnce(): boolean {
    return this.inner.copiesAtOnce;
  }

  copyAtOnce(source: HostFile, sourceOffset: number, offset: number, bytes: number): boolean {
    const place = this.#placeOf(offset);
    // What is to come late goes by way of a write.
    if (this.#breakage.late === place || this.#breakage.held === place) return false;
    this.#note(place, offset, bytes);
    return this.inner.copyAtOnce(source, sourceOffset, offset, bytes);
  }

  sharesSpaceWith(): boolean {
    return this.inner.sharesSpaceWith();
  }

  writeZeroes(offset: number, bytes: number, options: { unmap: boolean; cheapOnly: boolean }): Completion {
    this.#note(this.#placeOf(offset), offset, bytes);
    return this.inner.writeZeroes(offset, bytes, options);
  }

  discard(offset: number, bytes: number): Completion {
    if (this.#breakage.late !== "punch") return this.inner.discard(offset, bytes);
    this.#later(() => this.inner.discard(offset, bytes));
  }

  sync(): Completion {
    const since = this.#sinceSync;
    if (this.#breakage.skippedSyncs?.some((place) => since.has(place))) return;
    this.#sinceSync = new Set();
    const done = this.inner.sync();
    this.#releaseHeld();
    if (done === undefined) this.#coveredByLast = since;
    else {
      return done.then(() => {
        this.#coveredByLast = since;
      });
    }
  }

  truncate(size: number): Completion {
    return this.inner.truncate(size);
  }

  extentAt(offset: number): HostExtent {
    return this.inner.extentAt(offset);
  }

  allocatedBytes(): number {
    return this.inner.allocatedBytes();
  }

  lock(request: LockRequest): void {
    this.inner.lock(request);
  }

  setWritable(writable: boolean): Promise<void> {
    return this.inner.setWritable(writable);
  }

  close(): Promise<void> {
    return this.inner.close();
  }

  #write(offset: number, content: Buffer): Completion {
    const place = this.#placeOf(offset);
    const { late, held, change } = this.#breakage;
    const image = this.#image();
    if (change?.place === place && image !== undefined) change.content(image, content);
    this.#note(place, offset, content.length);
    if (held === place) {
      this.#held.push({ syncs: 0, offset, content });
      return;
    }
    if (late !== place) return this.inner.write(offset, content.length, content, 0);
    this.#later(() => this.inner.write(offset, content.length, content, 0));
  }

  /** What was written is known to the sync that comes; the one that was may turn out never to have been. */
  #note(place: Place, offset: number, bytes: number): void {
    for (const [first, then] of this.#breakage.unordered ?? []) {
      const applies = typeof then === "string" ? then === place : then(offset, bytes);
      if (!applies || !this.#coveredByLast.has(first)) continue;
      this.#coveredByLast = new Set();
      this.inner.forgetSync();
    }
    this.#sinceSync.add(place);
  }

  #later(work: () => Completion): void {
    const wait = async () => {
      for (let steps = this.#breakage.late === "punch" ? 12 : 2; steps > 0; steps--) {
        await this.#world.scheduler.always("late");
      }
      await work();
    };
    // The file was closed meanwhile: then it never happens.
    wait().catch(() => undefined);
  }

  #releaseHeld(): void {
    const due = this.#held.filter((write) => ++write.syncs >= 2);
    this.#held = this.#held.filter((write) => !due.includes(write));
    for (const { offset, content } of due) void this.inner.write(offset, content.length, content, 0);
  }

  #image(): Image | undefined {
    for (const { filename, driver } of this.#world.graph.nodes) {
      if (filename === this.path && driver.driverName === "qcow2") return (driver as Qcow2Driver).image;
    }
    return undefined;
  }

  #placeOf(offset: number): Place {
    const image = this.#image();
    if (image === undefined) return "data";
    const { clusterSize, header, l1, refcounts } = image;
    if (offset < 512) return "header";
    if (offset < clusterSize) return "name";
    const within = (start: number, bytes: number) => offset >= start && offset < start + bytes;
    if (within(l1.offset, l1.entries * 8)) return "l1";
    if (within(header.refcountTableOffset, header.refcountTableClusters * clusterSize)) return "reftable";
    const cluster = offset - (offset % clusterSize);
    if (names(l1.words, entryOffset, cluster)) return "l2";
    return names(refcounts.table.words, reftableOffset, cluster) ? "refcounts" : "data";
  }
}

function names(
  words: Uint32Array,
  offsetOf: (high: number, low: number) => number,
  cluster: number,
): boolean {
  for (let i = 0; i < words.length; i += 2) {
    if (words[i + 1] !== 0 && offsetOf(words[i]!, words[i + 1]!) === cluster) return true;
  }
  return false;
}

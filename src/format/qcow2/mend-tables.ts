// Repairs mapping tables: entries that cannot be are made right, or given up (mend-entry.ts). What they are
// counted by is the business of the repair of refcounts, which follows.
//
//   1. A table is changed where it is only if nothing but entries of its kind names its cluster. Otherwise
//      it may be the data of somebody: what is mended is a copy behind the end of the file.
//   2. Where refcounts are so narrow that they cannot tell how often a cluster is named, the names that are
//      too many get a copy of it.
//   3. What is lost is told, by guest offset.
//   4. Memory: counts of one window of clusters twice (64 MiB each), a bit for each of its clusters, one
//      table, one chunk of an L1 table.

import { writeU64 } from "../../base/bytes.ts";
import { BlockError } from "../../base/errors.ts";
import { alignUp, divideUp } from "../../base/units.ts";
import { countAll } from "./check.ts";
import { CheckTally } from "./check-report.ts";
import type { CheckedImage } from "./checked-image.ts";
import {
  ClusterKind,
  clusterKind,
  compressedBytes,
  compressedHigh,
  compressedOffset,
  entryOffset,
  L1_ENTRY_BYTES,
  L1_RESERVED_HIGH,
  L1_RESERVED_LOW,
  OFFSET_MASK_HIGH,
  OFFSET_MASK_LOW,
} from "./l2-entry.ts";
import { type EntryWorld, findByOneBit, Mended, mendEntry } from "./mend-entry.ts";
import { maxRefcount } from "./refcount-width.ts";
import { ReferenceCounts, type Window, windowsOf } from "./reference-counts.ts";
import type { Snapshot } from "./snapshots.ts";

/** Clusters that are copied at the most: more than that is no damage, but an attack. */
const COPIES_MAX = 65536;
const CHUNK_ENTRIES = 8192;
/** In the header: where the L1 table is. */
const L1_OFFSET_AT = 40;
/** Lost stretches that are told one by one. */
const LOST_LINES_MAX = 200;

/** One L1 table: the active one, or that of a snapshot. */
interface L1 {
  readonly snapshot: Snapshot | undefined;
  offset: number;
  readonly entries: number;
}

/**
 * Mends the tables. The snapshots whose own L1 table may be somebody's data and needs a change are handed
 * back: they are to be dropped.
 * @throws BlockError EFBIG when too much would have to be copied; what the host says
 */
export async function mendTables(
  image: CheckedImage,
  windowClusters: number,
  tell: (line: string) => void,
): Promise<Set<Snapshot>> {
  const mender = new TableMender(image, tell);
  const clusterCount = divideUp(image.file.size, image.geometry.clusterSize) + 1;
  for (const window of windowsOf(clusterCount, windowClusters)) await mender.mendWindow(window);
  mender.tellRest();
  return mender.droppedSnapshots;
}

class TableMender {
  readonly droppedSnapshots = new Set<Snapshot>();
  readonly #image: CheckedImage;
  readonly #tell: (line: string) => void;
  readonly #fileBytes: number;
  readonly #l1s: L1[];
  readonly #table: Buffer;
  readonly #words: Uint32Array;
  readonly #refcountMax: number;
  /** All references, and those of L1 entries to L2 tables. */
  #all!: ReferenceCounts;
  #toTables!: ReferenceCounts;
  #world!: EntryWorld;
  /** A bit for each cluster of the window: a table that several L1 entries name, and that is done. */
  #done!: Uint8Array;
  #tail: number;
  #copies = 0;
  #lost = 0;

  constructor(image: CheckedImage, tell: (line: string) => void) {
    const { header, geometry, file, snapshots } = image;
    this.#image = image;
    this.#tell = tell;
    this.#fileBytes = file.size;
    this.#tail = divideUp(file.size, geometry.clusterSize);
    this.#table = Buffer.alloc(geometry.clusterSize);
    this.#words = new Uint32Array(geometry.clusterSize / 4);
    this.#refcountMax = maxRefcount(header.refcountOrder);
    this.#l1s = [{ snapshot: undefined, offset: header.l1TableOffset, entries: header.l1Size }];
    for (const snapshot of snapshots.snapshots) {
      this.#l1s.push({ snapshot, offset: snapshot.l1TableOffset, entries: snapshot.l1Size });
    }
  }

  async mendWindow(window: Window): Promise<void> {
    const { geometry } = this.#image;
    this.#done = new Uint8Array(divideUp(window.end - window.first, 8));
    const unheard = new CheckTally();
    // Wide counts, whatever the image's refcounts can hold.
    const wide = { ...this.#image, geometry: { ...geometry, refcountBits: 64 } };
    this.#all = (await countAll(wide, window, unheard, true)).counts;
    this.#toTables = new ReferenceCounts(window, wide.geometry, this.#fileBytes, unheard);
    for (const l1 of this.#l1s) {
      await this.#eachEntry(l1, (high, low) => {
        const offset = entryOffset(high, low);
        if (this.#isTablePlace(offset)) this.#toTables.add(offset, geometry.clusterSize);
      });
    }
    const orphans = await findOrphans(this.#all, window, this.#image, this.#tail);
    this.#world = {
      clusterBits: geometry.clusterBits,
      extended: geometry.extended,
      zeroAllowed: this.#image.header.version >= 3,
      isInFile: (offset, bytes) => this.#isInFile(offset, bytes),
      orphans,
    };
    for (const l1 of this.#l1s) await this.#mendL1(l1, window);
  }

  tellRest(): void {
    if (this.#lost > LOST_LINES_MAX)
      this.#tell(`... and ${this.#lost - LOST_LINES_MAX} more stretches are lost`);
  }

  // --- L1 tables -------------------------------------------------------------------------------------------

  async #mendL1(l1: L1, window: Window): Promise<void> {
    if (l1.snapshot !== undefined && this.droppedSnapshots.has(l1.snapshot)) return;
    await this.#eachEntry(l1, async (high, low, index) => {
      const offset = entryOffset(high, low);
      const cluster = Math.floor(offset / this.#image.geometry.clusterSize);
      if (!this.#isTablePlace(offset)) {
        if (!window.isFirst) return;
        const found = findByOneBit(offset, this.#table.length, this.#world.orphans);
        if (found !== undefined && offset !== 0) {
          this.#tell(`Repairing L1 entry ${index}: its table is at ${found}`);
          await this.#setEntry(l1, index, high, found);
          return;
        }
        if (offset !== 0) this.#lose(l1, index * this.#l2Span, this.#l2Span);
        await this.#setEntry(l1, index, 0, 0);
        return;
      }
      if (!this.#all.covers(cluster)) return;
      if (await this.#mendTable(l1, index, high, offset)) return;
      const reserved = (high & L1_RESERVED_HIGH) !== 0 || (low & L1_RESERVED_LOW) !== 0;
      if (reserved) await this.#setEntry(l1, index, high, offset);
    });
  }

  get #l2Span(): number {
    return this.#image.geometry.l2Span;
  }

  /** Points an L1 entry to `offset`; 0: to nothing. */
  async #setEntry(l1: L1, index: number, high: number, offset: number): Promise<void> {
    const { file } = this.#image;
    if (this.#isShared(l1)) {
      if (l1.snapshot !== undefined) {
        this.droppedSnapshots.add(l1.snapshot);
        return;
      }
      await this.#moveActiveL1(l1);
    }
    const entry = Buffer.alloc(L1_ENTRY_BYTES);
    entry.writeUInt32BE(offset === 0 ? 0 : ((high & 0x8000_0000) | Math.floor(offset / 2 ** 32)) >>> 0, 0);
    entry.writeUInt32BE(offset % 2 ** 32, 4);
    await file.write(l1.offset + index * L1_ENTRY_BYTES, L1_ENTRY_BYTES, entry, 0);
  }

  #isShared({ offset, entries }: L1): boolean {
    const { clusterSize } = this.#image.geometry;
    const end = Math.min(offset + entries * L1_ENTRY_BYTES, this.#fileBytes);
    for (let cluster = Math.floor(offset / clusterSize); cluster * clusterSize < end; cluster++) {
      if (this.#all.covers(cluster) && this.#all.get(cluster) > 1) return true;
    }
    return false;
  }

  async #moveActiveL1(l1: L1): Promise<void> {
    const { file, header, geometry } = this.#image;
    const bytes = l1.entries * L1_ENTRY_BYTES;
    const to = this.#claim(divideUp(bytes, geometry.clusterSize)) * geometry.clusterSize;
    const area = Buffer.alloc(alignUp(bytes, geometry.clusterSize));
    await file.read(l1.offset, bytes, area, 0);
    await file.write(to, area.length, area, 0);
    await file.flush();
    const field = Buffer.alloc(8);
    writeU64(field, to, 0);
    await file.write(L1_OFFSET_AT, 8, field, 0);
    await file.flush();
    this.#tell(`Repairing L1 table: its place is that of something else too; it moves to ${to}`);
    l1.offset = to;
    header.l1TableOffset = to;
  }

  // --- L2 tables -------------------------------------------------------------------------------------------

  /** Whether the table stands elsewhere now, and the L1 entry says so. */
  async #mendTable(l1: L1, index: number, high: number, offset: number): Promise<boolean> {
    const { file, geometry } = this.#image;
    const cluster = offset / geometry.clusterSize;
    const names = this.#toTables.get(cluster);
    const others = this.#all.get(cluster) - names;
    const tooMany = this.#all.get(cluster) > this.#refcountMax;
    const bit = cluster - this.#all.window.first;
    const done = (this.#done[bit >> 3]! & (1 << (bit & 7))) !== 0;
    if (names > 1 && done && !tooMany) return false;
    await file.read(offset, geometry.clusterSize, this.#table, 0);
    for (let i = 0; i < this.#words.length; i++) this.#words[i] = this.#table.readUInt32BE(i * 4);
    const changed = await this.#mendEntries(l1, index);
    this.#done[bit >> 3]! |= 1 << (bit & 7);
    if (changed)
      for (let i = 0; i < this.#words.length; i++) this.#table.writeUInt32BE(this.#words[i]!, i * 4);
    if (tooMany || others > 0) {
      const to = this.#claim(1) * geometry.clusterSize;
      await file.write(to, geometry.clusterSize, this.#table, 0);
      this.#all.remove(cluster);
      this.#toTables.remove(cluster);
      this.#tell(`Repairing L1 entry ${index}: its table is something else too; a copy takes its place`);
      await this.#setEntry(l1, index, high, to);
      return true;
    }
    if (changed) await file.write(offset, geometry.clusterSize, this.#table, 0);
    return false;
  }

  async #mendEntries(l1: L1, index: number): Promise<boolean> {
    const { geometry } = this.#image;
    const step = geometry.l2EntryBytes / 4;
    let changed = false;
    for (let at = 0; at < this.#words.length; at += step) {
      const mended = mendEntry(this.#words, at, this.#world);
      if (mended !== Mended.NOTHING) changed = true;
      if (mended === Mended.LOST) {
        this.#lose(l1, index * this.#l2Span + (at / step) * geometry.clusterSize, geometry.clusterSize);
      }
      if (this.#refcountMax < 255 && (await this.#separate(at))) changed = true;
    }
    return changed;
  }

  /** Gives an entry clusters of its own where those that it names are named too often. */
  async #separate(at: number): Promise<boolean> {
    const { geometry, file } = this.#image;
    const { clusterSize, clusterBits } = geometry;
    const high = this.#words[at]!;
    const low = this.#words[at + 1]!;
    const kind = clusterKind(high, low, geometry.extended);
    const compressed = kind === ClusterKind.COMPRESSED;
    if (!compressed && kind !== ClusterKind.NORMAL && kind !== ClusterKind.ZERO_ALLOCATED) return false;
    const offset = compressed ? compressedOffset(high, low, clusterBits) : entryOffset(high, low);
    const bytes = compressed ? compressedBytes(high, low, clusterBits) : clusterSize;
    const first = Math.floor(offset / clusterSize);
    const last = Math.floor((offset + bytes - 1) / clusterSize);
    let tooMany = false;
    for (let cluster = first; cluster <= last; cluster++) {
      if (this.#all.covers(cluster) && this.#all.get(cluster) > this.#refcountMax) tooMany = true;
    }
    if (!tooMany) return false;
    const to = this.#claim(divideUp(bytes, clusterSize)) * clusterSize;
    const content = Buffer.alloc(bytes);
    await file.read(offset, bytes, content, 0);
    await file.write(to, bytes, content, 0);
    for (let cluster = first; cluster <= last; cluster++) {
      if (this.#all.covers(cluster)) this.#all.remove(cluster);
    }
    if (compressed) this.#words[at] = compressedHigh(to, bytes, clusterBits);
    else this.#words[at] = ((high & ~OFFSET_MASK_HIGH) | Math.floor(to / 2 ** 32)) >>> 0;
    this.#words[at + 1] = (compressed ? to % 2 ** 32 : (low & ~OFFSET_MASK_LOW) | (to % 2 ** 32)) >>> 0;
    return true;
  }

  // --- places ----------------------------------------------------------------------------------------------

  #isInFile(offset: number, bytes: number): boolean {
    return offset + bytes - this.#fileBytes < this.#image.geometry.clusterSize;
  }

  #isTablePlace(offset: number): boolean {
    const { clusterSize } = this.#image.geometry;
    // A table of which the file holds nothing is lost, even if its place could still be one.
    return offset !== 0 && offset % clusterSize === 0 && offset < this.#fileBytes;
  }

  /** Clusters behind everything. */
  #claim(count: number): number {
    this.#copies += count;
    if (this.#copies > COPIES_MAX) {
      throw new BlockError(
        "EFBIG",
        `more than ${COPIES_MAX} clusters would have to be copied to repair the image`,
      );
    }
    const first = this.#tail;
    this.#tail += count;
    return first;
  }

  #lose({ snapshot }: L1, guestOffset: number, bytes: number): void {
    const { size } = this.#image.header;
    if (snapshot === undefined && guestOffset >= size) return;
    this.#lost++;
    if (this.#lost > LOST_LINES_MAX) return;
    const where = snapshot === undefined ? "" : ` of snapshot ${snapshot.id}`;
    this.#tell(`Lost guest data${where}: ${bytes} bytes at offset ${guestOffset}`);
  }

  async #eachEntry(
    l1: L1,
    visit: (high: number, low: number, index: number) => Promise<void> | void,
  ): Promise<void> {
    const inFile = Math.max(0, Math.ceil((this.#fileBytes - l1.offset) / L1_ENTRY_BYTES));
    const entries = Math.min(l1.entries, inFile);
    const from = l1.offset;
    const chunk = Buffer.alloc(Math.min(entries, CHUNK_ENTRIES) * L1_ENTRY_BYTES);
    for (let first = 0; first < entries; first += CHUNK_ENTRIES) {
      const count = Math.min(CHUNK_ENTRIES, entries - first);
      await this.#image.file.read(from + first * L1_ENTRY_BYTES, count * L1_ENTRY_BYTES, chunk, 0);
      for (let i = 0; i < count; i++) {
        const high = chunk.readUInt32BE(i * 8);
        const low = chunk.readUInt32BE(i * 8 + 4);
        if (high === 0 && low === 0) continue;
        const done = visit(high, low, first + i);
        if (done !== undefined) await done;
      }
    }
  }
}

/** Clusters that are in use by their refcount and that nothing refers to. */
async function findOrphans(
  counts: ReferenceCounts,
  window: Window,
  { refcounts, geometry }: CheckedImage,
  clusterCount: number,
): Promise<Set<number>> {
  const orphans = new Set<number>();
  const windowEnd = Math.min(window.end, clusterCount);
  for (let first = window.first; first < windowEnd; ) {
    const index = Math.floor(first / geometry.refcountBlockEntries);
    const end = Math.min((index + 1) * geometry.refcountBlockEntries, windowEnd);
    const isThere = refcounts.blockOffset(index) !== 0 && refcounts.isUsable(index);
    const block = isThere ? await refcounts.block(index) : undefined;
    for (let cluster = first; block !== undefined && cluster < end; cluster++) {
      if (counts.get(cluster) === 0 && refcounts.entry(block, cluster) > 0) orphans.add(cluster);
      if (orphans.size === ORPHANS_MAX) return orphans;
    }
    first = end;
  }
  return orphans;
}

/** More are no help: who would tell them apart. */
const ORPHANS_MAX = 100_000;

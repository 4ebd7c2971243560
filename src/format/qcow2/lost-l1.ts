// Finds the active L1 table of an image whose header names another place.
//
//   header ──?──> nowhere, or something else        | header | refcounts | L1 | L2 | data | L2 | data ...
//                                                     what is in use, and nothing but an L1 table names: [L1]
//
//   1. A table is believed where the header says it is as soon as one of its entries names something like an
//      L2 table with data. Otherwise it is searched for: the disk may be empty, or its table lost.
//   2. Searched are clusters that are in use by their refcounts, and that neither snapshots nor refcounts nor
//      bitmaps name: the L1 table, its L2 tables and the data. Where refcounts are broken too, all of them.
//   3. A cluster could be the table if each of its entries that is not zero names something like an L2 table
//      without fault, one of them with data. Guests may keep such things in their data: what the tree of
//      another one names is out, and so is what its own tree names any part of.
//   4. One that is left is taken; several are a question for the user. Where the list of snapshots is broken
//      nothing is taken: it could be the table of a snapshot, and the disk would be an old one.
//   5. A table that begins with 4 KiB of zeros is not found, nor one among more than four million clusters.
//      What could be the rest of such a table, which would show the disk shifted, is a question too.

import { isZero } from "../../base/bytes.ts";
import { divideUp } from "../../base/units.ts";
import { countAll } from "./check.ts";
import { CheckTally } from "./check-report.ts";
import type { CheckedImage } from "./checked-image.ts";
import { MAX_L1_BYTES } from "./header.ts";
import {
  ClusterKind,
  COPIED_HIGH,
  clusterKind,
  compressedOffset,
  entryOffset,
  L1_ENTRY_BYTES,
  L1_RESERVED_HIGH,
  L1_RESERVED_LOW,
  L2_RESERVED_HIGH,
  L2_RESERVED_LOW,
} from "./l2-entry.ts";
import { windowsOf } from "./reference-counts.ts";

const SEARCHED_CLUSTERS_MAX = 2 ** 22;
/** Tables that could be it: more is no damage, but an attack. */
const CANDIDATES_MAX = 64;
/** What is read first of each cluster. */
const HEAD_BYTES_MAX = 4096;
/** L2 tables of a candidate that are looked at before it is one. */
const LOOKED_AT_MAX = 1024;
const CHUNK_ENTRIES = 8192;
/** Where so many are impossible, and none is possible, there is no table. */
const ENTRIES_THAT_TELL = 16;

/** What a cluster holds of an L2 table: entries with data, and those that cannot be. */
interface L2Look {
  readonly right: number;
  readonly wrong: number;
}

/** Of an L1 entry that names no table. */
const IMPOSSIBLE: L2Look = { right: 0, wrong: 1 };

interface Candidate {
  readonly offset: number;
  /** Entries that are not zero. */
  readonly used: number;
}

/** The image is one whose header has an L1 table of no entries; `entries` is how many the lost one has. */
export class LostL1 {
  readonly #image: CheckedImage;
  readonly #entries: number;
  readonly #table: Buffer;

  constructor(image: CheckedImage, entries: number) {
    this.#image = image;
    this.#entries = entries;
    this.#table = Buffer.alloc(image.geometry.clusterSize);
  }

  /**
   * Whether the active L1 table is at `offset`, with data in it. Over another table it has to be without
   * fault: then it is the place of that one that is wrong.
   */
  async believes(offset: number): Promise<boolean> {
    const { file, geometry } = this.#image;
    if (offset < geometry.clusterSize || offset >= file.size) return false;
    const isOver = this.#isOverTables(offset, this.#entries * L1_ENTRY_BYTES);
    let looked = 0;
    let found = 0;
    let faults = 0;
    await this.#eachEntry(offset, async (high, low) => {
      const { right, wrong } = await this.#lookAtEntry(high, low);
      looked++;
      if (right > 0 && right >= wrong) found++;
      if (wrong > 0) faults++;
      return isOver ? faults === 0 && looked < LOOKED_AT_MAX : found === 0;
    });
    return found > 0 && !(isOver && faults > 0);
  }

  /** Whether what stands at `offset` is no table, not even a damaged one: several entries, none possible. */
  async isSomethingElse(offset: number): Promise<boolean> {
    let used = 0;
    let possible = false;
    await this.#eachEntry(offset, async (high, low) => {
      used++;
      possible = this.#isPossible(high, low);
      return !possible;
    });
    return used >= ENTRIES_THAT_TELL && !possible;
  }

  /**
   * Whether a table at `offset` goes on at entry `from`: with data, and, as far as is looked, without fault.
   */
  async goesOn(offset: number, from: number): Promise<boolean> {
    let looked = 0;
    let found = 0;
    let faults = 0;
    await this.#eachEntry(
      offset,
      async (high, low) => {
        const { right, wrong } = await this.#lookAtEntry(high, low);
        looked++;
        if (right > 0) found++;
        if (wrong > 0) faults++;
        return faults === 0 && looked < LOOKED_AT_MAX;
      },
      from,
    );
    return found > 0 && faults === 0;
  }

  /**
   * Whether the table of an empty disk could be at `offset`: zeros, in use by their refcounts, nothing else.
   */
  async couldBeEmpty(offset: number): Promise<boolean> {
    const { file, geometry, refcounts } = this.#image;
    const bytes = this.#entries * L1_ENTRY_BYTES;
    if (offset < geometry.clusterSize || offset >= file.size || this.#isOverTables(offset, bytes))
      return false;
    let isZeros = true;
    await this.#eachEntry(offset, async () => {
      isZeros = false;
      return false;
    });
    if (!isZeros) return false;
    const end = divideUp(offset + bytes, geometry.clusterSize);
    for (let cluster = offset / geometry.clusterSize; cluster < end; cluster++) {
      if (!((await refcounts.get(cluster)) ?? 0)) return false;
    }
    return true;
  }

  /** Offsets of the tables that could be it. */
  async find(windowClusters: number): Promise<number[]> {
    if (!this.#areSnapshotsKnown()) return [];
    const candidates: Candidate[] = [];
    for (const cluster of await this.#unnamed(windowClusters)) {
      const candidate = await this.#candidateAt(cluster * this.#image.geometry.clusterSize);
      if (candidate !== undefined) candidates.push(candidate);
      if (candidates.length > CANDIDATES_MAX) break;
    }
    const left = await this.#withoutNamed(candidates);
    const [best, ...others] = left.sort((a, b) => b.used - a.used);
    // Of a table of several clusters its later ones look like a table too.
    const bytes = this.#entries * L1_ENTRY_BYTES;
    const isPart = ({ offset, used }: Candidate) =>
      used < best!.used && offset > best!.offset && offset < best!.offset + bytes;
    return best === undefined
      ? []
      : [best.offset, ...others.filter((other) => !isPart(other)).map(({ offset }) => offset)];
  }

  #areSnapshotsKnown(): boolean {
    return this.#image.snapshots.snapshots.every(
      ({ l1TableOffset, l1Size }) => l1Size <= MAX_L1_BYTES / L1_ENTRY_BYTES && this.#isPlace(l1TableOffset),
    );
  }

  #isOverTables(offset: number, length: number): boolean {
    const { header, geometry, refcounts, snapshots } = this.#image;
    const { clusterSize } = geometry;
    const end = offset + length;
    const isOver = (from: number, bytes: number) => bytes > 0 && from < end && offset < from + bytes;
    if (isOver(header.refcountTableOffset, header.refcountTableClusters * clusterSize)) return true;
    if (isOver(header.snapshotsOffset, snapshots.bytes)) return true;
    for (let index = 0; index < refcounts.entryCount; index++) {
      const block = refcounts.blockOffset(index);
      if (block !== 0 && isOver(block, clusterSize)) return true;
    }
    return false;
  }

  /** Clusters in use that nothing but the active L1 table can name; none where there are too many. */
  async #unnamed(windowClusters: number): Promise<number[]> {
    const { refcounts, geometry, file } = this.#image;
    const clusterCount = divideUp(file.size, geometry.clusterSize);
    const trusted = await this.#areRefcountsTrusted();
    const found: number[] = [];
    for (const window of windowsOf(clusterCount, windowClusters)) {
      const { counts } = await countAll(this.#image, window, new CheckTally());
      for (let cluster = window.first; cluster < window.end; cluster++) {
        if (found.length >= SEARCHED_CLUSTERS_MAX) return [];
        const index = Math.floor(cluster / geometry.refcountBlockEntries);
        if (trusted && (refcounts.blockOffset(index) === 0 || !refcounts.isUsable(index))) {
          // A file may be sparse, and very long.
          cluster = (index + 1) * geometry.refcountBlockEntries - 1;
          continue;
        }
        if (counts.get(cluster) > 0) continue;
        if (trusted && refcounts.entry((await refcounts.block(index))!, cluster) === 0) continue;
        found.push(cluster);
      }
    }
    return found;
  }

  async #candidateAt(offset: number): Promise<Candidate | undefined> {
    const { file, geometry } = this.#image;
    if (
      offset + this.#entries * L1_ENTRY_BYTES >
      divideUp(file.size, geometry.clusterSize) * geometry.clusterSize
    ) {
      return undefined;
    }
    if (!(await this.#beginsLikeL1(offset))) return undefined;
    let used = 0;
    let data = 0;
    let possible = true;
    await this.#eachEntry(offset, async (high, low) => {
      possible = this.#isPossible(high, low);
      if (possible && used < LOOKED_AT_MAX) {
        const { right, wrong } = await this.#lookAtL2(entryOffset(high, low));
        data += right;
        possible = wrong === 0;
      }
      used++;
      return possible;
    });
    return possible && data > 0 ? { offset, used } : undefined;
  }

  /** Most clusters are told apart by their first entries. */
  async #beginsLikeL1(offset: number): Promise<boolean> {
    const bytes = Math.min(this.#entries * L1_ENTRY_BYTES, this.#table.length, HEAD_BYTES_MAX);
    await this.#image.file.read(offset, bytes, this.#table, 0);
    let used = 0;
    for (let at = 0; at < bytes; at += L1_ENTRY_BYTES) {
      const high = this.#table.readUInt32BE(at);
      const low = this.#table.readUInt32BE(at + 4);
      if (high === 0 && low === 0) continue;
      if (!this.#isPossible(high, low)) return false;
      used++;
    }
    return used > 0;
  }

  #isPossible(high: number, low: number): boolean {
    return (
      (high & L1_RESERVED_HIGH) === 0 &&
      (low & L1_RESERVED_LOW) === 0 &&
      this.#isPlace(entryOffset(high, low))
    );
  }

  #isPlace(offset: number): boolean {
    const { file, geometry } = this.#image;
    return offset % geometry.clusterSize === 0 && offset >= geometry.clusterSize && offset < file.size;
  }

  /** What an L1 entry names. */
  async #lookAtEntry(high: number, low: number): Promise<L2Look> {
    return this.#isPossible(high, low) ? this.#lookAtL2(entryOffset(high, low)) : IMPOSSIBLE;
  }

  async #lookAtL2(offset: number): Promise<L2Look> {
    const { geometry, file } = this.#image;
    const table = this.#table;
    await file.read(offset, geometry.clusterSize, table, 0);
    let right = 0;
    let wrong = 0;
    for (let at = 0; at < geometry.clusterSize; at += geometry.l2EntryBytes) {
      const high = table.readUInt32BE(at);
      const low = table.readUInt32BE(at + 4);
      const zeroBits = geometry.extended ? table.readUInt32BE(at + 8) : 0;
      const dataBits = geometry.extended ? table.readUInt32BE(at + 12) : 0;
      if (high === 0 && low === 0 && zeroBits === 0 && dataBits === 0) continue;
      const kind = clusterKind(high, low, geometry.extended);
      if (!this.#isL2Entry(kind, high, low) || (zeroBits & dataBits) !== 0) wrong++;
      else if (kind !== ClusterKind.UNALLOCATED && kind !== ClusterKind.ZERO_PLAIN) right++;
    }
    return { right, wrong };
  }

  #isL2Entry(kind: ClusterKind, high: number, low: number): boolean {
    const { geometry, file } = this.#image;
    if (kind === ClusterKind.COMPRESSED) {
      const offset = compressedOffset(high, low, geometry.clusterBits);
      return (high & COPIED_HIGH) === 0 && offset >= geometry.clusterSize && offset < file.size;
    }
    if ((high & L2_RESERVED_HIGH) !== 0 || (low & L2_RESERVED_LOW) !== 0) return false;
    const placed = kind === ClusterKind.NORMAL || kind === ClusterKind.ZERO_ALLOCATED;
    return !placed || this.#isPlace(entryOffset(high, low));
  }

  /** Those that no tree of another one names, nor their own tree any part of them. */
  async #withoutNamed(candidates: readonly Candidate[]): Promise<Candidate[]> {
    const offsets = new Set(candidates.map(({ offset }) => offset));
    const left: Candidate[] = [];
    const named = new Set<number>();
    for (const candidate of candidates) {
      const { offset } = candidate;
      const before = offset - this.#image.geometry.clusterSize;
      const end = offset + this.#entries * L1_ENTRY_BYTES;
      const others: number[] = [];
      let isOver = false;
      let isBeforeNamed = false;
      await this.#eachNamed(offset, (place) => {
        if (place >= offset && place < end) isOver = true;
        else if (offsets.has(place)) others.push(place);
        if (place === before) isBeforeNamed = true;
        return !isOver;
      });
      if (isOver) continue;
      left.push(candidate);
      for (const place of others) named.add(place);
      if (!isBeforeNamed && (await this.#couldBegin(before))) left.push({ ...candidate, offset: before });
    }
    return left.filter(({ offset }) => !named.has(offset));
  }

  /** Whether a table that begins with zeros could begin at `offset`, and have its next part behind that. */
  async #couldBegin(offset: number): Promise<boolean> {
    const { file, geometry, refcounts } = this.#image;
    const { clusterSize } = geometry;
    if (this.#entries * L1_ENTRY_BYTES <= clusterSize || offset < clusterSize) return false;
    if (this.#isOverTables(offset, clusterSize)) return false;
    if ((await this.#areRefcountsTrusted()) && (await refcounts.get(offset / clusterSize)) === 0)
      return false;
    await file.read(offset, clusterSize, this.#table, 0);
    return isZero(this.#table, 0, clusterSize);
  }

  async #areRefcountsTrusted(): Promise<boolean> {
    return ((await this.#image.refcounts.get(0)) ?? 0) > 0;
  }

  /** The L2 tables and the clusters of data that the table at `offset` names, until `visit` has enough. */
  async #eachNamed(offset: number, visit: (place: number) => boolean): Promise<void> {
    const { geometry, file } = this.#image;
    const table = this.#table;
    await this.#eachEntry(offset, async (high, low) => {
      const l2Offset = entryOffset(high, low);
      if (!visit(l2Offset)) return false;
      await file.read(l2Offset, geometry.clusterSize, table, 0);
      for (let at = 0; at < geometry.clusterSize; at += geometry.l2EntryBytes) {
        const l2High = table.readUInt32BE(at);
        const l2Low = table.readUInt32BE(at + 4);
        const kind = clusterKind(l2High, l2Low, geometry.extended);
        if (kind !== ClusterKind.NORMAL && kind !== ClusterKind.ZERO_ALLOCATED) continue;
        if (!visit(entryOffset(l2High, l2Low))) return false;
      }
      return true;
    });
  }

  /** The entries of a table at `offset`, `from` one on, that are not zero, until `visit` has enough. */
  async #eachEntry(
    offset: number,
    visit: (high: number, low: number) => Promise<boolean>,
    from = 0,
  ): Promise<void> {
    const { file } = this.#image;
    const chunk = Buffer.alloc(Math.min(this.#entries, CHUNK_ENTRIES) * L1_ENTRY_BYTES);
    // Past the end of the file there are only zeros.
    const entries = Math.min(this.#entries, Math.ceil((file.size - offset) / L1_ENTRY_BYTES));
    for (let first = from; first < entries; first += CHUNK_ENTRIES) {
      const count = Math.min(CHUNK_ENTRIES, entries - first);
      await file.read(offset + first * L1_ENTRY_BYTES, count * L1_ENTRY_BYTES, chunk, 0);
      for (let i = 0; i < count; i++) {
        const high = chunk.readUInt32BE(i * L1_ENTRY_BYTES);
        const low = chunk.readUInt32BE(i * L1_ENTRY_BYTES + 4);
        if (high === 0 && low === 0) continue;
        if (!(await visit(high, low))) return;
      }
    }
  }
}

// Looks up what the active tables say about a range. Pure: what is not in memory is asked for.
//
//   while ((kind = mapping.lookup(offset, bytes)) === RunKind.NEED_SLICE) await l2.load(mapping.missing);
//
// The answer stands in the fields of the object until the next look-up; nothing is allocated. A run goes on
// over clusters and slices as long as its kind stays the same and its host clusters stand one after the
// other.
//
// An entry that cannot be is INVALID: nothing is read or written through it.

import { ALL_SUBCLUSTERS, ClusterKind, COPIED_HIGH, clusterKind, entryOffset, ZERO_LOW } from "./l2-entry.ts";
import type { Slice, TableCache } from "./table-cache.ts";
import type { WholeTable } from "./whole-table.ts";

export const RunKind = {
  UNALLOCATED: 0,
  ZERO: 1,
  DATA: 2,
  COMPRESSED: 3,
  INVALID: 4,
  /** Load slice `missing` and look again. */
  NEED_SLICE: 5,
} as const;
export type RunKind = (typeof RunKind)[keyof typeof RunKind];

/** No host cluster. */
const NOWHERE = -1;

export interface MappingOptions {
  readonly l1: WholeTable;
  readonly l2: TableCache;
  readonly clusterSize: number;
  readonly extended: boolean;
  /** Version 2 has no zero clusters. */
  readonly zeroAllowed: boolean;
}

export class Mapping {
  /** Of the last look-up: bytes of the run. */
  bytes = 0;
  /** Where the run begins in the file (DATA, or ZERO with a host cluster), -1 when nowhere. */
  hostOffset = NOWHERE;
  /** Whether its clusters belong to nobody else (DATA, ZERO with a host cluster). */
  copied = false;
  /** The entry (COMPRESSED, INVALID). */
  high = 0;
  low = 0;
  missing = 0;

  readonly l1: WholeTable;
  readonly l2: TableCache;
  readonly clusterSize: number;
  readonly extended: boolean;
  readonly subclusterSize: number;
  /** Guest clusters that an L2 table, and a slice of one, map. */
  readonly tableClusters: number;
  readonly sliceClusters: number;
  readonly wordsPerEntry: number;
  readonly #zeroAllowed: boolean;
  // The piece that was looked at last.
  #piece = 0;
  #pieceHost = NOWHERE;
  #pieceCopied = false;

  constructor(options: MappingOptions) {
    this.l1 = options.l1;
    this.l2 = options.l2;
    this.clusterSize = options.clusterSize;
    this.extended = options.extended;
    this.subclusterSize = options.extended ? options.clusterSize / 32 : options.clusterSize;
    this.wordsPerEntry = options.extended ? 4 : 2;
    this.tableClusters = options.clusterSize / (this.wordsPerEntry * 4);
    this.sliceClusters = options.l2.sliceBytes / (this.wordsPerEntry * 4);
    this.#zeroAllowed = options.zeroAllowed;
  }

  /** The run that begins at `offset`, of up to `bytes` bytes (at least one). */
  lookup(offset: number, bytes: number): RunKind {
    const kind = this.#lookPiece(offset, bytes);
    if (kind === RunKind.NEED_SLICE) return kind;
    const host = this.#pieceHost;
    const copied = this.#pieceCopied;
    let run = this.#piece;
    if (kind !== RunKind.COMPRESSED && kind !== RunKind.INVALID) {
      while (run < bytes) {
        const next = this.#lookPiece(offset + run, bytes - run);
        if (next !== kind || this.#pieceCopied !== copied) break;
        if (this.#pieceHost !== (host === NOWHERE ? NOWHERE : host + run)) break;
        run += this.#piece;
      }
    }
    this.bytes = run;
    this.hostOffset = host;
    this.copied = copied;
    return kind;
  }

  /** The slice that holds the entry of guest cluster `cluster`, if it is in memory. */
  findSlice(cluster: number): Slice | undefined {
    return this.l2.find(Math.floor(cluster / this.sliceClusters));
  }

  /** Index of the first word of the entry of `cluster` in its slice. */
  wordIndex(cluster: number): number {
    return (cluster % this.sliceClusters) * this.wordsPerEntry;
  }

  /** A piece: up to one slice for standard entries, up to one cluster for extended ones. */
  #lookPiece(offset: number, bytes: number): RunKind {
    const cluster = Math.floor(offset / this.clusterSize);
    const within = offset - cluster * this.clusterSize;
    const l1Index = Math.floor(cluster / this.tableClusters);
    const l1High = this.l1.words[l1Index * 2]!;
    const l1Low = this.l1.words[l1Index * 2 + 1]!;
    this.#pieceHost = NOWHERE;
    this.#pieceCopied = false;
    if (entryOffset(l1High, l1Low) === 0) {
      const span = this.tableClusters * this.clusterSize;
      this.#piece = Math.min(bytes, span - (offset % span));
      return RunKind.UNALLOCATED;
    }
    const sliceIndex = Math.floor(cluster / this.sliceClusters);
    const slice = this.l2.find(sliceIndex);
    if (slice === undefined) {
      this.missing = sliceIndex;
      return RunKind.NEED_SLICE;
    }
    const word = (cluster - sliceIndex * this.sliceClusters) * this.wordsPerEntry;
    const kind = this.extended
      ? this.#subclusters(slice.words, word, within, bytes)
      : this.#clusters(slice.words, word, within, bytes);
    // A table that a snapshot shares: nothing that it points to is ours alone, whatever it says.
    if ((l1High & COPIED_HIGH) === 0) this.#pieceCopied = false;
    return kind;
  }

  #clusters(words: Uint32Array, first: number, within: number, bytes: number): RunKind {
    const { clusterSize } = this;
    const kind = this.#classify(words[first]!, words[first + 1]!);
    let run = clusterSize - within;
    if (this.#pieceHost !== NOWHERE) this.#pieceHost += within;
    if (kind <= RunKind.DATA) {
      // The next entry of a run that goes on differs by one cluster only: compare words instead of taking
      // them apart.
      const step = this.#pieceHost === NOWHERE ? 0 : clusterSize;
      let low = words[first + 1]!;
      const high = words[first]!;
      for (let word = first + 2; run < bytes && word < words.length; word += 2) {
        low += step;
        if (words[word] !== high || words[word + 1] !== low) break;
        run += clusterSize;
      }
    }
    this.#piece = Math.min(run, bytes);
    return kind;
  }

  /** The kind of a standard entry; sets where it points to. */
  #classify(high: number, low: number): RunKind {
    this.high = high;
    this.low = low;
    const kind = clusterKind(high, low, this.extended);
    if (kind === ClusterKind.COMPRESSED) return RunKind.COMPRESSED;
    if ((low & ZERO_LOW) !== 0 && !this.extended && !this.#zeroAllowed) return RunKind.INVALID;
    if (kind === ClusterKind.UNALLOCATED) return RunKind.UNALLOCATED;
    if (kind === ClusterKind.ZERO_PLAIN) return RunKind.ZERO;
    const host = entryOffset(high, low);
    if (host % this.clusterSize !== 0 || !Number.isSafeInteger(host + this.clusterSize))
      return RunKind.INVALID;
    this.#pieceHost = host;
    this.#pieceCopied = (high & COPIED_HIGH) !== 0;
    return kind === ClusterKind.NORMAL ? RunKind.DATA : RunKind.ZERO;
  }

  #subclusters(words: Uint32Array, word: number, within: number, bytes: number): RunKind {
    const zero = words[word + 2]!;
    const allocated = words[word + 3]!;
    const cluster = this.#classify(words[word]!, words[word + 1]!);
    if (cluster === RunKind.COMPRESSED || cluster === RunKind.INVALID) {
      this.#piece = Math.min(bytes, this.clusterSize - within);
      return cluster;
    }
    if ((zero & allocated) !== 0 || (cluster === RunKind.UNALLOCATED && allocated !== 0)) {
      this.#piece = Math.min(bytes, this.clusterSize - within);
      return RunKind.INVALID;
    }
    const index = Math.floor(within / this.subclusterSize);
    const kind = subclusterRunKind(zero, allocated, index);
    let end = allocated === ALL_SUBCLUSTERS ? 32 : index + 1;
    while (end < 32 && subclusterRunKind(zero, allocated, end) === kind) end++;
    this.#piece = Math.min(bytes, end * this.subclusterSize - within);
    if (this.#pieceHost !== NOWHERE) this.#pieceHost += within;
    if (kind === RunKind.UNALLOCATED) {
      this.#pieceHost = NOWHERE;
      this.#pieceCopied = false;
    }
    return kind;
  }
}

function subclusterRunKind(zero: number, allocated: number, index: number): RunKind {
  const bit = (1 << index) & ALL_SUBCLUSTERS;
  if ((allocated & bit) !== 0) return RunKind.DATA;
  return (zero & bit) !== 0 ? RunKind.ZERO : RunKind.UNALLOCATED;
}

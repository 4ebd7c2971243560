// Where the tables of an image stand, so that no write goes over one of them (QEMU's `overlap-check`).
//
//   cluster -> which kinds of metadata stand in it                a map: one entry per table cluster
//   filter:  one bit for each of 2**20 clusters, modulo           the answer "nothing" takes no look-up
//
//   1. The filter says yes for every cluster in the map; it may say yes for others, then the map decides. It
//      is never cleared bit by bit, only as a whole. 128 KiB for an image of any length.
//   2. A table that was met twice (two entries name it: the image is damaged) stays when one of the two goes.
//   3. What stands in a cluster is remembered whatever is checked for: free space is never taken from a
//      table. `checks` says what is an error.

/** The kinds of metadata, as bits, in QEMU's order: of several the lowest is told. */
export const MetadataKind = {
  MAIN_HEADER: 1,
  ACTIVE_L1: 2,
  ACTIVE_L2: 4,
  REFCOUNT_BLOCK: 8,
  REFCOUNT_TABLE: 16,
  SNAPSHOT_TABLE: 32,
  INACTIVE_L1: 64,
  INACTIVE_L2: 128,
  BITMAP_DIRECTORY: 256,
} as const;

/** QEMU's words for them, from bit 0 on. */
const KIND_NAMES = [
  "qcow2_header",
  "active L1 table",
  "active L2 table",
  "refcount block",
  "refcount table",
  "snapshot table",
  "inactive L1 table",
  "inactive L2 table",
  "bitmap directory",
] as const;

const ALL_KINDS = 0x1ff;
/** Met twice, from this bit on: the bit of the kind, further up. */
const TWICE_SHIFT = 9;

const FILTER_CLUSTERS = 2 ** 20;
const FILTER_MASK = FILTER_CLUSTERS - 1;

/** The lowest kind of `kinds`, in QEMU's words. */
export function kindName(kinds: number): string {
  return KIND_NAMES[31 - Math.clz32(kinds & -kinds)] ?? "metadata";
}

export class MetadataPlaces {
  /** The kinds that no write may touch. */
  readonly checks: number;
  readonly #clusterSize: number;
  readonly #kinds = new Map<number, number>();
  /** Empty before the first table: an image that is open for reading only never has one. */
  #filter = new Uint8Array(0);

  constructor(clusterSize: number, checks: number) {
    this.#clusterSize = clusterSize;
    this.checks = checks;
  }

  /** Clusters that hold metadata. */
  get size(): number {
    return this.#kinds.size;
  }

  clear(): void {
    this.#kinds.clear();
    this.#filter.fill(0);
  }

  add(kind: number, first: number, count: number): void {
    if (this.#filter.length === 0) this.#filter = new Uint8Array(FILTER_CLUSTERS / 8);
    for (let cluster = first; cluster < first + count; cluster++) {
      const before = this.#kinds.get(cluster) ?? 0;
      const twice = (before & kind) << TWICE_SHIFT;
      this.#kinds.set(cluster, before | kind | twice);
      const bit = cluster % FILTER_CLUSTERS;
      this.#filter[bit >> 3]! |= 1 << (bit & 7);
    }
  }

  remove(kind: number, first: number, count: number): void {
    for (let cluster = first; cluster < first + count; cluster++) {
      const before = this.#kinds.get(cluster) ?? 0;
      const twice = kind << TWICE_SHIFT;
      const after = (before & twice) === 0 ? before & ~kind : before & ~twice;
      if (after === 0) this.#kinds.delete(cluster);
      else this.#kinds.set(cluster, after);
    }
  }

  /** What stands in a cluster, checked for or not. */
  kindsIn(cluster: number): number {
    const bit = cluster & FILTER_MASK;
    if ((this.#filter[bit >> 3]! & (1 << (bit & 7))) === 0) return 0;
    return (this.#kinds.get(cluster) ?? 0) & ALL_KINDS;
  }

  /** Whether two tables of one kind stand in a cluster. */
  isTwice(kind: number, cluster: number): boolean {
    return ((this.#kinds.get(cluster) ?? 0) & (kind << TWICE_SHIFT)) !== 0;
  }

  /** Which kinds that are checked for a write of the range would go over; `own` are those that it may. */
  touchedBy(offset: number, bytes: number, own = 0): number {
    const last = Math.floor((offset + bytes - 1) / this.#clusterSize);
    let kinds = 0;
    for (let cluster = Math.floor(offset / this.#clusterSize); cluster <= last; cluster++) {
      kinds |= this.kindsIn(cluster);
    }
    return kinds & this.checks & ~own;
  }
}

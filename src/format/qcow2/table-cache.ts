// A bounded cache of table slices: pieces of L2 tables or of refcount blocks, 4 KiB or one cluster, whichever
// is less.
//
//   1. Memory is bounded: never more slices than the capacity. A slice gives its memory to the next one.
//   2. A dirty slice, or one that is being written, is never evicted; so what is loaded is never older than
//      the file.
//   3. When half of the slices are dirty, `onPressure` asks for a write-back in the background; when all of
//      them are, a load waits for it. Eviction itself writes nothing and so needs no flush of the host file.
//   4. `find` gives a slice for the present turn of the event loop only. After an await, find it again.
//
// Slices are named by their place in the logical table (guest clusters, host clusters), not by where they
// stand in the file: a table that moves keeps its slices.

import { assert } from "../../base/assert.ts";
import type { Completion } from "../../base/completion.ts";

export const SLICE_BYTES_MAX = 4096;
/** Fewer would let requests evict each other's slices for ever. */
const SLICES_MIN = 16;

export interface Slice {
  index: number;
  /** The memory of the slice. */
  readonly bytes: Buffer;
  /** The same memory as 32-bit words. */
  readonly words: Uint32Array;
  dirty: boolean;
  /** Write-backs of this slice under way. */
  writing: number;
  /** Used since the clock hand passed. */
  recent: boolean;
}

export interface TableCacheOptions {
  readonly sliceBytes: number;
  readonly capacityBytes: number;
  /** Fills `bytes` with slice `index` as it stands in the file. */
  readonly fetch: (index: number, bytes: Buffer) => Completion;
  /**
   * Whether the words of a slice are kept in the byte order of this machine (a big-endian file is assumed).
   */
  readonly decodeWords: boolean;
  /** Too much is dirty. Settles when a write-back has been done. */
  readonly onPressure: () => Promise<void>;
}

export class TableCache {
  readonly sliceBytes: number;
  readonly capacity: number;
  readonly counters = { hits: 0, loads: 0, evictions: 0 };
  readonly #options: TableCacheOptions;
  readonly #byIndex = new Map<number, Slice>();
  readonly #loading = new Map<number, Promise<void>>();
  readonly #ring: Slice[] = [];
  /** Slices in memory that hold nothing. */
  readonly #spares: Slice[] = [];
  /** All slices that exist: in the ring, spare, or out for a load. */
  #made = 0;
  #hand = 0;
  #generation = 0;
  #last: Slice | undefined;
  readonly #dirty = new Set<Slice>();

  constructor(options: TableCacheOptions) {
    this.#options = options;
    this.sliceBytes = options.sliceBytes;
    this.capacity = Math.max(SLICES_MIN, Math.floor(options.capacityBytes / options.sliceBytes));
  }

  get dirtyCount(): number {
    return this.#dirty.size;
  }

  get dirtySlices(): Iterable<Slice> {
    return this.#dirty;
  }

  get sliceCount(): number {
    return this.#byIndex.size;
  }

  /** The slice, if it is in memory. Valid until the caller awaits. */
  find(index: number): Slice | undefined {
    const last = this.#last;
    if (last !== undefined && last.index === index) {
      last.recent = true;
      return last;
    }
    const slice = this.#byIndex.get(index);
    if (slice === undefined) return undefined;
    slice.recent = true;
    this.#last = slice;
    return slice;
  }

  /** Brings a slice into memory; look again with `find` afterwards, and load again if it is gone already. */
  load(index: number): Completion {
    if (this.#byIndex.has(index)) return;
    const loading = this.#loading.get(index);
    if (loading !== undefined) return loading;
    const slice = this.#room();
    if (slice === undefined) return this.#options.onPressure();
    let fetched: Completion;
    try {
      fetched = this.#options.fetch(index, slice.bytes);
    } catch (error) {
      this.#spare(slice);
      throw error;
    }
    if (fetched === undefined) {
      this.#loaded(index, slice);
      return;
    }
    const done = this.#loadLater(index, slice, fetched);
    this.#loading.set(index, done);
    return done;
  }

  /**
   * A slice of a table that is new: all zeros. Undefined when there is no room: a write-back must be waited
   * for.
   */
  insertZero(index: number): Slice | undefined {
    assert(!this.#byIndex.has(index), "a new table has no slices in memory");
    const slice = this.#room();
    if (slice === undefined) return undefined;
    slice.bytes.fill(0);
    this.#insert(index, slice);
    return slice;
  }

  /** Forgets everything that is in memory. Nothing may be dirty. */
  clear(): void {
    assert(this.#dirty.size === 0, "a cache is cleared when nothing is dirty");
    // What is being loaded now is not entered either: it may be older than what made us forget.
    this.#generation++;
    for (const slice of this.#ring) this.#spare(slice);
    this.#ring.length = 0;
    this.#byIndex.clear();
    this.#last = undefined;
  }

  /** Forgets what is dirty too: for an image that may not be written to any more. */
  drop(): void {
    for (const slice of this.#dirty) slice.dirty = false;
    this.#dirty.clear();
    this.clear();
  }

  markDirty(slice: Slice): void {
    if (slice.dirty) return;
    slice.dirty = true;
    this.#dirty.add(slice);
    // Once per crossing of the mark, not at every slice above it.
    if (this.#dirty.size === this.capacity >> 1) this.#options.onPressure().catch(() => undefined);
  }

  /** A write-back took a copy of the slice. `written` or `failed` follows. */
  taken(slice: Slice): void {
    slice.dirty = false;
    this.#dirty.delete(slice);
    slice.writing++;
  }

  written(slice: Slice): void {
    slice.writing--;
  }

  failed(slice: Slice): void {
    slice.writing--;
    slice.dirty = true;
    this.#dirty.add(slice);
  }

  /** Copies the slice as it stands in the file into `out`. */
  encode(slice: Slice, out: Buffer): void {
    slice.bytes.copy(out, 0, 0, this.sliceBytes);
    if (this.#options.decodeWords) swapWords(out, this.sliceBytes);
  }

  async #loadLater(index: number, slice: Slice, fetched: Promise<void>): Promise<void> {
    const generation = this.#generation;
    try {
      await fetched;
      if (generation === this.#generation) this.#loaded(index, slice);
      else this.#spare(slice);
    } catch (error) {
      this.#spare(slice);
      throw error;
    } finally {
      this.#loading.delete(index);
    }
  }

  #loaded(index: number, slice: Slice): void {
    if (this.#options.decodeWords) swapWords(slice.bytes, this.sliceBytes);
    this.counters.loads++;
    this.#insert(index, slice);
  }

  #insert(index: number, slice: Slice): void {
    slice.index = index;
    slice.dirty = false;
    slice.recent = true;
    this.#byIndex.set(index, slice);
    this.#ring.push(slice);
    this.#last = slice;
  }

  /**
   * Memory for one more slice: unused, new, or taken from another; undefined when all are dirty or being
   * loaded.
   */
  #room(): Slice | undefined {
    const spare = this.#spares.pop();
    if (spare !== undefined) return spare;
    if (this.#made >= this.capacity) return this.#evict();
    this.#made++;
    return newSlice(this.sliceBytes);
  }

  #spare(slice: Slice): void {
    slice.index = -1;
    this.#spares.push(slice);
  }

  /** Takes the memory of a slice that was not used lately (clock algorithm). */
  #evict(): Slice | undefined {
    for (let steps = this.#ring.length * 2; steps > 0; steps--) {
      if (this.#hand >= this.#ring.length) this.#hand = 0;
      const slice = this.#ring[this.#hand]!;
      if (slice.dirty || slice.writing > 0) {
        this.#hand++;
      } else if (slice.recent) {
        slice.recent = false;
        this.#hand++;
      } else {
        this.#ring[this.#hand] = this.#ring[this.#ring.length - 1]!;
        this.#ring.length--;
        this.#byIndex.delete(slice.index);
        if (this.#last === slice) this.#last = undefined;
        slice.index = -1;
        this.counters.evictions++;
        return slice;
      }
    }
    return undefined;
  }
}

function newSlice(bytes: number): Slice {
  const memory = new ArrayBuffer(bytes);
  return {
    index: -1,
    bytes: Buffer.from(memory),
    words: new Uint32Array(memory),
    dirty: false,
    writing: 0,
    recent: false,
  };
}

const LITTLE_ENDIAN = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

/** Between big-endian words, as in the file, and this machine's. */
function swapWords(buffer: Buffer, bytes: number): void {
  if (LITTLE_ENDIAN) buffer.subarray(0, bytes).swap32();
}

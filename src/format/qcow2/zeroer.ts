// Writing zeros and discarding.
//
//   1. Whole units (clusters, or subclusters) become zero in the tables; parts of units are zeroed as data,
//      or the unit as a whole where it reads as zeros anyway. The end of the disk ends a unit.
//   2. A discard touches whole clusters only: it is never rounded outward. Where something deeper could show,
//      what is discarded becomes a zero cluster, never an unallocated one; version 2 has none, so there
//      nothing is discarded.
//   3. Version 3 always says zero, even with no backing: one may be put behind the image later.
//   4. A host cluster is given up when the caller lets us (MAY_UNMAP, discard); else it stays, set aside.
//   5. What an entry pointed to is freed only after the entry is durably gone (rule R3).

import { buffers } from "../../base/buffer-pool.ts";
import type { Completion } from "../../base/completion.ts";
import { BlockError } from "../../base/errors.ts";
import { alignDown, alignUp } from "../../base/units.ts";
import { WriteFlags } from "../../block/driver.ts";
import { subclusterMask } from "./guest-write.ts";
import type { Image } from "./image.ts";
import { ALL_SUBCLUSTERS, COMPRESSED_HIGH, entryOffset, ZERO_LOW } from "./l2-entry.ts";
import { type Mapping, RunKind } from "./mapping.ts";
import type { Reader } from "./reader.ts";
import { runSteps, type Steps } from "./steps.ts";
import type { Writer } from "./writer.ts";

export class Zeroer {
  readonly #image: Image;
  readonly #reader: Reader;
  readonly #writer: Writer;

  constructor(image: Image, reader: Reader, writer: Writer) {
    this.#image = image;
    this.#reader = reader;
    this.#writer = writer;
  }

  writeZeroes(offset: number, bytes: number, flags: number): Completion {
    return this.#run(new Zeroing(this.#parts(), { offset, bytes, flags, discard: false, locked: true }));
  }

  /** The same for a caller that holds the exclusive lock. */
  writeZeroesLocked(offset: number, bytes: number, flags: number): Completion {
    return runSteps(new Zeroing(this.#parts(), { offset, bytes, flags, discard: false, locked: false }));
  }

  discard(offset: number, bytes: number): Completion {
    const { clusterSize, size, header, mayHaveBacking } = this.#image;
    if (header.version < 3 && mayHaveBacking) return;
    const from = alignUp(offset, clusterSize);
    const to = offset + bytes === size ? size : alignDown(offset + bytes, clusterSize);
    if (to <= from) return;
    const request = {
      offset: from,
      bytes: to - from,
      flags: WriteFlags.MAY_UNMAP,
      discard: true,
      locked: true,
    };
    return this.#run(new Zeroing(this.#parts(), request));
  }

  #parts(): ZeroingParts {
    const { tables } = this.#writer;
    return {
      image: this.#image,
      mapping: this.#image.newMapping(),
      tables,
      reader: this.#reader,
      writer: this.#writer,
    };
  }

  #run(zeroing: Zeroing): Completion {
    this.#image.refuseIfStopped();
    const waiting = this.#image.locks.lockExclusive(zeroing.firstCluster, zeroing.clusterCount);
    return waiting === undefined ? runSteps(zeroing) : waiting.then(() => runSteps(zeroing));
  }
}

interface ZeroingParts {
  readonly image: Image;
  readonly mapping: Mapping;
  readonly tables: Writer["tables"];
  readonly reader: Reader;
  readonly writer: Writer;
}

interface ZeroRequest {
  readonly offset: number;
  readonly bytes: number;
  readonly flags: number;
  readonly discard: boolean;
  /** The lock is this request's and is given back at its end. */
  readonly locked: boolean;
}

/**
 * What a unit holds: it says that it is zero; nothing, and nothing shows through; or something to be
 * overwritten.
 */
const Held = { ZERO: 0, NOTHING: 1, SOMETHING: 2 } as const;
type Held = (typeof Held)[keyof typeof Held];

class Zeroing implements Steps {
  readonly firstCluster: number;
  readonly clusterCount: number;
  readonly #parts: ZeroingParts;
  readonly #request: ZeroRequest;
  #pos: number;
  /** End of the range; at the end of the disk, the end of its last unit. */
  readonly #end: number;
  /** The same for clusters: the last cluster of the disk counts as whole. */
  readonly #clustersEnd: number;
  #zeros: Buffer | undefined;

  constructor(parts: ZeroingParts, request: ZeroRequest) {
    this.#parts = parts;
    this.#request = request;
    this.#pos = request.offset;
    const end = request.offset + request.bytes;
    const toDiskEnd = end === parts.image.size;
    this.#end = toDiskEnd ? alignUp(end, parts.mapping.subclusterSize) : end;
    this.#clustersEnd = toDiskEnd ? alignUp(end, parts.image.clusterSize) : end;
    this.firstCluster = parts.image.clusterOf(request.offset);
    this.clusterCount = parts.image.clusterCount(request.offset, request.bytes);
  }

  get finished(): boolean {
    return this.#pos >= this.#end;
  }

  end(): void {
    if (this.#zeros !== undefined) buffers.give(this.#zeros);
    if (this.#request.locked) {
      this.#parts.image.locks.unlockExclusive(this.firstCluster, this.clusterCount);
    }
  }

  step(): Completion {
    const { image, mapping, reader } = this.#parts;
    image.refuseIfStopped();
    if (this.#request.discard) return this.#discardClusters();
    const unit = mapping.subclusterSize;
    const kind = mapping.lookup(this.#pos, this.#end - this.#pos);
    if (kind === RunKind.NEED_SLICE) return image.l2.load(mapping.missing);
    if (kind === RunKind.INVALID) throw reader.invalid(this.#pos, mapping);
    const unitEnd = this.#pos - (this.#pos % unit) + unit;
    const part = this.#pos % unit !== 0 || unitEnd > this.#end;
    const compressedPart = kind === RunKind.COMPRESSED && !this.#wholeCluster(this.#pos);
    if (part || compressedPart) return this.#zeroPart(Math.min(this.#end, unitEnd));
    if (image.header.version < 3) return this.#zeroWithoutFlag(kind);
    return this.#zeroUnits();
  }

  #wholeCluster(pos: number): boolean {
    const { clusterSize } = this.#parts.image;
    return pos % clusterSize === 0 && pos + clusterSize <= this.#clustersEnd;
  }

  // --- parts of units --------------------------------------------------------------------------------------

  /** Zeros up to `to`, inside one unit. */
  #zeroPart(to: number): Completion {
    const { image, mapping, writer } = this.#parts;
    const unit = mapping.subclusterSize;
    const start = this.#pos - (this.#pos % unit);
    const held = this.#heldByUnit(start, Math.min(unit, image.size - start));
    if (held === Held.ZERO || (held === Held.NOTHING && image.header.version < 3)) {
      this.#pos = to;
      return;
    }
    if (held === Held.NOTHING) return this.#zeroOneUnit(start, to);
    if ((this.#request.flags & WriteFlags.NO_FALLBACK) !== 0) throw unsupported();
    const bytes = Math.min(to, this.#request.offset + this.#request.bytes) - this.#pos;
    this.#zeros ??= buffers.take(image.clusterSize).fill(0);
    const written = writer.writeLocked(this.#pos, bytes, this.#zeros, 0);
    this.#pos = to;
    return written;
  }

  #heldByUnit(offset: number, bytes: number): Held {
    const { image, mapping } = this.#parts;
    let held: Held = Held.ZERO;
    for (let pos = offset; pos < offset + bytes; pos += mapping.bytes) {
      const kind = mapping.lookup(pos, offset + bytes - pos);
      if (kind === RunKind.ZERO) continue;
      if (kind !== RunKind.UNALLOCATED || image.host.backing !== undefined) return Held.SOMETHING;
      if (image.header.version < 3 && image.mayHaveBacking) return Held.SOMETHING;
      held = Held.NOTHING;
    }
    return held;
  }

  /** The unit at `start` reads as zeros because nothing is there: now it says so. */
  #zeroOneUnit(start: number, to: number): Completion {
    const { image, mapping, tables } = this.#parts;
    const cluster = image.clusterOf(start);
    const l1Index = Math.floor(cluster / mapping.tableClusters);
    if (!tables.isOwn(l1Index)) return tables.makeOwn(l1Index);
    const slice = mapping.findSlice(cluster);
    if (slice === undefined) return image.l2.load(Math.floor(cluster / mapping.sliceClusters));
    const word = mapping.wordIndex(cluster);
    if (mapping.extended) this.#zeroSubclusters(slice.words, word, start, start + mapping.subclusterSize);
    else this.#zeroCluster(slice.words, word);
    image.l2.markDirty(slice);
    this.#pos = to;
  }

  // --- discard ---------------------------------------------------------------------------------------------

  /** Changes entries up to the end of the slice; leaves those that hold nothing and hide nothing. */
  #discardClusters(): Completion {
    const { image, mapping, tables } = this.#parts;
    const { clusterSize } = image;
    const first = image.clusterOf(this.#pos);
    const l1Index = Math.floor(first / mapping.tableClusters);
    const hides = image.host.backing !== undefined;
    if (entryOffset(image.l1.words[l1Index * 2]!, image.l1.words[l1Index * 2 + 1]!) === 0 && !hides) {
      this.#pos = (l1Index + 1) * mapping.tableClusters * clusterSize;
      return;
    }
    if (!tables.isOwn(l1Index)) return tables.makeOwn(l1Index);
    const slice = mapping.findSlice(first);
    if (slice === undefined) return image.l2.load(Math.floor(first / mapping.sliceClusters));
    const sliceEnd = (Math.floor(first / mapping.sliceClusters) + 1) * mapping.sliceClusters * clusterSize;
    let changed = false;
    for (; this.#pos < this.#end && this.#pos < sliceEnd; this.#pos += clusterSize) {
      const word = mapping.wordIndex(image.clusterOf(this.#pos));
      const high = slice.words[word]!;
      const offset = entryOffset(high, slice.words[word + 1]!);
      const compressed = (high & COMPRESSED_HIGH) !== 0;
      if (!compressed && offset % clusterSize !== 0) {
        // What was changed before it is marked as changed first: its clusters will be freed.
        if (changed) break;
        mapping.lookup(this.#pos, 1);
        throw this.#parts.reader.invalid(this.#pos, mapping);
      }
      if (!compressed && offset === 0 && !hides) continue;
      changed = this.#zeroCluster(slice.words, word) || changed;
    }
    if (changed) image.l2.markDirty(slice);
  }

  // --- whole units -----------------------------------------------------------------------------------------

  /** Version 2: unallocated is zero where nothing is behind; otherwise zeros are data. */
  #zeroWithoutFlag(kind: RunKind): Completion {
    const { image, mapping } = this.#parts;
    if (!image.mayHaveBacking) {
      if (kind === RunKind.UNALLOCATED) {
        this.#pos += mapping.bytes;
        return;
      }
      if ((this.#request.flags & WriteFlags.MAY_UNMAP) !== 0) return this.#zeroUnits();
    }
    if ((this.#request.flags & WriteFlags.NO_FALLBACK) !== 0) throw unsupported();
    const end = Math.min(this.#request.offset + this.#request.bytes, this.#pos + image.clusterSize);
    this.#zeros ??= buffers.take(image.clusterSize).fill(0);
    const written = this.#parts.writer.writeLocked(this.#pos, end - this.#pos, this.#zeros, 0);
    this.#pos += image.clusterSize;
    return written;
  }

  /** Changes entries up to the end of the slice. */
  #zeroUnits(): Completion {
    const { image, mapping, tables } = this.#parts;
    const { clusterSize } = image;
    const first = image.clusterOf(this.#pos);
    const l1Index = Math.floor(first / mapping.tableClusters);
    if (!tables.isOwn(l1Index)) return tables.makeOwn(l1Index);
    const slice = mapping.findSlice(first);
    if (slice === undefined) return image.l2.load(Math.floor(first / mapping.sliceClusters));
    const sliceEnd = (Math.floor(first / mapping.sliceClusters) + 1) * mapping.sliceClusters * clusterSize;
    let changed = false;
    while (this.#pos < this.#end && this.#pos < sliceEnd) {
      const cluster = image.clusterOf(this.#pos);
      const word = mapping.wordIndex(cluster);
      const next = Math.min(this.#end, (cluster + 1) * clusterSize);
      const whole = this.#wholeCluster(this.#pos);
      if (!whole && !mapping.extended) break;
      if (this.#mustLook(slice.words, word, whole)) break;
      if (!whole) {
        const to = next - (next % mapping.subclusterSize);
        this.#zeroSubclusters(slice.words, word, this.#pos, to);
        this.#pos = to;
        changed = true;
        break;
      }
      changed = this.#zeroCluster(slice.words, word) || changed;
      this.#pos = (cluster + 1) * clusterSize;
    }
    if (changed) image.l2.markDirty(slice);
  }

  /** An entry that `step` must look at: one that cannot be, or part of a compressed cluster. */
  #mustLook(words: Uint32Array, word: number, whole: boolean): boolean {
    const high = words[word]!;
    if ((high & COMPRESSED_HIGH) !== 0) return !whole;
    return entryOffset(high, words[word + 1]!) % this.#parts.image.clusterSize !== 0;
  }

  /** One cluster becomes zero; whether its entry changed. */
  #zeroCluster(words: Uint32Array, word: number): boolean {
    const { image, mapping } = this.#parts;
    const high = words[word]!;
    const low = words[word + 1]!;
    const compressed = (high & COMPRESSED_HIGH) !== 0;
    const drops = compressed || (this.#request.flags & WriteFlags.MAY_UNMAP) !== 0;
    const flag = image.header.version >= 3 && !mapping.extended ? ZERO_LOW : 0;
    const newHigh = drops ? 0 : high;
    const newLow = ((drops ? 0 : low) | flag) >>> 0;
    let changed = newHigh !== high || newLow !== low;
    words[word] = newHigh;
    words[word + 1] = newLow;
    if (mapping.extended) {
      changed ||= words[word + 2] !== ALL_SUBCLUSTERS || words[word + 3] !== 0;
      words[word + 2] = ALL_SUBCLUSTERS;
      words[word + 3] = 0;
    }
    if (drops) image.dropReference(high, low, true);
    return changed;
  }

  /** Subclusters [from, to), in one cluster. */
  #zeroSubclusters(words: Uint32Array, word: number, from: number, to: number): void {
    const { image, mapping } = this.#parts;
    const unit = mapping.subclusterSize;
    const start = from - (from % image.clusterSize);
    const mask = subclusterMask((from - start) / unit, (to - start) / unit);
    words[word + 2] = (words[word + 2]! | mask) >>> 0;
    words[word + 3] = (words[word + 3]! & ~mask) >>> 0;
  }
}

function unsupported(): BlockError {
  return new BlockError("ENOTSUP", "qcow2: the zeros would have to be written as data");
}

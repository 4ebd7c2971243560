// A write that may have to allocate, as steps under the exclusive lock of all of its clusters:
//
//   FIND   look the mapping up; write in place where the clusters are ours; otherwise claim a run of host
//          clusters, as long as one slice of the L2 table and the free space allow
//   FILL   fetch what the guest sees around the payload, up to the ends of the units that it touches in part
//   WRITE  write head, payload and tail at once
//   LINK   point the entries at the run, in memory; what they pointed at before is freed later
//
//      guest      | head | payload ................... | tail |          unit: cluster, or subcluster
//                 ^ fillStart                           fillEnd ^
//      host       | claimed run: clusters one after the other |
//
//   1. The data is written before the entry changes, even in memory (rule R1: a flush takes both, or the data
//      alone).
//   2. On an error the claimed run is given back; nothing ever pointed at it (rule R5). Pieces that were
//      linked before stay written: a failed write may have happened in part.
//   3. With subclusters a write allocates those that it touches, not the cluster; unless the old cluster was
//      compressed or shared: then all of it is copied.
//   4. The payload may stand in another image's file instead of a buffer (a merge): then the host copies it
//      inside, or it goes through a buffer where the host cannot. It is whole units of clusters that are not
//      ours yet, so there is no head and no tail.
//   5. A head or tail of zeros is not written where the host cluster reads as zeros anyway (a fresh one).
//   6. Head and tail may be copied inside the host in the FILL step (fill-copy.ts); WRITE leaves them out
//      then.

import { assert } from "../../base/assert.ts";
import { buffers } from "../../base/buffer-pool.ts";
import { isZero } from "../../base/bytes.ts";
import { both, type Completion } from "../../base/completion.ts";
import { KiB, MiB } from "../../base/units.ts";
import type { BlockNode } from "../../block/node.ts";
import type { FillCopy } from "./fill-copy.ts";
import type { HostSource } from "./host-copy.ts";
import type { Image } from "./image.ts";
import {
  ALL_SUBCLUSTERS,
  COMPRESSED_HIGH,
  COPIED_HIGH,
  entryHigh,
  entryLow,
  entryOffset,
  ZERO_LOW,
} from "./l2-entry.ts";
import type { L2Tables } from "./l2-tables.ts";
import { type Mapping, RunKind } from "./mapping.ts";
import type { Reader } from "./reader.ts";
import type { Steps } from "./steps.ts";

/**
 * A payload up to this size is copied into one buffer with head and tail; a larger one is written as a
 * vector.
 */
const JOINED_PAYLOAD_MAX = 128 * KiB;

/** What goes through a buffer at once where the host cannot copy. */
const COPY_PIECE_BYTES = 2 * MiB;

const Phase = { FIND: 0, FILL: 1, WRITE: 2, LINK: 3 } as const;

export interface GuestWriteParts {
  readonly image: Image;
  readonly mapping: Mapping;
  readonly tables: L2Tables;
  readonly reader: Reader;
  readonly fillCopy: FillCopy;
  /** Gives the object back for the next request. */
  readonly recycle: (write: GuestWrite) => void;
}

export class GuestWrite implements Steps {
  readonly #parts: GuestWriteParts;
  // The request. `#lockCount` is 0 when the caller holds the lock.
  #pos = 0;
  #end = 0;
  #buffer: Buffer = EMPTY;
  #at = 0;
  /** Where the payload stands instead of in `#buffer`, and how far behind its place in this image. */
  #source: BlockNode | undefined;
  #sourceShift = 0;
  #idle = false;
  #lockFirst = 0;
  #lockCount = 0;
  #phase: number = Phase.FIND;
  // The run at hand.
  #runEnd = 0;
  #fillStart = 0;
  #fillEnd = 0;
  #hostStart = 0;
  #firstCluster = 0;
  #clusterCount = 0;
  /** First claimed host cluster; -1 when the run is written into a cluster that is ours already. */
  #claimed = -1;
  #fresh = false;
  #wholeClusters = false;
  #area: Buffer | undefined;
  #head = 0;
  #tail = 0;
  /** A write in place is under way; `#pos` moves on when it is done. */
  #inPlace = 0;

  constructor(parts: GuestWriteParts) {
    this.#parts = parts;
  }

  /** Sets up the request. With `lockCount` the lock is given back at the end. */
  prepare(
    offset: number,
    bytes: number,
    buffer: Buffer,
    at: number,
    lockFirst: number,
    lockCount: number,
  ): this {
    this.#pos = offset;
    this.#end = offset + bytes;
    this.#buffer = buffer;
    this.#at = at;
    this.#lockFirst = lockFirst;
    this.#lockCount = lockCount;
    this.#phase = Phase.FIND;
    this.#inPlace = 0;
    return this;
  }

  /**
   * Sets up a copy of `source`. The caller holds the lock; the range is whole units. `idle`: see Driver.
   */
  prepareCopy(offset: number, source: HostSource, idle: boolean): this {
    this.prepare(offset, source.bytes, EMPTY, 0, 0, 0);
    this.#source = source.file;
    this.#sourceShift = source.offset - offset;
    this.#idle = idle;
    return this;
  }

  get finished(): boolean {
    return this.#pos + this.#inPlace === this.#end;
  }

  step(): Completion {
    switch (this.#phase) {
      case Phase.FIND:
        return this.#find();
      case Phase.FILL:
        return this.#fill();
      case Phase.WRITE:
        return this.#write();
      default:
        return this.#link();
    }
  }

  end(failed: boolean): void {
    const { image, recycle } = this.#parts;
    if (failed && this.#claimed >= 0) {
      image.frees.release([{ first: this.#claimed, count: this.#clusterCount, punch: false }]);
    }
    this.#claimed = -1;
    this.#giveArea();
    this.#buffer = EMPTY;
    this.#source = undefined;
    if (this.#lockCount > 0) image.locks.unlockExclusive(this.#lockFirst, this.#lockCount);
    recycle(this);
  }

  // --- FIND ------------------------------------------------------------------------------------------------

  #find(): Completion {
    const { image, mapping, tables, reader } = this.#parts;
    this.#advance(this.#inPlace);
    image.refuseIfStopped();
    const kind = mapping.lookup(this.#pos, this.#end - this.#pos);
    if (kind === RunKind.NEED_SLICE) return image.l2.load(mapping.missing);
    if (kind === RunKind.INVALID) throw reader.invalid(this.#pos, mapping);
    if (kind === RunKind.DATA && mapping.copied) return this.#writeInPlace(mapping);
    const cluster = image.clusterOf(this.#pos);
    const l1Index = Math.floor(cluster / mapping.tableClusters);
    if (!tables.isOwn(l1Index)) return tables.makeOwn(l1Index);
    const slice = mapping.findSlice(cluster);
    if (slice === undefined) return image.l2.load(Math.floor(cluster / mapping.sliceClusters));
    const word = mapping.wordIndex(cluster);
    if (isOwnCluster(slice.words[word]!, slice.words[word + 1]!)) {
      this.#planOwn(cluster, slice.words, word);
      return;
    }
    return this.#planClaim(cluster, slice.words, word);
  }

  #advance(bytes: number): void {
    this.#pos += bytes;
    this.#at += bytes;
    this.#inPlace = 0;
  }

  #writeInPlace({ hostOffset, bytes }: Mapping): Completion {
    const { image } = this.#parts;
    assert(this.#source === undefined, "a copy goes where nothing is allocated");
    image.refuseOverlap(hostOffset, bytes);
    if (image.isPastEnd(hostOffset, bytes)) throw outside(image, hostOffset);
    this.#inPlace = bytes;
    image.debug?.("write_aio");
    return image.file.write(hostOffset, bytes, this.#buffer, this.#at);
  }

  /**
   * The cluster is ours, what is written is not allocated in it: reads as zeros, or a subcluster of the
   * backing.
   */
  #planOwn(cluster: number, words: Uint32Array, word: number): void {
    const { image, mapping } = this.#parts;
    const { clusterSize } = image;
    const unit = mapping.subclusterSize;
    const start = cluster * clusterSize;
    let limit = start + clusterSize;
    if (mapping.extended) {
      let index = Math.floor((this.#pos - start) / unit);
      while (index < 32 && (words[word + 3]! & (1 << index)) === 0) index++;
      limit = start + index * unit;
    }
    const host = entryOffset(words[word]!, words[word + 1]!);
    image.refuseOverlap(host, clusterSize);
    this.#runEnd = Math.min(this.#end, limit);
    this.#setFill(unit);
    this.#hostStart = host + (this.#fillStart - start);
    this.#firstCluster = cluster;
    this.#clusterCount = 1;
    this.#claimed = -1;
    this.#fresh = false;
    this.#wholeClusters = false;
    this.#phase = Phase.FILL;
  }

  #planClaim(cluster: number, words: Uint32Array, word: number): Completion {
    const { image, mapping } = this.#parts;
    const { clusterSize } = image;
    const whole = copiesWhole(words, word, mapping.extended);
    const last = Math.min(
      image.clusterOf(this.#end - 1),
      cluster - (cluster % mapping.sliceClusters) + mapping.sliceClusters - 1,
    );
    let wanted = 1;
    for (let at = word + mapping.wordsPerEntry; cluster + wanted <= last; at += mapping.wordsPerEntry) {
      if (isOwnCluster(words[at]!, words[at + 1]!)) break;
      if (copiesWhole(words, at, mapping.extended) !== whole) break;
      if (isSuspect(words, at, mapping.extended, clusterSize)) break;
      wanted++;
    }
    image.debug?.("cluster_alloc");
    const first = image.allocator.take(wanted);
    if (first < 0) return image.allocator.prepare();
    this.#claimed = first;
    this.#clusterCount = image.allocator.takenCount;
    this.#fresh = image.allocator.takenFresh;
    this.#firstCluster = cluster;
    this.#wholeClusters = whole;
    this.#runEnd = Math.min(this.#end, (cluster + this.#clusterCount) * clusterSize);
    this.#setFill(whole ? clusterSize : mapping.subclusterSize);
    this.#hostStart = first * clusterSize + (this.#fillStart - cluster * clusterSize);
    this.#phase = Phase.FILL;
  }

  #setFill(unit: number): void {
    this.#fillStart = this.#pos - (this.#pos % unit);
    this.#fillEnd = this.#runEnd + ((unit - (this.#runEnd % unit)) % unit);
  }

  // --- FILL ------------------------------------------------------------------------------------------------

  #fill(): Completion {
    const { image } = this.#parts;
    this.#phase = Phase.WRITE;
    let head = this.#pos - this.#fillStart;
    let tail = this.#fillEnd - this.#runEnd;
    if (this.#fresh && head > 0 && this.#isEmpty(this.#fillStart, head)) head = 0;
    if (this.#fresh && tail > 0 && this.#isEmpty(this.#runEnd, tail)) tail = 0;
    if (this.#mayBeCopied(head, tail)) {
      if (head > 0 && this.#isCopied(this.#fillStart, head)) head = 0;
      if (tail > 0 && this.#isCopied(this.#runEnd, tail)) tail = 0;
    }
    this.#head = head;
    this.#tail = tail;
    if (head + tail === 0) return;
    const payload = this.#runEnd - this.#pos;
    const joined = payload <= JOINED_PAYLOAD_MAX;
    const area = buffers.take(head + tail + (joined ? payload : 0));
    this.#area = area;
    const tailAt = joined ? head + payload : head;
    // The disk may end inside of its last cluster.
    const readable = Math.max(0, Math.min(image.size - this.#runEnd, tail));
    area.fill(0, tailAt + readable, tailAt + tail);
    return this.#readAround(area, head, tailAt, readable);
  }

  #readAround(area: Buffer, head: number, tailAt: number, readable: number): Completion {
    const { reader, image } = this.#parts;
    image.debug?.("cow_read");
    const before = head === 0 ? undefined : reader.read(this.#fillStart, head, area, 0);
    if (readable === 0) return before;
    let behind: Completion;
    try {
      behind = reader.read(this.#runEnd, readable, area, tailAt);
    } catch (error) {
      // The area is given back when the step has ended; so the first read must have.
      if (before === undefined) throw error;
      return both(before, Promise.reject(error));
    }
    return both(before, behind);
  }

  #mayBeCopied(head: number, tail: number): boolean {
    const offset = head > tail ? this.#fillStart : this.#runEnd;
    const bytes = Math.max(head, tail);
    return this.#isBelow(offset, bytes) && this.#parts.fillCopy.isWorthIt(offset, bytes, this.#fresh);
  }

  /** Copies the head or the tail inside the host, if that is possible at once. */
  #isCopied(offset: number, bytes: number): boolean {
    const hostOffset = this.#hostStart + (offset - this.#fillStart);
    return this.#isBelow(offset, bytes) && this.#parts.fillCopy.copy(offset, bytes, hostOffset);
  }

  /** Whether nothing of the range is in this image, all of it on the disk. */
  #isBelow(offset: number, bytes: number): boolean {
    const { image, mapping } = this.#parts;
    if (bytes === 0 || offset + bytes > image.size) return false;
    return mapping.lookup(offset, bytes) === RunKind.UNALLOCATED && mapping.bytes === bytes;
  }

  /** Whether the range reads as zeros, as far as that is known without looking at data. */
  #isEmpty(offset: number, bytes: number): boolean {
    const { image, mapping } = this.#parts;
    const { backing } = image.host;
    const end = Math.min(offset + bytes, image.size);
    for (let pos = offset; pos < end; pos += mapping.bytes) {
      const kind = mapping.lookup(pos, end - pos);
      if (kind === RunKind.ZERO) continue;
      if (kind !== RunKind.UNALLOCATED) return false;
      if (backing !== undefined && pos < backing.size) return false;
    }
    return true;
  }

  // --- WRITE -----------------------------------------------------------------------------------------------

  #write(): Completion {
    const { file, debug } = this.#parts.image;
    this.#phase = Phase.LINK;
    debug?.("write_aio");
    const area = this.#area;
    const payload = this.#runEnd - this.#pos;
    const payloadHost = this.#hostStart + (this.#pos - this.#fillStart);
    if (this.#source !== undefined) return this.#copy(this.#source, payloadHost, payload);
    if (area === undefined) return file.write(payloadHost, payload, this.#buffer, this.#at);
    const joined = payload <= JOINED_PAYLOAD_MAX;
    const tailAt = joined ? this.#head + payload : this.#head;
    const skipHead = this.#fresh && (this.#head === 0 || isZero(area, 0, this.#head));
    const skipTail = this.#fresh && (this.#tail === 0 || isZero(area, tailAt, this.#tail));
    const head = skipHead ? 0 : this.#head;
    const tail = skipTail ? 0 : this.#tail;
    if (head + tail === 0) return file.write(payloadHost, payload, this.#buffer, this.#at);
    debug?.("cow_write");
    if (joined) {
      this.#buffer.copy(area, this.#head, this.#at, this.#at + payload);
      return file.write(payloadHost - head, head + payload + tail, area, this.#head - head);
    }
    const parts = [this.#buffer.subarray(this.#at, this.#at + payload)];
    if (head > 0) parts.unshift(area.subarray(0, head));
    if (tail > 0) parts.push(area.subarray(tailAt, tailAt + tail));
    return file.writeVector(payloadHost - head, parts);
  }

  async #copy(source: BlockNode, hostOffset: number, bytes: number): Promise<void> {
    const { file } = this.#parts.image;
    const from = this.#pos + this.#sourceShift;
    assert(this.#head + this.#tail === 0, "a copy is whole units");
    if (await file.copyFrom(source, from, hostOffset, bytes, this.#idle)) return;
    const area = buffers.take(Math.min(bytes, COPY_PIECE_BYTES));
    this.#area = area;
    for (let done = 0; done < bytes; done += area.length) {
      const piece = Math.min(area.length, bytes - done);
      await source.read(from + done, piece, area, 0);
      await file.write(hostOffset + done, piece, area, 0);
    }
  }

  // --- LINK ------------------------------------------------------------------------------------------------

  #link(): Completion {
    const { image, mapping } = this.#parts;
    const slice = mapping.findSlice(this.#firstCluster);
    if (slice === undefined) return image.l2.load(Math.floor(this.#firstCluster / mapping.sliceClusters));
    const { words } = slice;
    for (let i = 0; i < this.#clusterCount; i++) {
      const word = mapping.wordIndex(this.#firstCluster + i);
      const high = words[word]!;
      const low = words[word + 1]!;
      if (this.#claimed >= 0) {
        const host = (this.#claimed + i) * image.clusterSize;
        words[word] = entryHigh(host, true);
        words[word + 1] = entryLow(host);
        image.dropReference(high, low, false);
      } else if (!mapping.extended) {
        words[word + 1] = (low & ~ZERO_LOW) >>> 0;
      }
      if (mapping.extended) this.#linkSubclusters(words, word, this.#firstCluster + i);
    }
    image.l2.markDirty(slice);
    this.#claimed = -1;
    this.#giveArea();
    this.#phase = Phase.FIND;
    this.#advance(this.#runEnd - this.#pos);
  }

  #linkSubclusters(words: Uint32Array, word: number, cluster: number): void {
    const { clusterSize, geometry } = this.#parts.image;
    const unit = geometry.subclusterSize;
    let mask = ALL_SUBCLUSTERS;
    if (!this.#wholeClusters) {
      const start = cluster * clusterSize;
      const from = Math.max(0, (this.#fillStart - start) / unit);
      const to = Math.min(32, (this.#fillEnd - start) / unit);
      mask = subclusterMask(from, to);
    }
    words[word + 2] = (words[word + 2]! & ~mask) >>> 0;
    words[word + 3] = (words[word + 3]! | mask) >>> 0;
  }

  #giveArea(): void {
    if (this.#area === undefined) return;
    buffers.give(this.#area);
    this.#area = undefined;
  }
}

const EMPTY = Buffer.alloc(0);

/** Bits [from, to) of a subcluster bitmap. */
export function subclusterMask(from: number, to: number): number {
  return to - from >= 32 ? ALL_SUBCLUSTERS : ((2 ** (to - from) - 1) << from) >>> 0;
}

/** A host cluster that may be written to: it is not compressed and nobody else's. */
function isOwnCluster(high: number, low: number): boolean {
  return (high & COPIED_HIGH) !== 0 && (high & COMPRESSED_HIGH) === 0 && entryOffset(high, low) !== 0;
}

/** Whether a write to part of the cluster must copy all of it. */
function copiesWhole(words: Uint32Array, word: number, extended: boolean): boolean {
  if (!extended) return true;
  const high = words[word]!;
  return (high & COMPRESSED_HIGH) !== 0 || entryOffset(high, words[word + 1]!) !== 0;
}

/** An entry that cannot be: a run stops before it, so that `lookup` meets it. */
function isSuspect(words: Uint32Array, word: number, extended: boolean, clusterSize: number): boolean {
  const high = words[word]!;
  if ((high & COMPRESSED_HIGH) !== 0) return false;
  const offset = entryOffset(high, words[word + 1]!);
  if (offset % clusterSize !== 0) return true;
  if (!extended) return false;
  const allocated = words[word + 3]!;
  return (words[word + 2]! & allocated) !== 0 || (offset === 0 && allocated !== 0);
}

function outside(image: Image, hostOffset: number): Error {
  return image.damaged(
    `Preventing invalid write past the end of the file (guest data at host offset 0x${hostOffset.toString(16)})`,
  );
}

// A table that is held in memory as a whole, the L1 table or the refcount table: bounded by QEMU's limits (32
// MiB, 8 MiB), so a disk of 16 TiB with 64 KiB clusters has 256 KiB of it. Changes are written back by
// sectors.

import { TABLE_SECTOR_BYTES, type TableWrite } from "./table-writes.ts";

const SECTOR_ENTRIES = TABLE_SECTOR_BYTES / 8;

export class WholeTable {
  /** Where it stands in the file, in bytes. */
  offset: number;
  entries: number;
  /** High and low half of each entry, in turn. */
  words: Uint32Array;
  #dirty = new Set<number>();

  /** @param image the table as it stands in the file, `entries * 8` bytes */
  constructor(offset: number, entries: number, image: Buffer) {
    this.offset = offset;
    this.entries = entries;
    this.words = new Uint32Array(entries * 2);
    for (let i = 0; i < entries * 2; i++) this.words[i] = image.readUInt32BE(i * 4);
  }

  /** Entries that are not zero. */
  usedEntries(): number {
    let used = 0;
    for (let i = 0; i < this.words.length; i += 2) if (this.words[i] !== 0 || this.words[i + 1] !== 0) used++;
    return used;
  }

  /** Becomes what `table` is: it was read again. */
  replace(table: WholeTable): void {
    this.offset = table.offset;
    this.entries = table.entries;
    this.words = table.words;
    this.#dirty.clear();
  }

  get isDirty(): boolean {
    return this.#dirty.size > 0;
  }

  set(index: number, high: number, low: number): void {
    this.words[index * 2] = high;
    this.words[index * 2 + 1] = low;
    this.#dirty.add(Math.floor(index / SECTOR_ENTRIES));
  }

  /** Copies of what changed, for a write-back; the table counts as clean then. */
  take(): TableWrite[] {
    const writes: TableWrite[] = [];
    for (const sector of this.#dirty) {
      const first = sector * SECTOR_ENTRIES;
      const count = Math.min(SECTOR_ENTRIES, this.entries - first);
      const buffer = Buffer.allocUnsafe(count * 8);
      this.#encode(first, count, buffer);
      writes.push({ offset: this.offset + sector * TABLE_SECTOR_BYTES, bytes: count * 8, buffer });
    }
    this.#dirty.clear();
    return writes;
  }

  /** A write-back of what `take` gave failed: it is dirty again. */
  putBack(writes: readonly TableWrite[]): void {
    for (const { offset } of writes) this.#dirty.add((offset - this.offset) / TABLE_SECTOR_BYTES);
  }

  /** The whole table as in the file, zeros behind it up to `bytes`. */
  image(bytes: number): Buffer {
    const buffer = Buffer.alloc(bytes);
    this.#encode(0, this.entries, buffer);
    return buffer;
  }

  /** All of it is in the file. */
  clean(): void {
    this.#dirty.clear();
  }

  /** The table stands elsewhere now and may be longer. What is dirty stays dirty. */
  moved(offset: number, entries: number): void {
    const words = new Uint32Array(entries * 2);
    words.set(this.words);
    this.words = words;
    this.entries = entries;
    this.offset = offset;
  }

  #encode(first: number, count: number, out: Buffer): void {
    for (let i = 0; i < count * 2; i++) out.writeUInt32BE(this.words[first * 2 + i]!, i * 4);
  }
}

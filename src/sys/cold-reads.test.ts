import { describe, expect, it } from "vitest";
import { BlockError } from "../base/errors.ts";
import { Prng } from "../base/prng.ts";
import { type ColdRead, ColdReads } from "./cold-reads.ts";

const PAGE = 64;

/** A disk whose pages come when the test says so. */
class SlowDisk {
  /** Offsets whose page is in the page cache by now. */
  readonly cached = new Set<number>();
  readonly inPool = new Map<ColdRead, () => void>();
  readonly broken = new Set<number>();
  looks = 0;
  readonly reads = new ColdReads({
    look: (read) => {
      this.looks++;
      if (this.broken.has(read.offset)) throw new BlockError("EIO", `no page at ${read.offset}`);
      if (!this.cached.has(read.offset)) return false;
      this.#fill(read);
      return true;
    },
    wait: (read) =>
      new Promise((resolve, reject) => {
        this.inPool.set(read, () => {
          this.inPool.delete(read);
          if (this.broken.has(read.offset)) return reject(new BlockError("EIO", `no page at ${read.offset}`));
          this.#fill(read);
          resolve();
        });
      }),
  });

  get(offset: number, done = 0): { buffer: Buffer; settled: Promise<void> } {
    const buffer = Buffer.alloc(PAGE);
    return { buffer, settled: this.reads.read(offset, done, PAGE, buffer, 0) };
  }

  /** The oldest read of the pool comes back. */
  async comeBack(): Promise<void> {
    [...this.inPool.values()][0]!();
    for (let i = 0; i < 5; i++) await Promise.resolve();
  }

  #fill(read: ColdRead): void {
    read.buffer.fill(read.offset / PAGE, read.at + read.done, read.at + read.bytes);
    read.done = read.bytes;
  }
}

function many(disk: SlowDisk, count: number) {
  return Array.from({ length: count }, (_, i) => disk.get(i * PAGE));
}

describe("cold reads", () => {
  it("fill a few places of the pool, and park the rest", () => {
    const disk = new SlowDisk();
    many(disk, 3);
    expect([disk.inPool.size, disk.reads.parked]).toEqual([3, 0]);
    many(disk, 10);
    expect([disk.inPool.size, disk.reads.parked]).toEqual([4, 9]);
  });

  it("are done without the pool where the page cache has them when one comes back", async () => {
    const disk = new SlowDisk();
    const reads = many(disk, 8);
    for (const page of [4, 5, 6]) disk.cached.add(page * PAGE);
    await disk.comeBack();
    for (const page of [0, 4, 5, 6]) {
      await reads[page]!.settled;
      expect(reads[page]!.buffer).toEqual(Buffer.alloc(PAGE, page));
    }
    expect([disk.inPool.size, disk.reads.parked]).toEqual([4, 0]);
  });

  it("take the free place in the pool in order of arrival", async () => {
    const disk = new SlowDisk();
    many(disk, 7);
    await disk.comeBack();
    expect([...disk.inPool.keys()].map((read) => read.offset / PAGE)).toEqual([1, 2, 3, 4]);
    expect(disk.reads.parked).toBe(2);
  });

  it("keep what the first look has brought", async () => {
    const disk = new SlowDisk();
    const { buffer, settled } = disk.get(7 * PAGE, 10);
    await disk.comeBack();
    await settled;
    expect(buffer).toEqual(Buffer.concat([Buffer.alloc(10), Buffer.alloc(PAGE - 10, 7)]));
  });

  it("do not look at everybody when the oldest are not there yet", async () => {
    const disk = new SlowDisk();
    many(disk, 100);
    await disk.comeBack();
    expect(disk.looks).toBe(3);
  });

  it("fail alone", async () => {
    const disk = new SlowDisk();
    const reads = many(disk, 7);
    disk.broken.add(0).add(4 * PAGE);
    disk.cached.add(5 * PAGE);
    const failures = [0, 4].map((page) => expect(reads[page]!.settled).rejects.toThrow("no page at"));
    await disk.comeBack();
    await Promise.all(failures);
    await reads[5]!.settled;
    expect([...disk.inPool.keys()].map((read) => read.offset / PAGE)).toEqual([1, 2, 3, 6]);
  });

  it("go to the pool at once for a while where looking again finds nothing", async () => {
    const disk = new SlowDisk();
    const reads = many(disk, 400);
    for (let i = 0; i < 300; i++) await disk.comeBack();
    const [inPool, { parked }] = [disk.inPool.size, disk.reads];
    reads.push(...many(disk, 20));
    expect([disk.inPool.size, disk.reads.parked]).toEqual([inPool + 20, parked]);
    while (disk.inPool.size > 0) await disk.comeBack();
    await Promise.all(reads.map((read) => read.settled));
  });

  it("all end, whatever comes when: 50 seeds", async () => {
    for (let seed = 1; seed <= 50; seed++) {
      const prng = new Prng(seed);
      const disk = new SlowDisk();
      const reads: { page: number; buffer: Buffer; settled: Promise<void> }[] = [];
      for (let step = 0; step < 200; step++) {
        const page = prng.below(64);
        const dice = prng.below(4);
        if (dice === 0) disk.cached.add(page * PAGE);
        else if (dice === 1 && disk.inPool.size > 0) await disk.comeBack();
        else reads.push({ page, ...disk.get(page * PAGE) });
      }
      while (disk.inPool.size > 0) await disk.comeBack();
      expect(disk.reads.parked, `seed ${seed}`).toBe(0);
      await Promise.all(reads.map((read) => read.settled));
      const wrong = reads.filter(({ page, buffer }) => !buffer.equals(Buffer.alloc(PAGE, page)));
      expect(wrong, `seed ${seed}`).toEqual([]);
    }
  });
});

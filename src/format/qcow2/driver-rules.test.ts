// The write-back rules, one by one; their text is at the heads of flusher.ts, deferred-frees.ts and
// allocator.ts.

import { describe, expect, it } from "vitest";
import { type Clock, ManualClock, systemClock } from "../../base/clock.ts";
import { KiB, MiB } from "../../base/units.ts";
import { WriteFlags } from "../../block/driver.ts";
import { FaultFile, HeldCalls } from "../../sys/fault-file.ts";
import type { MemoryFile } from "../../sys/memory-file.ts";
import { checkImage } from "./check.ts";
import type { CreateOptions } from "./create.ts";
import { hostImageFile } from "./image-file.ts";
import { fileNode, newMemoryImage, type OpenImage, openImage, readAll, writeAll } from "./testing/nodes.ts";

const CLUSTER = 4 * KiB;

interface Bench extends OpenImage {
  readonly file: FaultFile;
  readonly memory: MemoryFile;
}

async function bench(
  options: Partial<CreateOptions> = {},
  cacheBytes = 8 * MiB,
  clock: Clock = systemClock,
): Promise<Bench> {
  const memory = await newMemoryImage({ size: 4 * MiB, clusterSize: CLUSTER, ...options });
  const file = new FaultFile(memory);
  const image = await openImage(file, { l2CacheBytes: cacheBytes, refcountCacheBytes: cacheBytes, clock });
  return { ...image, file, memory };
}

/** What a recorded write went to. */
function places({ driver, file }: Bench): string[] {
  const { image } = driver;
  const { header } = image;
  const l2 = new Set<number>();
  for (let i = 0; i < image.l1.entries; i++) {
    const offset = image.l1.words[i * 2 + 1]! & ~511;
    if (offset !== 0) l2.add(offset);
  }
  const blocks = new Set<number>();
  for (let i = 0; i < image.refcounts.table.entries; i++) blocks.add(image.refcounts.blockOffset(i));
  return file.recorded.map(({ kind, offset }) => {
    const cluster = offset - (offset % image.clusterSize);
    if (kind === "sync") return "sync";
    if (cluster === 0) return "header";
    if (offset >= header.l1TableOffset && offset < header.l1TableOffset + header.l1Size * 8) return "L1";
    if (offset >= header.refcountTableOffset && cluster === header.refcountTableOffset)
      return "refcount table";
    if (blocks.has(cluster)) return "refcounts";
    return l2.has(cluster) ? "L2" : "data";
  });
}

async function check(memory: MemoryFile) {
  const lines: string[] = [];
  const { corruptions, leaks, checkErrors } = await checkImage(hostImageFile(memory), {
    tell: (line) => lines.push(line),
  });
  return { corruptions, leaks, checkErrors, lines };
}

const CLEAN = { corruptions: 0, leaks: 0, checkErrors: 0, lines: [] };

/** Lets everything go on that does not wait for something held. */
async function settle(): Promise<void> {
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
}

describe("the order of a write-back", () => {
  it("R1, R2, R4, R6: data and refcounts, sync, L2 and L1, sync", async () => {
    const b = await bench();
    await writeAll(b.node, 0, Buffer.alloc(CLUSTER, 1));
    await b.node.flush();
    b.file.recording = true;
    await writeAll(b.node, 3 * MiB, Buffer.alloc(2 * CLUSTER, 2));
    await b.node.flush();
    expect(places(b)).toEqual(["L2", "data", "refcounts", "sync", "L2", "L1", "sync"]);
    // The first "L2" is the new table, zeroed before anything points at it.
    expect(b.file.recorded[0]!.kind).toBe("zeroes");
  });

  it("a write in place is data and one sync", async () => {
    const b = await bench();
    await writeAll(b.node, 0, Buffer.alloc(CLUSTER, 1));
    await b.node.flush();
    b.file.recording = true;
    await writeAll(b.node, 100, Buffer.alloc(600, 2));
    await b.node.flush();
    expect(places(b)).toEqual(["data", "sync"]);
  });

  it("a refcount block is durable before the refcount table points at it", async () => {
    const b = await bench({ clusterSize: 512, refcountBits: 64, size: MiB });
    await writeAll(b.node, 0, Buffer.alloc(512, 1));
    await b.node.flush();
    b.file.recording = true;
    await writeAll(b.node, 0, Buffer.alloc(64 * KiB, 1));
    await b.node.flush();
    const order = places(b).filter((place, i, all) => place !== all[i - 1]);
    const table = order.indexOf("refcount table");
    expect(order.slice(table - 2, table + 3)).toEqual(["refcounts", "sync", "refcount table", "sync", "L2"]);
  });

  it("callers that come while a flush runs share the next one", async () => {
    const b = await bench();
    await writeAll(b.node, 0, Buffer.alloc(CLUSTER, 1));
    b.file.delays = new HeldCalls("sync");
    const flushes = [b.node.flush(), b.node.flush(), b.node.flush(), b.node.flush()];
    await settle();
    (b.file.delays as HeldCalls).release();
    await Promise.all(flushes);
    // Mark of use, data, tables; then one for the other three.
    expect(b.file.counts.sync).toBe(2 + 2 + 1);
  });

  it("a failed write-back keeps everything dirty and fails the flush; the next one writes it", async () => {
    for (const kind of ["write", "sync"] as const) {
      for (let nth = 1; nth <= 4; nth++) {
        const b = await bench();
        await writeAll(b.node, 0, Buffer.alloc(CLUSTER, 1));
        await b.node.flush();
        await writeAll(b.node, CLUSTER, Buffer.alloc(CLUSTER, 2));
        await b.node.writeZeroes(0, CLUSTER, WriteFlags.MAY_UNMAP);
        b.file.fail({ kind, errno: "EIO", nth });
        const before = b.file.counts[kind];
        await Promise.resolve(b.node.flush()).catch(() => undefined);
        const hit = b.file.counts[kind] - before >= nth;
        b.file.clearFaults();
        if (!hit) continue;
        await b.driver.close();
        expect(await check(b.memory)).toEqual(CLEAN);
        const again = await openImage(b.memory, { readOnly: true });
        expect((await readAll(again.node, 0, 2 * CLUSTER)).equals(twoClusters(0, 2))).toBe(true);
      }
    }
  });
});

function twoClusters(first: number, second: number): Buffer {
  return Buffer.concat([Buffer.alloc(CLUSTER, first), Buffer.alloc(CLUSTER, second)]);
}

describe("freeing", () => {
  it("R3: a freed cluster keeps its refcount, and is not reused, before its entry is durably gone", async () => {
    const b = await bench();
    await writeAll(b.node, 0, Buffer.alloc(CLUSTER, 1));
    await b.node.flush();
    const size = b.memory.size;
    await b.node.discard(0, CLUSTER);
    await writeAll(b.node, CLUSTER, Buffer.alloc(CLUSTER, 2));
    expect(b.memory.size).toBe(size + CLUSTER);
    await b.node.flush();
    await b.driver.image.frees.settled();
    await writeAll(b.node, 2 * CLUSTER, Buffer.alloc(CLUSTER, 3));
    expect(b.memory.size).toBe(size + CLUSTER);
    await b.driver.close();
    expect(await check(b.memory)).toEqual(CLEAN);
  });

  it("R3: a hole is punched before the cluster may be used again", async () => {
    const b = await bench();
    await writeAll(b.node, 0, Buffer.alloc(CLUSTER, 1));
    await b.node.flush();
    const size = b.memory.size;
    const held = new HeldCalls("discard");
    b.file.delays = held;
    await b.node.discard(0, CLUSTER);
    await b.node.flush();
    await settle();
    expect(held.held).toBe(1);
    await writeAll(b.node, CLUSTER, Buffer.alloc(CLUSTER, 2));
    expect(b.memory.size).toBe(size + CLUSTER);
    held.release();
    await b.driver.close();
    expect(await check(b.memory)).toEqual(CLEAN);
    const again = await openImage(b.memory, { readOnly: true });
    expect((await readAll(again.node, CLUSTER, CLUSTER)).equals(Buffer.alloc(CLUSTER, 2))).toBe(true);
  });

  it("R8: a cluster is not reused under a read that began before", async () => {
    const b = await bench();
    await writeAll(b.node, 0, Buffer.alloc(CLUSTER, 1));
    await b.node.flush();
    const held = new HeldCalls("read");
    b.file.delays = held;
    const seen = Buffer.alloc(CLUSTER);
    const reading = b.node.read(0, CLUSTER, seen, 0);
    expect(held.held).toBe(1);
    await b.node.discard(0, CLUSTER);
    await b.node.flush();
    await settle();
    await writeAll(b.node, CLUSTER, Buffer.alloc(CLUSTER, 2));
    await b.node.flush();
    held.release();
    await reading;
    expect(seen.equals(Buffer.alloc(CLUSTER, 1))).toBe(true);
    await b.driver.close();
    expect(await check(b.memory)).toEqual(CLEAN);
  });

  it("R8: closing waits for what a client was lent for a while only, also behind a slow hole punch", async () => {
    const clock = new ManualClock();
    const b = await bench({}, 8 * MiB, clock);
    await writeAll(b.node, 0, Buffer.alloc(2 * CLUSTER, 1));
    await b.node.flush();
    const held = new HeldCalls("discard");
    b.file.delays = held;
    await b.node.discard(0, CLUSTER);
    await b.node.flush();
    await settle();
    expect(held.held).toBe(1);
    // Lent for ever while that hole is punched; the next cluster waits for it.
    b.driver.image.lentRanges.lent({ offset: 0, bytes: b.memory.size });
    await b.node.discard(CLUSTER, CLUSTER);
    await b.node.flush();
    let isClosed = false;
    const closed = b.driver.close().then(() => {
      isClosed = true;
    });
    await settle();
    clock.advance(5000);
    await settle();
    expect(isClosed).toBe(false);
    held.release();
    await settle();
    clock.advance(5000);
    await settle();
    expect(isClosed).toBe(true);
    await closed;
    expect(b.driver.image.frees.counters).toMatchObject({ freedClusters: 1, leakedClusters: 1 });
  });

  it("does not let the file grow without bound, with and without flushes", { timeout: 120_000 }, async () => {
    for (const flushes of [true, false]) {
      const b = await bench({ size: 32 * MiB, clusterSize: 64 * KiB });
      const content = Buffer.alloc(4 * MiB, 1);
      for (let round = 0; round < 50; round++) {
        await writeAll(b.node, (round % 8) * 4 * MiB, content);
        await b.node.discard((round % 8) * 4 * MiB, content.length);
        if (flushes) await b.node.flush();
        await settle();
      }
      // 200 MiB were written: what may wait for a flush is 64 MiB.
      expect(b.memory.size).toBeLessThan(flushes ? 16 * MiB : 80 * MiB);
      await b.driver.close();
      expect(await check(b.memory)).toEqual(CLEAN);
    }
  });

  it("uses gaps again after the image was opened anew", async () => {
    const b = await bench();
    await writeAll(b.node, 0, Buffer.alloc(MiB, 1));
    await b.node.discard(0, MiB / 2);
    await b.driver.close();
    const size = b.memory.size;
    const again = await openImage(b.memory);
    await writeAll(again.node, 2 * MiB, Buffer.alloc(MiB / 2, 2));
    expect(b.memory.size).toBeLessThanOrEqual(size + CLUSTER);
    await again.driver.close();
    expect(await check(b.memory)).toEqual(CLEAN);
  });
});

describe("allocation", () => {
  it("R9: a first write finishes at once and writes nothing but its data", async () => {
    const b = await bench();
    await writeAll(b.node, 0, Buffer.alloc(512, 1));
    b.file.recording = true;
    const content = Buffer.alloc(5 * CLUSTER, 2);
    expect(b.node.write(10 * CLUSTER, content.length, content, 0)).toBeUndefined();
    expect(places(b)).toEqual(["data"]);
  });

  it("R5: a failed first write leaks nothing", async () => {
    const b = await bench();
    await writeAll(b.node, 0, Buffer.alloc(512, 1));
    b.file.fail({ kind: "write", errno: "ENOSPC" });
    expect(() => b.node.write(CLUSTER, 100, Buffer.alloc(100, 1), 0)).toThrow("No space left on device");
    await b.driver.close();
    expect(await check(b.memory)).toEqual(CLEAN);
    const again = await openImage(b.memory, { readOnly: true });
    expect((await readAll(again.node, CLUSTER, CLUSTER)).equals(Buffer.alloc(CLUSTER))).toBe(true);
  });

  it("R7: dirty slices are written in batches, not one by one", async () => {
    const b = await bench({ clusterSize: 512, size: 2 * MiB }, 0);
    const before = b.file.counts.sync;
    // Every write is in another slice; sixteen fit the cache.
    for (let at = 0; at < 2 * MiB; at += 32 * KiB) await writeAll(b.node, at, Buffer.alloc(512, 1));
    expect(b.driver.image.l2.sliceCount).toBeLessThanOrEqual(16);
    expect(b.file.counts.sync - before).toBeLessThan(40);
    await b.driver.close();
    expect(await check(b.memory)).toEqual(CLEAN);
  });

  it("believes no refcounts that call the header or a table free: nothing is written, the image is marked", async () => {
    const b = await bench();
    await writeAll(b.node, 0, Buffer.alloc(CLUSTER, 1));
    await b.driver.close();
    const block = b.driver.image.refcounts.blockOffset(0);
    b.memory.write(block, 512, Buffer.alloc(512), 0);
    const before = b.memory.content(0, b.memory.size);
    const again = await openImage(b.memory);
    const write = writeAll(again.node, CLUSTER, Buffer.alloc(20 * CLUSTER, 2));
    await expect(write).rejects.toThrow("overlaps with qcow2_header");
    await expect(again.driver.close()).resolves.toBeUndefined();
    expect(b.memory.content(80, before.length - 80).equals(before.subarray(80))).toBe(true);
    expect(b.memory.content(79, 1)[0]).toBe(2);
  });

  it("refuses to write guest data over metadata and marks the image", async () => {
    const b = await bench();
    await writeAll(b.node, 0, Buffer.alloc(CLUSTER, 1));
    await b.driver.close();
    const { l1 } = b.driver.image;
    const l2Offset = l1.words[1]! & ~511;
    const entry = Buffer.alloc(8);
    entry.writeUInt32BE(0x8000_0000, 0);
    entry.writeUInt32BE(l1.offset, 4);
    b.memory.write(l2Offset + 8, 8, entry, 0);
    const again = await openImage(b.memory);
    const before = b.memory.content(l1.offset, CLUSTER);
    await expect(writeAll(again.node, CLUSTER, Buffer.alloc(512, 3))).rejects.toMatchObject({ code: "EIO" });
    expect(b.memory.content(l1.offset, CLUSTER).equals(before)).toBe(true);
    await expect(writeAll(again.node, 0, Buffer.alloc(512, 3))).rejects.toThrow("takes no more writes");
    await again.driver.close();
    await expect(openImage(b.memory)).rejects.toThrow("Image is corrupt; cannot be opened read/write");
  });
});

describe("what stands past the end of a truncated file", () => {
  it("data: no write gets there, and the file does not grow", async () => {
    const b = await bench();
    await writeAll(b.node, 0, Buffer.alloc(2 * CLUSTER, 1));
    await b.driver.close();
    const kept = b.memory.size - CLUSTER;
    b.memory.truncate(kept);
    const again = await openImage(b.memory);
    await writeAll(again.node, 0, Buffer.alloc(CLUSTER, 2));
    const both = writeAll(again.node, 512, Buffer.alloc(2 * CLUSTER - 512, 3));
    await expect(both).rejects.toThrow("past the end of the file");
    expect(b.memory.size).toBe(kept);
  });

  it("data: an error for the guest and for a copy, not zeros; the last cluster may end early", async () => {
    const b = await bench();
    await writeAll(b.node, 0, Buffer.alloc(2 * CLUSTER, 1));
    await b.driver.close();
    b.memory.truncate(b.memory.size - CLUSTER - 100);
    const again = await openImage(b.memory, { readOnly: true });
    const first = await readAll(again.node, 0, CLUSTER);
    expect(first.equals(Buffer.concat([Buffer.alloc(CLUSTER - 100, 1), Buffer.alloc(100)]))).toBe(true);
    await expect(readAll(again.node, CLUSTER, 512)).rejects.toMatchObject({ code: "EIO" });
    await expect(readAll(again.node, 0, 2 * CLUSTER)).rejects.toThrow("lies past the end of the file");
  });

  it("an L2 table: an error where its data was, not zeros", async () => {
    const b = await bench();
    await writeAll(b.node, 0, Buffer.alloc(CLUSTER, 1));
    await b.driver.close();
    b.memory.truncate(b.driver.image.l1.words[1]! & ~511);
    const again = await openImage(b.memory);
    await expect(readAll(again.node, 0, 512)).rejects.toThrow("it was truncated");
    await expect(readAll(again.node, 0, 512)).rejects.toMatchObject({ code: "EIO" });
  });

  it("a refcount block: nothing is allocated by it", async () => {
    const b = await bench();
    await b.driver.close();
    const entry = Buffer.alloc(8);
    entry.writeUInt32BE(256, 0);
    b.memory.write(b.driver.image.header.refcountTableOffset, 8, entry, 0);
    const again = await openImage(b.memory, { readOnly: true });
    expect((await readAll(again.node, 0, CLUSTER)).equals(Buffer.alloc(CLUSTER))).toBe(true);
    const refused = openImage(b.memory).then(({ node }) => writeAll(node, 0, Buffer.alloc(CLUSTER, 1)));
    await expect(refused).rejects.toThrow("the image was truncated");
  });
});

describe("a host that fails at its n-th call, for every n", () => {
  const scenario = async ({ node, driver }: OpenImage) => {
    // New L2 tables, refcount blocks, a larger refcount table, frees, a larger L1 table.
    for (let at = 0; at < 2560 * KiB; at += 256 * KiB) await writeAll(node, at, Buffer.alloc(256 * KiB, 5));
    await node.flush();
    await node.discard(KiB, 300 * KiB);
    await node.flush();
    await writeAll(node, 700, Buffer.alloc(9000, 6));
    await node.truncate(node.size + 4 * MiB);
    await driver.image.frees.settled();
    await writeAll(node, node.size - 1000, Buffer.alloc(1000, 7));
    await node.flush();
  };

  it("leaves no error and at worst leaks", { timeout: 300_000 }, async () => {
    let failures = 0;
    for (let nth = 1; ; nth += nth < 60 ? 1 : 7) {
      const b = await bench({ clusterSize: 512, refcountBits: 64, size: 2560 * KiB + 512 }, 16 * KiB);
      b.file.fail({ kind: "any", errno: "ENOSPC", nth });
      const failed = await scenario(b).then(
        () => false,
        () => true,
      );
      b.file.clearFaults();
      if (b.driver.image.stopped === undefined) await b.driver.close();
      const { lines, leaks: _, ...result } = await check(b.memory);
      expect(result, `call ${nth}: ${lines.slice(0, 3).join("; ")}`).toEqual({
        corruptions: 0,
        checkErrors: 0,
      });
      if (failed) failures++;
      else if (nth > 200) break;
    }
    expect(failures).toBeGreaterThan(30);
  });
});

describe("growth at exact boundaries", () => {
  it("keeps the image right while blocks and table are added", { timeout: 120_000 }, async () => {
    for (const refcountBits of [1, 8, 16, 64]) {
      const b = await bench({ clusterSize: 512, refcountBits, size: 12 * MiB });
      let at = 0;
      for (let i = 0; at < 11 * MiB; i++) {
        const bytes = 512 * (1 + (i % 7) * 191);
        await writeAll(b.node, at, Buffer.alloc(bytes, 1 + (i % 250)));
        at += bytes;
      }
      await b.driver.close();
      expect(await check(b.memory)).toEqual(CLEAN);
    }
  });

  it("works past 2^40 in the file and on disks of 16 TiB, in bounded memory", async () => {
    for (const clusterSize of [64 * KiB, 2 * MiB]) {
      const b = await bench({ clusterSize, size: 16 * 1024 * 1024 * MiB });
      await writeAll(b.node, 0, Buffer.alloc(512, 1));
      b.driver.image.allocator.skipTo(2 ** 41 / clusterSize);
      const content = Buffer.alloc(3 * clusterSize, 9);
      for (const at of [15 * MiB + 512, 2 ** 40 + 77, 2 ** 44 - content.length])
        await writeAll(b.node, at, content);
      await b.driver.close();
      expect(b.memory.size).toBeGreaterThan(2 ** 41);
      const again = await openImage(b.memory, { readOnly: true });
      const seen = await readAll(again.node, 2 ** 40, content.length + 200);
      expect(seen.subarray(77, 77 + content.length).equals(content)).toBe(true);
      expect(seen.subarray(0, 77).equals(Buffer.alloc(77))).toBe(true);
      expect((await readAll(again.node, 2 ** 44 - 10, 10)).equals(Buffer.alloc(10, 9))).toBe(true);
    }
  });

  it("handles disks that end inside a cluster or a sector", async () => {
    for (const odd of [1, 511, 512, 513, CLUSTER - 1]) {
      const size = 3 * CLUSTER + odd;
      const memory = await newMemoryImage({ size: 4 * CLUSTER, clusterSize: CLUSTER });
      const field = Buffer.alloc(8);
      field.writeBigUInt64BE(BigInt(size), 0);
      memory.write(24, 8, field, 0);
      const raw = await newMemoryImage({ size: 8 * CLUSTER });
      raw.write(0, 8 * CLUSTER, Buffer.alloc(8 * CLUSTER, 0xba), 0);
      const image = await openImage(memory, { backing: fileNode(raw, { growable: false }) });
      await writeAll(image.node, size - 1, Buffer.from([1]));
      await image.node.writeZeroes(2 * CLUSTER + 5, size - 2 * CLUSTER - 5, 0);
      await image.node.discard(CLUSTER, size - CLUSTER);
      expect(await image.node.copyUp(0, size, undefined)).toBe(CLUSTER);
      const seen = await readAll(image.node);
      expect(seen.equals(Buffer.concat([Buffer.alloc(CLUSTER, 0xba), Buffer.alloc(size - CLUSTER)]))).toBe(
        true,
      );
      await image.driver.close();
      expect(await check(memory)).toEqual(CLEAN);
    }
  });
});

// Tables of images that mean harm; each was found by a fuzzer (`scripts/fuzz image`).

import { describe, expect, it } from "vitest";
import { BlockError } from "../../base/errors.ts";
import { KiB, TiB } from "../../base/units.ts";
import type { MemoryFile } from "../../sys/memory-file.ts";
import { checkImage } from "./check.ts";
import { verdictOf } from "./check-report.ts";
import { hostImageFile } from "./image-file.ts";
import { repairImage } from "./repair.ts";
import type { Snapshot } from "./snapshots.ts";
import { newMemoryImage, openImage, readAll, writeAll } from "./testing/nodes.ts";

/** Where the header says that the L1 table stands. */
function l1Offset(host: MemoryFile): number {
  return Number(host.content(40, 8).readBigUInt64BE(0));
}

describe("an L1 entry that is marked as our own and names no table (seed 452)", () => {
  it("gets one when it is written to", async () => {
    const host = await newMemoryImage({ size: 256 * KiB });
    host.write(l1Offset(host), 1, Buffer.from([0x80]), 0);
    const { node, driver } = await openImage(host);
    await writeAll(node, 1000, Buffer.from("written"));
    await node.writeZeroes(70_000, 10, 0);
    expect((await readAll(node, 1000, 7)).toString()).toBe("written");
    await driver.close();
    expect(verdictOf(await checkImage(hostImageFile(host)))).toBe("clean");
  });
});

describe("a discard that meets an entry that cannot be behind one that it has changed", () => {
  it.each([2, 3] as const)("frees nothing that the file still points to (version %d)", async (version) => {
    const host = await newMemoryImage({ size: 256 * KiB, clusterSize: 4 * KiB, version });
    const first = await openImage(host);
    await writeAll(first.node, 0, Buffer.alloc(8 * KiB, 1));
    await first.driver.close();
    const table = Number(host.content(l1Offset(host), 8).readBigUInt64BE(0) & 0xffffffffffffn);
    host.write(table + 8 + 6, 1, Buffer.from([host.content(table + 8 + 6, 1)[0]! ^ 2]), 0);
    const damage = await checkImage(hostImageFile(host));
    const { node, driver } = await openImage(host);
    await expect((async () => node.discard(0, 8 * KiB))()).rejects.toMatchObject({ code: "EIO" });
    await driver.close();
    const after = await checkImage(hostImageFile(host));
    expect(after.corruptions).toBe(damage.corruptions);
  });
});

// Each cluster was looked at, one after the other: minutes for a file that takes no space (seeds 774, 1056).
describe("a file that is long and empty", () => {
  it.each([16, 64])(
    "is checked and repaired by what is in it, refcounts of %d bits",
    async (refcountBits) => {
      const host = await newMemoryImage({ size: 64 * KiB, clusterSize: 4 * KiB, refcountBits });
      host.truncate(1 * TiB);
      expect(verdictOf(await checkImage(hostImageFile(host)))).toBe("clean");
      // A leak, a reference without refcount and one far out.
      host.write(2 * 4096 + (refcountBits / 8) * 9, 8, Buffer.from([0, 0, 0, 0, 0, 0, 0, 1]), 0);
      expect(verdictOf(await checkImage(hostImageFile(host)))).toBe("leaks");
      await repairImage(hostImageFile(host), "all");
      expect(verdictOf(await checkImage(hostImageFile(host)))).toBe("clean");
    },
  );

  // Gaps were looked for in each part of the file, in one turn of the loop (seed 35575).
  it("is written to: into its gaps, then behind its end or not at all", async () => {
    const host = await newMemoryImage({ size: 1024 * KiB, clusterSize: 512 });
    host.truncate(2 ** 52);
    const { node, driver } = await openImage(host);
    await writeAll(node, 5000, Buffer.from("written"));
    // 256 clusters have refcounts; the table cannot be made long enough for the end of the file.
    const more = writeAll(node, 100_000, Buffer.alloc(300 * KiB, 1));
    await expect(more).rejects.toBeInstanceOf(BlockError);
    await driver.close();
  });

  // How many refcount blocks the end of the file needs was counted one by one (400157+400253+400573).
  it("says at once that it is too long when a table is to stand behind its end", async () => {
    const host = await newMemoryImage({ size: 256 * KiB, clusterSize: 512, refcountBits: 64 });
    host.truncate(2 ** 52);
    const { node, driver } = await openImage(host);
    await expect((async () => node.truncate(1024 * 1024 * KiB))()).rejects.toBeInstanceOf(BlockError);
    await driver.close();
  });

  it("has its refcounts rebuilt, with references near both ends", async () => {
    const host = await newMemoryImage({ size: 64 * KiB, clusterSize: 4 * KiB });
    const { node, driver } = await openImage(host);
    await writeAll(node, 0, Buffer.alloc(8 * KiB, 3));
    await driver.close();
    const l2 = Number(host.content(l1Offset(host), 8).readBigUInt64BE(0) & 0x00ff_ffff_ffff_fe00n);
    const entry = Buffer.alloc(8);
    const far = TiB / 2 - 4 * KiB;
    entry.writeBigUInt64BE((1n << 63n) | BigInt(far));
    host.write(l2 + 8, 8, entry, 0);
    host.write(far, 4 * KiB, Buffer.alloc(4 * KiB, 9), 0);
    expect(verdictOf(await checkImage(hostImageFile(host)))).toBe("corrupt");
    await repairImage(hostImageFile(host), "all");
    expect(verdictOf(await checkImage(hostImageFile(host)))).toBe("clean");
    const again = await openImage(host);
    expect((await readAll(again.node, 4 * KiB, 2))[0]).toBe(9);
    await again.driver.close();
  });
});

// All of their clusters went into a map, until it was full (case 909602).
describe("snapshots with enormous L1 tables in a long file", () => {
  it("cannot be written beside, and the image says so", async () => {
    const host = await newMemoryImage({ size: 256 * KiB, clusterSize: 512 });
    host.truncate(1 * TiB);
    const { driver } = await openImage(host);
    const { image } = driver;
    const snapshot = { l1TableOffset: 1024 * KiB, l1Size: 4 * 1024 * KiB } as Snapshot;
    const places = image.places.size;
    image.snapshots = new Array(1000).fill(snapshot);
    expect(() => image.collectMetadata()).toThrow("open the image for reading only");
    expect(image.places.size).toBe(places);
    await driver.close();
  });
});

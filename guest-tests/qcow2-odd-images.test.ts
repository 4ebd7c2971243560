// Images that are unusual, damaged or hostile: persistent bitmaps, a dirty bit, unknown features, enormous
// disks, entries that point where they must not.

import { closeSync, openSync, readFileSync, writeFileSync, writeSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { BlockError } from "../src/base/errors.ts";
import { Prng } from "../src/base/prng.ts";
import { KiB, MiB, TiB } from "../src/base/units.ts";
import { verdictOf } from "../src/format/qcow2/check-report.ts";
import { hostImageFile } from "../src/format/qcow2/image-file.ts";
import { repairImage } from "../src/format/qcow2/repair.ts";
import { openHostFile } from "../src/sys/open-host-file.ts";
import {
  buffersInMiB,
  createImage,
  difference,
  type OpenImage,
  openImage,
  qemuCheck,
  qemuContent,
  qemuIo,
} from "./harness/qcow2-images.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { run, runAnyhow } from "./harness/tool.ts";

const CLUSTER = 64 * KiB;

async function qemuImage(options = "compat=1.1", size = "4M"): Promise<string> {
  const file = path.join(scratchDirectory(), "disk.qcow2");
  await run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, file, size);
  await qemuIo(file, "write -q -P 1 0 300k", "write -q -P 2 1m 100k", "write -q -z 2m 64k");
  return file;
}

async function info(file: string): Promise<{ "format-specific": { data: Record<string, unknown> } }> {
  return JSON.parse(await run("qemu-img", "info", "--output=json", file));
}

function patch(file: string, at: number, bytes: Buffer): void {
  const fd = openSync(file, "r+");
  writeSync(fd, bytes, 0, bytes.length, at);
  closeSync(fd);
}

function u64(value: bigint | number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}

/** Offsets of an image's tables, of its first L2 table and first refcount block. */
function places(file: string): { l1: number; l2: number; reftable: number; block: number; bytes: number } {
  const bytes = readFileSync(file);
  const at = (offset: number) => Number(bytes.readBigUInt64BE(offset) & 0x00ff_ffff_ffff_fe00n);
  const l1 = at(40);
  const reftable = at(48);
  return { l1, l2: at(l1), reftable, block: at(reftable), bytes: bytes.length };
}

async function write(image: OpenImage, at: number, bytes: number, value: number): Promise<void> {
  await image.node.write(at, bytes, Buffer.alloc(bytes, value), 0);
}

describe("persistent bitmaps", () => {
  async function withBitmaps(): Promise<string> {
    const file = await qemuImage();
    await run("qemu-img", "bitmap", "--add", file, "enabled");
    await run("qemu-img", "bitmap", "--add", "--disable", file, "disabled");
    await qemuIo(file, "write -q -P 3 64k 64k");
    return file;
  }
  const flagsOf = async (file: string) => {
    const { bitmaps } = (await info(file))["format-specific"].data as {
      bitmaps: { name: string; flags: string[] }[];
    };
    return Object.fromEntries(bitmaps.map((bitmap) => [bitmap.name, bitmap.flags]));
  };

  it("stay as they are while nothing is written", async () => {
    const file = await withBitmaps();
    const before = readFileSync(file);
    const reading = await openImage(file, "read");
    await reading.content();
    await reading.close();
    expect(readFileSync(file).equals(before)).toBe(true);
    const writing = await openImage(file, "write");
    await writing.close();
    expect(await flagsOf(file)).toEqual({ enabled: ["auto"], disabled: [] });
    expect(await qemuCheck(file)).toBe("clean");
  });

  it("are inconsistent for QEMU after a write of ours, and the image stays clean", async () => {
    const file = await withBitmaps();
    const image = await openImage(file, "write");
    await write(image, 200 * KiB, 300 * KiB, 9);
    await image.close();
    expect(await flagsOf(file)).toEqual({ enabled: ["in-use", "auto"], disabled: [] });
    expect(await qemuCheck(file)).toBe("clean");
    await qemuIo(file, "read -q -P 9 200k 300k", "write -q -P 4 0 64k");
    await run("qemu-img", "bitmap", "--remove", file, "enabled");
    expect(await qemuCheck(file)).toBe("clean");
  });

  it("do not fit a disk that grows: it is refused, or QEMU still opens the image", async () => {
    const file = await withBitmaps();
    const image = await openImage(file, "write");
    const grow = async () => image.node.truncate(2 ** 40);
    await grow().catch((error) => expect(error).toBeInstanceOf(BlockError));
    await image.close();
    expect(await qemuCheck(file)).toBe("clean");
  });

  it("are marked before the write is acknowledged", async () => {
    const file = await withBitmaps();
    const image = await openImage(file, "write");
    await write(image, 0, 512, 9);
    // Nothing was flushed or closed: what is in the file now is what a kill leaves.
    const copy = `${file}.copy`;
    writeFileSync(copy, readFileSync(file));
    expect((await flagsOf(copy))["enabled"]).toEqual(["in-use", "auto"]);
  });
});

describe("lazy refcounts and the dirty bit", () => {
  async function dirtyImage(): Promise<string> {
    const file = path.join(scratchDirectory(), "disk.qcow2");
    await run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", file, "4M");
    const commands = ["write -q -P 5 0 1m", "write -q -P 6 2m 300k", "flush", "sigraise 9"];
    await runAnyhow("qemu-io", "-f", "qcow2", ...commands.flatMap((command) => ["-c", command]), file);
    // The dirty bit, and refcounts that QEMU never wrote.
    expect(readFileSync(file)[79]! & 1).toBe(1);
    expect(await qemuCheck(file)).not.toBe("clean");
    return file;
  }

  it("an image that QEMU left dirty is read as it is", async () => {
    const file = await dirtyImage();
    const before = readFileSync(file);
    const image = await openImage(file, "read");
    expect(difference(await image.content(), await qemuContent(file))).toBe("");
    await image.close();
    expect(readFileSync(file).equals(before)).toBe(true);
  });

  it("it is repaired before it is written to", async () => {
    const file = await dirtyImage();
    const content = await qemuContent(file);
    const image = await openImage(file, "write");
    await write(image, 3 * MiB, 700, 8);
    content.fill(8, 3 * MiB, 3 * MiB + 700);
    await image.close();
    expect(readFileSync(file)[79]! & 1).toBe(0);
    expect(await qemuCheck(file)).toBe("clean");
    expect(difference(await qemuContent(file), content)).toBe("");
  });
});

describe("features that we do not know", () => {
  it("compatible bits and extensions stay, autoclear bits go with the first opening for writing", async () => {
    const file = await qemuImage();
    patch(file, 80, u64(1n << 40n));
    patch(file, 88, u64(1n << 40n));
    // Behind the feature names, where the extensions end.
    patch(file, 504, Buffer.concat([u64((0x1badcafen << 32n) | 5n), Buffer.from("hello\0\0\0"), u64(0)]));
    const reading = await openImage(file, "read");
    await reading.close();
    expect(readFileSync(file).readBigUInt64BE(88)).toBe(1n << 40n);
    const image = await openImage(file, "write");
    await write(image, 3 * MiB, CLUSTER, 7);
    await image.node.driver.changeBackingLink!("/nowhere/base.raw", "raw");
    await image.node.driver.changeBackingLink!(undefined, undefined);
    await image.close();
    const header = readFileSync(file).subarray(0, CLUSTER);
    expect(header.readBigUInt64BE(80)).toBe(1n << 40n);
    expect(header.readBigUInt64BE(88)).toBe(0n);
    expect(header.includes("hello")).toBe(true);
    expect(header.includes("lazy refcounts")).toBe(true);
    expect(await qemuCheck(file)).toBe("clean");
  });

  it("a corrupt image can be read, not written", async () => {
    const file = await qemuImage();
    const content = await qemuContent(file);
    patch(file, 79, Buffer.from([2]));
    await expect(openImage(file, "write")).rejects.toThrow(
      "qcow2: Image is corrupt; cannot be opened read/write",
    );
    const image = await openImage(file, "read");
    expect(difference(await image.content(), content)).toBe("");
  });
});

describe("a disk of 16 TiB", () => {
  it("opens with a few hundred kilobytes of reads, and is used with little memory", async () => {
    const file = path.join(scratchDirectory(), "disk.qcow2");
    await createImage(file, { size: 16 * TiB });
    const image = await openImage(file, "write");
    // Header area, L1 table of 256 KiB, refcount table, refcount block.
    expect(image.node.file!.counters.readBytes).toBeLessThan(MiB);
    const random = new Prng(16);
    const before = buffersInMiB();
    const written = new Map<number, number>();
    for (let n = 0; n < 3000; n++) {
      const at = random.below((16 * TiB) / CLUSTER) * CLUSTER;
      written.set(at, 1 + (n % 255));
      await write(image, at, 512, 1 + (n % 255));
      if (n % 500 === 0) await image.node.flush();
    }
    await write(image, 16 * TiB - 512, 512, 77);
    expect(buffersInMiB() - before).toBeLessThan(96);
    const buffer = Buffer.alloc(1024);
    for (const [at, value] of written) {
      await image.node.read(at, 1024, buffer, 0);
      expect([buffer[0], buffer[511], buffer[1023]]).toEqual([value, value, 0]);
    }
    await image.close();
    expect(await qemuCheck(file)).toBe("clean");
    await qemuIo(file, `read -q -P 77 ${16 * TiB - 512} 512`, `read -q -P 0 ${16 * TiB - 1024} 512`);
  });
});

/** What a read of the first cluster gives: QEMU reads what is behind the end of the file as zeros. */
async function readOutcome(image: OpenImage): Promise<"refused" | "zeros" | "data"> {
  const buffer = Buffer.alloc(CLUSTER, 0xee);
  try {
    await image.node.read(0, CLUSTER, buffer, 0);
  } catch (error) {
    expect(error).toBeInstanceOf(BlockError);
    return "refused";
  }
  return buffer.every((byte) => byte === 0) ? "zeros" : "data";
}

describe("entries that point where they must not", () => {
  const standard = (offset: number) => u64(BigInt(offset) | (1n << 63n));

  it.each<[string, (at: ReturnType<typeof places>) => Buffer]>([
    ["outside of the file", () => standard(1024 * MiB)],
    ["far outside of the file", () => standard(2 ** 55)],
    ["unaligned", ({ l2 }) => standard(l2 + CLUSTER + 512)],
  ])("an L2 entry %s: nothing is made up, nothing is written", async (_name, entry) => {
    const file = await qemuImage();
    const at = places(file);
    patch(file, at.l2, entry(at));
    const image = await openImage(file, "write");
    expect(await readOutcome(image)).not.toBe("data");
    await expect(write(image, 512, 512, 9)).rejects.toBeInstanceOf(BlockError);
    await image.close();
    expect(readFileSync(file).length).toBeLessThan(2 * at.bytes);
  });

  it.each<[string, (at: ReturnType<typeof places>) => number]>([
    ["the L1 table", ({ l1 }) => l1],
    ["the refcount table", ({ reftable }) => reftable],
    ["a refcount block", ({ block }) => block],
    ["the L2 table itself", ({ l2 }) => l2],
  ])("an L2 entry that points to %s: a write does not get there", async (_name, target) => {
    const file = await qemuImage();
    const at = places(file);
    patch(file, at.l2, standard(target(at)));
    const before = readFileSync(file).subarray(target(at), target(at) + CLUSTER);
    const image = await openImage(file, "write");
    await expect(write(image, 512, 512, 9)).rejects.toBeInstanceOf(BlockError);
    await image.close();
    expect(
      readFileSync(file)
        .subarray(target(at), target(at) + CLUSTER)
        .equals(before),
    ).toBe(true);
    expect((await info(file))["format-specific"].data["corrupt"]).toBe(true);
  });

  it.each<[string, (at: ReturnType<typeof places>) => Buffer]>([
    ["outside of the file", () => standard(2 ** 40)],
    ["unaligned", ({ l2 }) => standard(l2 + 512)],
  ])("an L1 entry %s", async (_name, entry) => {
    const file = await qemuImage();
    const at = places(file);
    patch(file, at.l1, entry(at));
    const opened = await openImage(file, "write").catch((error: unknown) => error);
    if (opened instanceof BlockError) return;
    const image = opened as OpenImage;
    expect(await readOutcome(image)).not.toBe("data");
    await expect(write(image, 0, 512, 9)).rejects.toBeInstanceOf(BlockError);
  });

  it("a compressed cluster past the end of the file, and one that is garbage", async () => {
    const file = await qemuImage();
    await qemuIo(file, "write -q -c -P 9 3m 64k");
    const { l2 } = places(file);
    const entryAt = l2 + ((3 * MiB) / CLUSTER) * 8;
    const compressed = readFileSync(file).readBigUInt64BE(entryAt);
    const dataAt = Number(compressed & ((1n << 54n) - 1n));
    patch(file, dataAt, Buffer.alloc(16, 0xff));
    const image = await openImage(file, "read");
    const buffer = Buffer.alloc(512);
    const read = async () => image.node.read(3 * MiB, 512, buffer, 0);
    await expect(read()).rejects.toMatchObject({ code: "IMAGE_CORRUPT" });
    await image.close();
    patch(file, entryAt, u64((1n << 62n) | (1n << 50n)));
    const again = await openImage(file, "read");
    await expect((async () => again.node.read(3 * MiB, 512, buffer, 0))()).rejects.toBeInstanceOf(BlockError);
  });
});

describe("damage by chance", () => {
  const ROUNDS = Number(process.env["STRATA_FUZZ_ROUNDS"] ?? 150);

  it.each(["compat=1.1", "cluster_size=512", "extended_l2=on", "compat=0.10,cluster_size=4k"])(
    "%s: every request ends, with success or a BlockError, in bounded memory (seed 99)",
    async (options) => {
      const file = await qemuImage(options);
      await qemuIo(file, "write -q -c -P 7 3m 64k");
      await run("qemu-img", "snapshot", "-c", "one", file);
      const original = readFileSync(file);
      const { l1, l2, reftable, block } = places(file);
      const random = new Prng(99);
      const before = buffersInMiB();
      for (let round = 0; round < ROUNDS; round++) {
        const damaged = Buffer.from(original);
        for (let n = random.between(1, 4); n > 0; n--) {
          const place = random.pick([0, l1, l2, l2, reftable, block]);
          const at = place + random.below(place === 0 ? 128 : 512);
          if (random.chance(0.5)) damaged[at] = random.below(256);
          else damaged.writeUInt32BE(random.pick([0, 0x80000000, 0x00ffffff, 0xffffffff]), at & ~3);
        }
        writeFileSync(file, damaged);
        await useDamaged(file, random).catch((error) => {
          expect(error, `round ${round}`).toBeInstanceOf(BlockError);
        });
        await mendDamaged(file, damaged).catch((error) => {
          expect(error, `round ${round}`).toBeInstanceOf(BlockError);
        });
      }
      expect(buffersInMiB() - before).toBeLessThan(256);
    },
  );

  /** A repair ends with a result, and what it calls clean QEMU calls clean. */
  async function mendDamaged(file: string, damaged: Buffer): Promise<void> {
    writeFileSync(file, damaged);
    const host = openHostFile(file, { writable: true });
    let verdict: string;
    try {
      verdict = verdictOf(await repairImage(hostImageFile(host), "all"));
    } finally {
      await host.close();
    }
    if (verdict === "clean") expect(await qemuCheck(file)).toBe("clean");
  }

  async function useDamaged(file: string, random: Prng): Promise<void> {
    const image = await openImage(file, random.chance(0.7) ? "write" : "read", { backing: null });
    try {
      const { node } = image;
      const buffer = Buffer.alloc(256 * KiB, 3);
      for (let n = 0; n < 6 && node.size > 0; n++) {
        const at = random.below(Math.min(node.size, 8 * MiB));
        const bytes = Math.min(buffer.length, node.size - at);
        const request = async () => {
          if (node.readOnly || n % 2 === 0) await node.read(at, bytes, buffer, 0);
          else if (n === 1) await node.write(at, bytes, buffer, 0);
          else if (n === 3) await node.writeZeroes(at, bytes, 2);
          else await node.discard(at, bytes);
        };
        await request().catch((error) => expect(error).toBeInstanceOf(BlockError));
      }
    } finally {
      await image.close();
    }
  }
});

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { Prng } from "../../base/prng.ts";
import { MiB } from "../../base/units.ts";
import { checkImage } from "./check.ts";
import { verdictOf } from "./check-report.ts";
import { type CreateOptions, createQcow2 } from "./create.ts";
import { repairImage } from "./repair.ts";
import { MemoryImage } from "./testing/memory-image.ts";

const hasQemu = spawnSync("qemu-img", ["--version"]).status === 0;
const directory = mkdtempSync(join(tmpdir(), "qcow2-repair-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));
const ROUNDS = Number(process.env["STRATA_FUZZ_ROUNDS"] ?? 10);

async function preallocated(options: Partial<CreateOptions> = {}): Promise<MemoryImage> {
  const image = new MemoryImage();
  await createQcow2(image, { size: 2 * MiB, clusterSize: 4096, preallocation: "metadata", ...options });
  return image;
}

/** Where things are in an image of `preallocated()`: clusters of 4 KiB, refcounts of 16 bits. */
const BLOCK = 2 * 4096;
const u16 = (image: MemoryImage, at: number, value: number) =>
  image.write(at, 2, Buffer.from([value >> 8, value & 255]), 0);

test("a clean image is not touched", async () => {
  const image = await preallocated();
  const before = image.bytes();
  expect(verdictOf(await repairImage(image, "all"))).toBe("clean");
  expect(image.bytes().equals(before)).toBe(true);
});

test("leaks are freed, in both modes", async () => {
  for (const mode of ["leaks", "all"] as const) {
    const image = await preallocated();
    const end = image.size / 4096;
    image.truncate(image.size + 3 * 4096);
    for (const cluster of [end, end + 2]) u16(image, BLOCK + 2 * cluster, 1);
    expect(await repairImage(image, mode)).toMatchObject({ leaks: 0, leaksFixed: 2, corruptions: 0 });
    expect(verdictOf(await checkImage(image))).toBe("clean");
  }
});

test("what is freed goes back to the host where there are only leaks; where there was damage it may be data", async () => {
  for (const damage of [false, true]) {
    const image = await preallocated();
    // Entry 5 of the L2 table is gone, so what it named is a leak; cluster 20 is shared, or is not.
    const place = image.bytes().readUInt32BE(4 * 4096 + 5 * 8 + 4);
    image.write(place, 4, Buffer.from("data"), 0);
    image.write(4 * 4096 + 5 * 8, 8, Buffer.alloc(8), 0);
    if (damage) u16(image, BLOCK + 2 * 20, 2);
    expect(verdictOf(await repairImage(image, "all"))).toBe("clean");
    expect(image.bytes().toString("latin1", place, place + 4)).toBe(damage ? "data" : "\0\0\0\0");
  }
});

test("mode leaks leaves corruptions alone", async () => {
  const image = await preallocated();
  // Cluster 20 is shared, says its refcount; the tables say otherwise. Cluster 21 the other way round.
  u16(image, BLOCK + 2 * 20, 2);
  const table = image.bytes();
  // The L2 table is cluster 4; its entries 1 and 0 name the same cluster now.
  table.copy(table, 4 * 4096 + 8, 4 * 4096, 4 * 4096 + 8);
  const broken = MemoryImage.from(table);
  const result = await repairImage(broken, "leaks");
  expect(result).toMatchObject({ leaks: 0, leaksFixed: 2 });
  expect(result.corruptions).toBeGreaterThan(0);
});

test("a cluster that two entries name becomes a shared one, to be copied before a write", async () => {
  const bytes = (await preallocated()).bytes();
  bytes.copy(bytes, 4 * 4096 + 8, 4 * 4096, 4 * 4096 + 8);
  const image = MemoryImage.from(bytes);
  const result = await repairImage(image, "all");
  expect(verdictOf(result)).toBe("clean");
  expect(result.corruptionsFixed).toBeGreaterThan(0);
  const repaired = image.bytes();
  expect(repaired[4 * 4096]! & 0x80).toBe(0);
  expect(repaired[4 * 4096 + 8]! & 0x80).toBe(0);
});

test.each<Partial<CreateOptions>>([
  {},
  { refcountBits: 1 },
  { refcountBits: 64 },
  { clusterSize: 512, size: 3 * MiB },
  { extendedL2: true, clusterSize: 65536 },
])("refcounts that are gone are rebuilt: %o", async (options) => {
  const image = await preallocated(options);
  const clusterSize = options.clusterSize ?? 4096;
  image.write(clusterSize, 8, Buffer.alloc(8), 0);
  const result = await repairImage(image, "all", { windowClusters: 100 });
  expect(verdictOf(result)).toBe("clean");
  expect(verdictOf(await checkImage(image))).toBe("clean");
});

test("mode leaks refuses to rebuild", async () => {
  const image = await preallocated();
  image.write(4096, 8, Buffer.alloc(8), 0);
  const before = image.bytes();
  expect(verdictOf(await repairImage(image, "leaks"))).toBe("incomplete");
  expect(image.bytes().equals(before)).toBe(true);
});

test("the dirty and the corrupt bit go when all is well, and unknown autoclear bits with the first write", async () => {
  const image = await preallocated();
  image.write(79, 1, Buffer.from([3]), 0);
  image.write(88, 1, Buffer.from([0x80]), 0);
  expect(verdictOf(await repairImage(image, "all"))).toBe("clean");
  expect(image.bytes()[79]).toBe(0);
  expect(image.bytes()[88]).toBe(0x80);
  u16(image, BLOCK + 2 * 20, 2);
  await repairImage(image, "leaks");
  expect(image.bytes()[88]).toBe(0);
});

test("an error of the host in the middle ends the repair and is told", async () => {
  const image = await preallocated();
  image.write(4096, 8, Buffer.alloc(8), 0);
  const before = image.bytes();
  const read = image.read.bind(image);
  let reads = 0;
  const total = await countReads();
  for (let failing = 3; failing < total; failing++) {
    reads = 0;
    image.read = (offset, bytes, buffer, at) => {
      reads++;
      if (reads === failing) throw Object.assign(new Error("bad sector"), { code: "EIO" });
      read(offset, bytes, buffer, at);
    };
    const result = await repairImage(image, "all").catch((error) => error as Error);
    expect(result instanceof Error || result.checkErrors > 0 || verdictOf(result) === "clean").toBe(true);
    image.read = read;
    image.write(0, before.length, before, 0);
  }

  async function countReads(): Promise<number> {
    const copy = MemoryImage.from(before);
    let count = 0;
    const original = copy.read.bind(copy);
    copy.read = (offset, bytes, buffer, at) => {
      count++;
      original(offset, bytes, buffer, at);
    };
    await repairImage(copy, "all");
    return count;
  }
});

describe.skipIf(!hasQemu)("judged by qemu-img", () => {
  const path = join(directory, "image.qcow2");
  const shapes = [
    "compat=1.1",
    "compat=0.10",
    "cluster_size=512",
    "refcount_bits=1,cluster_size=4k",
    "refcount_bits=64,cluster_size=4k",
    "extended_l2=on",
  ];

  function make(options: string): Buffer {
    execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, path, "4M"]);
    const commands = ["write -P 1 0 300k", "write -c -P 2 1m 64k", "write -z 2m 128k", "write -P 3 3m 5k"];
    execFileSync("qemu-io", [...commands.flatMap((command) => ["-c", command]), path], { stdio: "ignore" });
    if (!options.includes("refcount_bits=1,")) {
      execFileSync("qemu-img", ["snapshot", "-c", "one", path]);
      execFileSync("qemu-io", ["-c", "write -P 9 0 100k", path], { stdio: "ignore" });
    }
    return readFileSync(path);
  }

  test.each(shapes)("damaged refcounts are repaired, content as before: %s (seed 31)", async (options) => {
    const random = new Prng(31);
    const original = make(options);
    writeFileSync(path, original);
    const content = join(directory, "content.raw");
    execFileSync("qemu-img", ["convert", "-O", "raw", path, content]);
    const clusterSize = 2 ** original.readUInt32BE(20);
    const table = Number(original.readBigUInt64BE(48));
    const block = Number(original.readBigUInt64BE(table));
    for (let round = 0; round < ROUNDS; round++) {
      const image = MemoryImage.from(original);
      const place = random.chance(0.2) ? table : block;
      for (let n = random.between(1, 12); n > 0; n--) {
        const at = place + random.below(place === table ? 16 : Math.min(clusterSize, 200));
        image.write(at, 1, Buffer.from([random.below(256)]), 0);
      }
      const result = await repairImage(image, "all");
      expect(verdictOf(result), `round ${round}`).toBe("clean");
      writeFileSync(path, image.bytes());
      const check = spawnSync("qemu-img", ["check", path], { encoding: "utf8" });
      expect(check.stdout, `round ${round}: ${check.stderr}`).toContain("No errors were found on the image.");
      const compare = spawnSync("qemu-img", ["compare", path, content], { encoding: "utf8" });
      expect(compare.stdout, `round ${round}`).toContain("Images are identical.");
    }
  });
});

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { BlockError } from "../../base/errors.ts";
import { Prng } from "../../base/prng.ts";
import { KiB, MiB, TiB } from "../../base/units.ts";
import { checkImage } from "./check.ts";
import { type CheckResult, CheckTally, checkExitCode, imageCheck, verdictOf } from "./check-report.ts";
import { createQcow2 } from "./create.ts";
import type { Geometry } from "./header.ts";
import { ReferenceCounts } from "./reference-counts.ts";
import { damageTables } from "./testing/damage.ts";
import { MemoryImage } from "./testing/memory-image.ts";

const hasQemu = spawnSync("qemu-img", ["--version"]).status === 0;
const directory = mkdtempSync(join(tmpdir(), "qcow2-check-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** Damaged images per shape. */
const ROUNDS = Number(process.env["STRATA_FUZZ_ROUNDS"] ?? 8);
const SEED = Number(process.env["STRATA_FUZZ_SEED"] ?? 20);
const path = join(directory, "image.qcow2");
const qemuImg = (...args: string[]) =>
  execFileSync("qemu-img", args, { stdio: ["ignore", "pipe", "ignore"] });
const qemuIo = (...commands: string[]) =>
  execFileSync("qemu-io", ["-f", "qcow2", ...commands.flatMap((command) => ["-c", command]), path], {
    stdio: "ignore",
  });

/** What qemu-img says; undefined when it does not open the image or gives up. */
function qemuCheck(bytes: Buffer): Record<string, unknown> | undefined {
  writeFileSync(path, bytes);
  const run = spawnSync("qemu-img", ["check", "-f", "qcow2", "--output=json", path], {
    encoding: "utf8",
    maxBuffer: 64 * MiB,
    timeout: 20_000,
  });
  return run.status === null || run.stdout === "" ? undefined : JSON.parse(run.stdout);
}

/** A verdict from qemu-img's report; what it cannot open or finish is "incomplete". */
function qemuVerdict(report: Record<string, unknown> | undefined): string {
  if (report === undefined || Number(report["check-errors"]) > 0) return "incomplete";
  if (Number(report["corruptions"] ?? 0) > 0) return "corrupt";
  return Number(report["leaks"] ?? 0) > 0 ? "leaks" : "clean";
}

/** Our result; undefined when the header is refused. */
async function ourCheck(bytes: Buffer, windowClusters?: number): Promise<CheckResult | undefined> {
  try {
    const options = windowClusters === undefined ? {} : { windowClusters };
    return await checkImage(MemoryImage.from(bytes), options);
  } catch (error) {
    expect(error).toBeInstanceOf(BlockError);
    return undefined;
  }
}

interface Recipe {
  readonly name: string;
  readonly options: string;
  readonly size?: string;
  readonly backing?: boolean;
  /** What happens to it. */
  readonly make: () => void;
}

const write = () =>
  qemuIo("write -P 1 0 300k", "write -P 2 1m 64k", "write -z 2m 128k", "discard 1m 64k", "write -P 3 3m 5k");
const snapshots = () => {
  qemuIo("write -P 1 0 300k");
  qemuImg("snapshot", "-c", "first", path);
  qemuIo("write -P 2 64k 100k");
  qemuImg("snapshot", "-c", "second one", path);
  qemuIo("write -P 3 0 64k", "write -z 128k 64k");
};
const compressed = () =>
  qemuIo("write -c -P 1 0 64k", "write -c -P 2 64k 64k", "write -P 3 1m 200k", "write -c -P 9 2m 64k");
const bitmaps = () => {
  write();
  qemuImg("bitmap", "--add", "-g", "64k", path, "b0");
  qemuImg("bitmap", "--add", path, "another bitmap");
  qemuIo("write -P 7 100k 200k");
};

const RECIPES: Recipe[] = [
  { name: "empty", options: "compat=1.1", make: () => {} },
  { name: "version 2", options: "compat=0.10", make: write },
  { name: "plain", options: "compat=1.1", make: write },
  { name: "512-byte clusters", options: "cluster_size=512", make: write },
  { name: "4 KiB clusters", options: "cluster_size=4k", make: write },
  { name: "2 MiB clusters", options: "cluster_size=2M", make: write },
  ...[1, 2, 4, 8, 32, 64].map((bits) => ({
    name: `refcounts of ${bits} bits`,
    options: `refcount_bits=${bits},cluster_size=4k`,
    make: write,
  })),
  { name: "subclusters", options: "extended_l2=on", make: write },
  { name: "subclusters, preallocated", options: "extended_l2=on,preallocation=metadata", make: write },
  { name: "preallocated", options: "preallocation=metadata", make: write },
  { name: "snapshots", options: "compat=1.1", make: snapshots },
  { name: "snapshots, version 2", options: "compat=0.10,cluster_size=4k", make: snapshots },
  { name: "snapshots and subclusters", options: "extended_l2=on,cluster_size=32k", make: snapshots },
  { name: "compressed", options: "compat=1.1", make: compressed },
  { name: "compressed with zstd", options: "compression_type=zstd", make: compressed },
  { name: "bitmaps", options: "compat=1.1", make: bitmaps },
  { name: "no size", options: "compat=1.1", size: "0", make: () => {} },
];

const made = new Map<string, Buffer>();
function imageOf(recipe: Recipe): Buffer {
  let bytes = made.get(recipe.name);
  if (bytes === undefined) {
    qemuImg("create", "-q", "-f", "qcow2", "-o", recipe.options, path, recipe.size ?? "5M");
    recipe.make();
    bytes = readFileSync(path);
    made.set(recipe.name, bytes);
  }
  return bytes;
}

describe.skipIf(!hasQemu)("agrees with qemu-img", () => {
  test.each(RECIPES)("clean: $name", async (recipe) => {
    const bytes = imageOf(recipe);
    const result = await ourCheck(bytes);
    expect(imageCheck(result!, path)).toEqual(qemuCheck(bytes));
    expect(checkExitCode(result!)).toBe(0);
    expect(await ourCheck(bytes, 3)).toEqual(result);
  });

  test.each(RECIPES)(`damaged at random in its tables: $name (seed ${SEED})`, async (recipe) => {
    const random = new Prng(SEED);
    const original = imageOf(recipe);
    const places = tableBytes(original);
    for (let round = 0; round < ROUNDS; round++) {
      const damaged = round % 2 === 0 ? damage(original, places, random) : damageTables(original, random);
      const expected = qemuCheck(damaged);
      const result = await ourCheck(damaged);
      const verdict = result === undefined ? "incomplete" : verdictOf(result);
      // What QEMU does not open (a bitmap's table, say) we may be able to look through, and find damaged.
      if (expected === undefined) expect(["incomplete", "corrupt"], `round ${round}`).toContain(verdict);
      else expect(verdict, `round ${round}`).toBe(qemuVerdict(expected));
      if (expected !== undefined && (verdict === "leaks" || verdict === "corrupt")) {
        expect(imageCheck(result!, path), `round ${round}`).toEqual(expected);
      }
    }
  });
});

describe.skipIf(!hasQemu)("offsets beyond 2**53 are looked at as exactly as others", () => {
  const recipe = (name: string) => RECIPES.find((one) => one.name === name)!;

  test("the table of a bitmap (seed 6, round 81)", async () => {
    const bytes = Buffer.from(imageOf(recipe("bitmaps")));
    const extension = bytes.indexOf(Buffer.from("23852875", "hex"));
    const directory = Number(bytes.readBigUInt64BE(extension + 24));
    for (const flags of [0, 2]) {
      bytes[directory] = 0x04;
      // Not enabled: QEMU would read the table of an enabled one when it opens the image.
      bytes.writeUInt32BE(flags, directory + 12);
      const expected = qemuCheck(bytes);
      const result = await ourCheck(bytes);
      expect(verdictOf(result!)).toBe("corrupt");
      if (expected !== undefined) expect(imageCheck(result!, path)).toEqual(expected);
    }
  });

  test("the L1 table of a snapshot (seed 5, round 27)", async () => {
    const bytes = Buffer.from(imageOf(recipe("snapshots")));
    const table = Number(bytes.readBigUInt64BE(64));
    for (const [low, entries] of [
      [0x10000, 0],
      [0x10000, 1],
      [0x10200, 0],
      [0x10200, 1],
    ] as const) {
      bytes.writeUInt32BE(0x31666972, table);
      bytes.writeUInt32BE(low, table + 4);
      bytes.writeUInt32BE(entries, table + 8);
      const expected = qemuCheck(bytes);
      expect(imageCheck((await ourCheck(bytes))!, path)).toEqual(expected);
    }
  });
});

/** Offsets of the bytes of the image that are metadata: those of clusters that hold a table. */
function tableBytes(bytes: Buffer): { start: number; bytes: number }[] {
  const clusterSize = 2 ** bytes.readUInt32BE(20);
  const u64 = (at: number) => Number(bytes.readBigUInt64BE(at));
  const l1 = u64(40);
  const l1Bytes = bytes.readUInt32BE(36) * 8;
  const places = [
    { start: u64(48), bytes: 64 },
    { start: l1, bytes: l1Bytes },
  ];
  for (let at = l1; at < l1 + l1Bytes; at += 8) {
    const l2 = Number(bytes.readBigUInt64BE(at) & 0x00ff_ffff_ffff_fe00n);
    if (l2 !== 0) places.push({ start: l2, bytes: Math.min(clusterSize, 1024) });
  }
  const block = u64(u64(48));
  places.push({ start: block, bytes: Math.min(clusterSize, 256) });
  if (bytes.readUInt32BE(60) > 0) places.push({ start: u64(64), bytes: 128 });
  return places.filter((place) => place.bytes > 0);
}

/** Changes a few bytes: to anything, by one bit, or a whole entry to a plausible other one. */
function damage(original: Buffer, places: { start: number; bytes: number }[], random: Prng): Buffer {
  const bytes = Buffer.from(original);
  for (let n = random.between(1, 3); n > 0; n--) {
    const place = random.pick(places);
    const at = place.start + random.below(place.bytes);
    if (at + 8 > bytes.length) continue;
    const kind = random.below(4);
    if (kind === 0) bytes[at] = random.below(256);
    else if (kind === 1) bytes[at]! ^= 1 << random.below(8);
    else {
      const clusterSize = 2 ** bytes.readUInt32BE(20);
      const cluster = random.below(Math.ceil(bytes.length / clusterSize) + 2);
      const flags = random.pick([0n, 1n << 63n, 1n]);
      bytes.writeBigUInt64BE(BigInt(cluster * clusterSize) | flags, at - (at % 8));
    }
  }
  return bytes;
}

describe("without qemu-img", () => {
  test("a new image is clean, whatever its shape", async () => {
    for (const options of [
      {},
      { clusterSize: 512 },
      { refcountBits: 1 },
      { preallocation: "metadata" as const },
    ]) {
      const image = new MemoryImage();
      await createQcow2(image, { size: 3 * MiB, ...options });
      expect(verdictOf(await checkImage(image)), JSON.stringify(options)).toBe("clean");
    }
  });

  test("findings are told, and the memory of a check does not depend on the length of the file", async () => {
    const image = new MemoryImage();
    await createQcow2(image, { size: 16 * TiB });
    // A leak in the first refcount block, and a file that pretends to be long.
    image.write(2 * 64 * KiB + 2 * 100, 2, Buffer.from([0, 1]), 0);
    image.truncate(8 * TiB);
    const lines: string[] = [];
    const before = process.memoryUsage().arrayBuffers;
    const result = await checkImage(image, {
      tell: (line) => lines.push(line),
      windowClusters: 4 * 1024 * 1024,
    });
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(256 * MiB);
    expect(result).toMatchObject({ leaks: 1, corruptions: 0, checkErrors: 0 });
    expect(lines).toEqual(["Leaked cluster 100 refcount=1 reference=0"]);
  });

  test("garbage behind a valid header ends in a result (seed 5)", async () => {
    const random = new Prng(5);
    for (let round = 0; round < 20; round++) {
      const image = new MemoryImage();
      await createQcow2(image, { size: 64 * MiB, clusterSize: 4096, preallocation: "metadata" });
      const bytes = image.bytes().subarray(0, 40 * 4096);
      random.fill(bytes.subarray(4096));
      const result = await checkImage(MemoryImage.from(bytes));
      expect(["corrupt", "incomplete"]).toContain(verdictOf(result));
    }
  });
});

test("a cluster that is named more often than a byte can count", async () => {
  const counts = new ReferenceCounts(
    { first: 100, end: 9000, isFirst: true },
    { clusterSize: 512, refcountBits: 16 } as Geometry,
    MiB * 10,
    new CheckTally(),
  );
  for (const cluster of [100, 101, 8999]) {
    for (let n = 1; n <= 600; n++) {
      counts.add(cluster * 512, 512);
      expect(counts.get(cluster)).toBe(n);
    }
    for (let n = 599; n >= 0; n--) {
      counts.remove(cluster);
      expect(counts.get(cluster)).toBe(n);
    }
    counts.add(cluster * 512, 512);
    expect(counts.get(cluster)).toBe(1);
  }
});

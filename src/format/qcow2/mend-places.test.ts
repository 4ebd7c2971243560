// Headers that name wrong places for the L1 table and for the refcount table, by seed: the repair finds the
// one and counts the other anew, or says what is lost and changes nothing.

import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { writeU64 } from "../../base/bytes.ts";
import { Prng } from "../../base/prng.ts";
import { MiB } from "../../base/units.ts";
import { MemoryFile } from "../../sys/memory-file.ts";
import { checkImage } from "./check.ts";
import { verdictOf } from "./check-report.ts";
import { type CreateOptions, createQcow2 } from "./create.ts";
import { hostImageFile } from "./image-file.ts";
import { repairImage } from "./repair.ts";
import { JournaledFile, undoRepair } from "./repair-journal.ts";
import { MemoryImage } from "./testing/memory-image.ts";
import { openImage } from "./testing/nodes.ts";

const hasQemu = spawnSync("qemu-img", ["--version"]).status === 0;
const directory = mkdtempSync(join(tmpdir(), "qcow2-places-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** Damaged headers per shape; `STRATA_FUZZ_ROUNDS` and `STRATA_FUZZ_SEED` for a long run. */
const ROUNDS = Number(process.env["STRATA_FUZZ_ROUNDS"] ?? 3);
const SEED = Number(process.env["STRATA_FUZZ_SEED"] ?? 11);
const SIZE = MiB;
const L1_SIZE = 36;
const L1 = 40;
const REFTABLE = 48;
const REFTABLE_CLUSTERS = 56;

interface Made {
  readonly bytes: Buffer;
  readonly content: Buffer;
  readonly clusterSize: number;
}

/** An image with data in some places, written by the driver. */
async function make(options: Partial<CreateOptions>, fill?: (content: Buffer) => void): Promise<Made> {
  const host = new MemoryFile({ path: "memory.qcow2" });
  await createQcow2(hostImageFile(host), { size: SIZE, ...options });
  const { node, driver } = await openImage(host);
  const content = Buffer.alloc(SIZE);
  const random = new Prng(5);
  random.fill(content.subarray(0, 300_000));
  random.fill(content.subarray(700_777, 800_000));
  fill?.(content);
  await node.write(0, 384 * 1024, content, 0);
  await node.write(640 * 1024, 256 * 1024, content, 640 * 1024);
  await driver.close();
  return { bytes: host.content(0, host.size), content, clusterSize: options.clusterSize ?? 65536 };
}

async function contentOf(bytes: Buffer): Promise<Buffer> {
  const file = new MemoryFile({ path: "memory.qcow2" });
  file.write(0, bytes.length, bytes, 0);
  const { node } = await openImage(file, { readOnly: true });
  const content = Buffer.alloc(node.size);
  await node.read(0, node.size, content, 0);
  return content;
}

async function repaired(damaged: Buffer) {
  const image = MemoryImage.from(damaged);
  const journal = new MemoryImage();
  const journaled = new JournaledFile(image, async () => journal);
  const lines: string[] = [];
  const tell = (line: string) => void lines.push(line);
  const result = await repairImage(journaled, "all", { mendTables: true, tell });
  const bytes = Buffer.from(image.bytes());
  if (journaled.isUsed) await undoRepair(image, journal);
  return { result, lines, bytes, undone: image.bytes() };
}

/** A place that the table cannot have. */
function wrongPlace(random: Prng, { bytes, clusterSize }: Made): bigint {
  const end = BigInt(Math.ceil(bytes.length / clusterSize) * clusterSize);
  const cluster = BigInt(clusterSize);
  const data = bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(L1) + 0n)) & 0x00ff_ffff_ffff_fe00n;
  return random.pick([
    ...[0n, end, end + 1000n * cluster, 1n << 56n, 1n << 63n, (1n << 64n) - cluster, 3n],
    ...[bytes.readBigUInt64BE(REFTABLE), 2n * cluster, data, end - cluster],
  ]);
}

/** Damages one to three of the fields. */
function damage(made: Made, random: Prng): Buffer {
  const bytes = Buffer.from(made.bytes);
  const chosen = random.between(1, 15);
  if ((chosen & 1) !== 0) bytes.writeBigUInt64BE(wrongPlace(random, made), L1);
  if ((chosen & 2) !== 0) bytes.writeBigUInt64BE(wrongPlace(random, made), REFTABLE);
  if ((chosen & 12) === 12) bytes.writeUInt32BE(random.pick([0, 2 ** 32 - 1]), REFTABLE_CLUSTERS);
  if ((chosen & 12) === 8) bytes.writeUInt32BE(random.pick([0, 2 ** 23, 2 ** 32 - 1]), L1_SIZE);
  return bytes;
}

describe("fields of the header", () => {
  it.each<Partial<CreateOptions>>([
    {},
    { version: 2 },
    { clusterSize: 4096 },
    { clusterSize: 4096, refcountBits: 1 },
    { clusterSize: 4096, refcountBits: 64 },
    { clusterSize: 16384, extendedL2: true },
  ])("that are wrong cost no data: %o", async (options) => {
    const made = await make(options);
    const random = new Prng(SEED);
    for (let round = 0; round < ROUNDS; round++) {
      const damaged = damage(made, random);
      const { result, lines, bytes, undone } = await repaired(damaged);
      const where = `round ${round}: ${damaged.toString("hex", L1_SIZE, 60)} ${lines.join("; ")}`;
      expect(verdictOf(result), where).toBe("clean");
      expect(verdictOf(await checkImage(MemoryImage.from(bytes))), where).toBe("clean");
      expect((await contentOf(bytes)).equals(made.content), where).toBe(true);
      expect(undone.equals(damaged), where).toBe(true);
      if (!hasQemu || round > 0) continue;
      const path = join(directory, "image.qcow2");
      writeFileSync(path, bytes);
      expect(spawnSync("qemu-img", ["check", path], { encoding: "utf8" }), where).toMatchObject({
        status: 0,
      });
    }
  });

  it("and make the L1 table too short for the disk: nothing is changed, since no data may be given up for it", async () => {
    const { bytes } = await make({ clusterSize: 65536 });
    // Smaller clusters; a disk of 8 TiB, whose L1 table would go over what stands behind it.
    for (const [at, value] of [
      [23, 10],
      [23, 11],
      [26, 0x08],
    ] as const) {
      const damaged = Buffer.from(bytes);
      damaged.writeUInt8(value, at);
      const image = MemoryImage.from(damaged);
      await expect(repairImage(image, "all", { mendTables: true })).rejects.toThrow(
        /has 1 entries, and a disk of \d+ bytes .* nothing was changed/,
      );
      expect(image.bytes().equals(damaged)).toBe(true);
    }
  });

  it("and call the L1 table shorter than it is: it goes on with data, so it is as long as the disk says", async () => {
    // An L2 table of 512 bytes maps 32 KiB: the disk has 32 of them.
    const made = await make({ clusterSize: 512 });
    for (const entries of [1, 8]) {
      const damaged = Buffer.from(made.bytes);
      damaged.writeUInt32BE(entries, L1_SIZE);
      const { result, lines, bytes } = await repaired(damaged);
      expect(verdictOf(result)).toBe("clean");
      expect(lines[0]).toBe(`Repairing L1 table: it has 32 entries, not ${entries}`);
      expect((await contentOf(bytes)).equals(made.content)).toBe(true);
    }
  });

  it("a table that is far outside is checked as one that is outside", async () => {
    const { bytes } = await make({});
    for (const at of [L1, REFTABLE]) {
      const near = Buffer.from(bytes);
      const far = Buffer.from(bytes);
      near.writeBigUInt64BE(1n << 40n, at);
      far.writeBigUInt64BE(1n << 56n, at);
      expect(await checkImage(MemoryImage.from(far))).toEqual(await checkImage(MemoryImage.from(near)));
    }
  });
});

describe("an L1 table that is lost", () => {
  const outside = (bytes: Buffer) => {
    const damaged = Buffer.from(bytes);
    damaged.writeBigUInt64BE(1n << 40n, L1);
    return damaged;
  };

  it("and not in the file: the image stays as it is, and the error says so", async () => {
    const { bytes } = await make({});
    const damaged = outside(bytes);
    damaged.fill(0xee, Number(bytes.readBigUInt64BE(L1)), Number(bytes.readBigUInt64BE(L1)) + 64);
    const { result, lines, bytes: after } = await repaired(damaged);
    expect(verdictOf(result)).toBe("incomplete");
    expect(lines.join("\n")).toMatch(
      /names no place in the file \(\d+ bytes\) for the L1 table.* nothing was changed/,
    );
    expect(after.equals(damaged)).toBe(true);
  });

  it("is not taken for one that a guest keeps in its data", async () => {
    const clusterSize = 4096;
    // The first cluster of data looks like an L1 table, whose L2 table is the second one.
    const first = await make({ clusterSize });
    const l2 = Number(
      first.bytes.readBigUInt64BE(Number(first.bytes.readBigUInt64BE(L1))) & 0x00ff_ffff_ffff_fe00n,
    );
    const places = [0, 8, 16].map((at) =>
      Number(first.bytes.readBigUInt64BE(l2 + at) & 0x00ff_ffff_ffff_fe00n),
    );
    const made = await make({ clusterSize }, (content) => {
      content.fill(0, 0, 2 * clusterSize);
      writeU64(content, places[1]!, 0);
      writeU64(content, places[2]!, clusterSize);
    });
    const { result, bytes } = await repaired(outside(made.bytes));
    expect(verdictOf(result)).toBe("clean");
    expect((await contentOf(bytes)).equals(made.content)).toBe(true);
  });

  describe("that begins with a cluster of zeros", () => {
    const clusterSize = 512;
    /** The disk has data from its third MiB on: of the table's four clusters the first one is empty. */
    const makeLate = async () => {
      const host = new MemoryFile({ path: "memory.qcow2" });
      await createQcow2(hostImageFile(host), { size: 8 * MiB, clusterSize });
      const { node, driver } = await openImage(host);
      const random = Buffer.alloc(64 * clusterSize);
      new Prng(3).fill(random);
      // The first cluster behind the table is one of zeros, so that it looks like a part of a table too.
      await node.write(3 * MiB, clusterSize, Buffer.alloc(clusterSize), 0);
      await node.write(2 * MiB, random.length, random, 0);
      await driver.close();
      return host.content(0, host.size);
    };

    it("is not taken for the table that begins in its second one: the disk would be shifted", async () => {
      const damaged = outside(await makeLate());
      const { result, bytes: after } = await repaired(damaged);
      expect(verdictOf(result)).toBe("incomplete");
      expect(after.equals(damaged)).toBe(true);
    });

    it("is a question where refcounts are lost and the rest of it could be a table", async () => {
      const bytes = await makeLate();
      const l1 = Number(bytes.readBigUInt64BE(L1));
      // As if nothing had been written behind the table yet.
      const end = Math.ceil(bytes.length / clusterSize) * clusterSize;
      const damaged = Buffer.concat([outside(bytes), Buffer.alloc(end - bytes.length + 5 * clusterSize)]);
      bytes.copy(damaged, end, l1, l1 + 4 * clusterSize);
      damaged.fill(0xee, l1, l1 + 4 * clusterSize);
      damaged.writeBigUInt64BE(0n, REFTABLE);
      const { lines, bytes: after } = await repaired(damaged);
      expect(lines.join("\n")).toMatch(new RegExp(`any of those at offsets .*\\b${end}\\b`));
      expect(after.equals(damaged)).toBe(true);
    });

    it("does not make an empty disk, and zeros of data, where the header names data", async () => {
      const damaged = await makeLate();
      damaged.writeBigUInt64BE(BigInt(Math.floor(damaged.length / clusterSize) - 8) * 512n, L1);
      const { result, lines, bytes: after } = await repaired(damaged);
      expect(verdictOf(result)).toBe("incomplete");
      expect(lines.join("\n")).toContain("where no entry could be one of it");
      expect(after.equals(damaged)).toBe(true);
    });
  });

  it("is not what an emptied disk has left behind: nobody asked for its old content", async () => {
    const clusterSize = 4096;
    const { bytes } = await make({ clusterSize });
    const place = Math.ceil(bytes.length / clusterSize) * clusterSize;
    const emptied = Buffer.concat([bytes, Buffer.alloc(place + clusterSize - bytes.length)]);
    emptied.writeBigUInt64BE(BigInt(place), L1);
    const block = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(REFTABLE))));
    emptied.writeUInt16BE(1, block + 2 * (place / clusterSize));
    const { result, lines, bytes: after } = await repaired(emptied);
    expect(verdictOf(result)).toBe("incomplete");
    expect(lines.join("\n")).toContain(
      `the L1 table at offset ${place}, where the header says, is that of an empty`,
    );
    expect(after.equals(emptied)).toBe(true);
    const image = MemoryImage.from(emptied);
    expect(verdictOf(await repairImage(image, "leaks"))).toBe("clean");
    expect((await contentOf(image.bytes())).every((byte) => byte === 0)).toBe(true);
  });

  it("and could be one of two: both are named, nothing is changed", async () => {
    const { bytes } = await make({});
    const l1 = Number(bytes.readBigUInt64BE(L1));
    const copy = Math.ceil(bytes.length / 65536);
    const damaged = Buffer.concat([outside(bytes), Buffer.alloc((copy + 1) * 65536 - bytes.length)]);
    bytes.copy(damaged, copy * 65536, l1, l1 + 8);
    damaged.writeUInt16BE(1, 2 * 65536 + 2 * copy);
    const { lines, bytes: after } = await repaired(damaged);
    expect(lines.join("\n")).toContain(`any of those at offsets ${l1}, ${copy * 65536}: nothing was changed`);
    expect(after.equals(damaged)).toBe(true);
  });

  it("is not searched for where it could be that of a snapshot in a broken list", async () => {
    const { bytes } = await make({});
    const damaged = outside(bytes);
    damaged.writeUInt32BE(1, 60);
    writeU64(damaged, 4 * 65536, 64);
    const { result, bytes: after } = await repaired(damaged);
    expect(verdictOf(result)).toBe("incomplete");
    expect(after.equals(damaged)).toBe(true);
  });

  it("and all zeros: what is freed is not given back to the host, so that it can be undone", async () => {
    const { bytes } = await make({});
    const damaged = Buffer.from(bytes);
    damaged.fill(0, Number(bytes.readBigUInt64BE(L1)), Number(bytes.readBigUInt64BE(L1)) + 8);
    const { result, undone } = await repaired(damaged);
    expect([verdictOf(result), result.leaksFixed > 0]).toEqual(["clean", true]);
    expect(undone.equals(damaged)).toBe(true);
  });

  it("stays where it is when another table is said to be there", async () => {
    const made = await make({});
    for (const at of [REFTABLE, 64]) {
      const damaged = Buffer.from(made.bytes);
      made.bytes.copy(damaged, at, L1, L1 + 8);
      if (at === 64) damaged.writeUInt32BE(1, 60);
      const { result, bytes } = await repaired(damaged);
      expect(verdictOf(result)).toBe("clean");
      expect((await contentOf(bytes)).equals(made.content)).toBe(true);
    }
  });
});

// Damage by seed on images of QEMU's: the repair ends with an image that qemu-img calls clean, and what could
// be read before and was right is as it was. Undoing the repair gives the damaged file back.

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { readU64 } from "../../base/bytes.ts";
import { BlockError } from "../../base/errors.ts";
import { Prng } from "../../base/prng.ts";
import { MiB } from "../../base/units.ts";
import { MemoryFile } from "../../sys/memory-file.ts";
import { checkImage } from "./check.ts";
import { type CheckResult, imageCheck, verdictOf } from "./check-report.ts";
import { createQcow2 } from "./create.ts";
import { hostImageFile, type ImageFile } from "./image-file.ts";
import { repairImage } from "./repair.ts";
import { JournaledFile, undoRepair } from "./repair-journal.ts";
import { damageTables } from "./testing/damage.ts";
import { MemoryImage } from "./testing/memory-image.ts";
import { openImage } from "./testing/nodes.ts";

const hasQemu = spawnSync("qemu-img", ["--version"]).status === 0;
const directory = mkdtempSync(join(tmpdir(), "qcow2-mend-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));
const path = join(directory, "image.qcow2");

/** Damaged images per shape; `STRATA_FUZZ_ROUNDS` and `STRATA_FUZZ_SEED` for a long run. */
const ROUNDS = Number(process.env["STRATA_FUZZ_ROUNDS"] ?? 3);
const SEED = Number(process.env["STRATA_FUZZ_SEED"] ?? 77);
const GARBAGE_ROUNDS = ROUNDS * 10;
const DISK_BYTES = 4 * MiB;

const SHAPES: Record<string, string> = {
  plain: "compat=1.1",
  "version 2": "compat=0.10",
  "512-byte clusters": "cluster_size=512",
  "4 KiB clusters": "cluster_size=4k",
  "refcounts of 1 bit": "refcount_bits=1,cluster_size=4k",
  "refcounts of 64 bits": "refcount_bits=64,cluster_size=4k",
  subclusters: "extended_l2=on,cluster_size=16k",
  bitmaps: "compat=1.1,cluster_size=4k",
};

function make(name: string, options: string): Buffer {
  execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, path, String(DISK_BYTES)]);
  const io = (...commands: string[]) =>
    execFileSync("qemu-io", [...commands.flatMap((command) => ["-c", command]), path], { stdio: "ignore" });
  io(
    "write -P 1 0 300k",
    "write -c -P 2 1m 64k",
    "write -c -P 3 1088k 64k",
    "write -z 2m 128k",
    "write -P 4 3m 5k",
  );
  if (name === "bitmaps") {
    execFileSync("qemu-img", ["bitmap", "--add", "-g", "64k", path, "b0"]);
    execFileSync("qemu-img", ["bitmap", "--add", "-g", "64k", path, "b1"]);
    io("write -P 5 3200k 200k");
  } else if (!options.includes("refcount_bits=1,")) {
    execFileSync("qemu-img", ["snapshot", "-c", "first", path]);
    io("write -P 6 100k 100k");
    execFileSync("qemu-img", ["snapshot", "-c", "second", path]);
    io("write -P 7 0 50k", "discard 3m 64k");
  }
  return readFileSync(path);
}

/** The disk in pieces; undefined where it cannot be read. */
async function read(bytes: Buffer, piece: number): Promise<(Buffer | undefined)[]> {
  const file = new MemoryFile({ path: "memory.qcow2" });
  file.write(0, bytes.length, bytes, 0);
  const { node } = await openImage(file, { readOnly: true });
  const pieces: (Buffer | undefined)[] = [];
  for (let offset = 0; offset < node.size; offset += piece) {
    const content = Buffer.alloc(piece);
    try {
      await node.read(offset, piece, content, 0);
      pieces.push(content);
    } catch (error) {
      expect(error).toBeInstanceOf(BlockError);
      pieces.push(undefined);
    }
  }
  return pieces;
}

test.each([
  { clusterSize: 65536 },
  { clusterSize: 4096 },
  { clusterSize: 65536, extendedL2: true },
  { clusterSize: 512, version: 2 as const },
])("a bit that has flipped in an offset costs no data: %o", async (options) => {
  const host = new MemoryFile({ path: "memory.qcow2" });
  await createQcow2(hostImageFile(host), { size: 2 * MiB, ...options });
  const { node, driver } = await openImage(host);
  const content = Buffer.alloc(MiB);
  new Prng(3).fill(content);
  await node.write(0, content.length, content, 0);
  await driver.close();
  const original = host.content(0, host.size);
  const l1 = readU64(original, 40);
  const l2 = Number(original.readBigUInt64BE(l1) & 0x00ff_ffff_ffff_fe00n);
  for (const entry of [l1, l2, l2 + 32]) {
    // Of the bits between, the other value may be that of a cluster that somebody has.
    const clusterBits = Math.log2(options.clusterSize);
    for (const bit of [9, clusterBits - 1, 25, 40, 55]) {
      if (bit < 9 || bit === clusterBits) continue;
      const damaged = Buffer.from(original);
      damaged[entry + 7 - (bit >> 3)]! ^= 1 << (bit & 7);
      const image = MemoryImage.from(damaged);
      const result = await repairImage(image, "all", { mendTables: true });
      expect(verdictOf(result), `${entry} ${bit}`).toBe("clean");
      const pieces = await read(image.bytes(), 65536);
      const after = Buffer.concat(pieces.map((piece) => piece ?? Buffer.alloc(0)));
      expect(after.subarray(0, MiB).equals(content), `${entry} ${bit}`).toBe(true);
    }
  }
});

test("a repair that is killed at any write can be undone, and can be done again (seed 6)", async () => {
  const random = new Prng(6);
  const host = new MemoryFile({ path: "memory.qcow2" });
  await createQcow2(hostImageFile(host), { size: MiB, clusterSize: 4096, preallocation: "metadata" });
  const original = host.content(0, host.size);
  let kills = 0;
  for (let round = 0; round < 12; round++) {
    const damaged = damageTables(original, random);
    const found = await checkImage(MemoryImage.from(damaged)).catch(() => undefined);
    if (found === undefined || found.corruptions === 0) continue;
    for (let kill = 1; ; kill++) {
      const image = MemoryImage.from(damaged);
      const journal = new MemoryImage();
      let left = kill;
      const write = image.write.bind(image);
      image.write = (offset, bytes, buffer, at) => {
        left--;
        // Torn: half of it is there.
        if (left === 0) write(offset, bytes >> 1, buffer, at);
        if (left <= 0) throw new BlockError("EIO", "killed");
        write(offset, bytes, buffer, at);
      };
      const repair = (file: ImageFile) => repairImage(file, "all", { mendTables: true });
      const journaled = new JournaledFile(image, async () => journal);
      await repair(journaled).catch((error: unknown) => expect(error).toBeInstanceOf(BlockError));
      image.write = write;
      if (left > 0) break;
      kills++;
      const again = MemoryImage.from(image.bytes());
      const result = await repair(again).catch((error: unknown) => error);
      if (!(result instanceof BlockError)) expect(verdictOf(result as CheckResult)).toBe("clean");
      await undoRepair(image, journal);
      expect(image.bytes().equals(damaged), `round ${round}, write ${kill}`).toBe(true);
    }
  }
  expect(kills).toBeGreaterThan(20);
});

test("a repair of garbage ends, with a result or an error, and the image does not grow without bound (seed 8)", async () => {
  const random = new Prng(8);
  for (let round = 0; round < GARBAGE_ROUNDS; round++) {
    const image = new MemoryImage();
    await createQcow2(image, {
      size: 4 * MiB,
      clusterSize: random.pick([512, 4096, 16384]),
      refcountBits: random.pick([1, 16, 64]),
      extendedL2: false,
      preallocation: "metadata",
    });
    const bytes = image.bytes();
    const from = 512 + random.below(bytes.length >> 2);
    random.fill(bytes.subarray(from, from + random.below(65536)));
    // Snapshots and bitmaps out of nothing.
    if (random.chance(0.5)) bytes.writeUInt32BE(random.below(5), 60);
    if (random.chance(0.5)) bytes.writeBigUInt64BE(BigInt(4096 * random.below(30)), 64);
    const garbage = MemoryImage.from(bytes);
    const result = await repairImage(garbage, "all", { mendTables: true }).catch((error: unknown) => error);
    if (result instanceof BlockError) continue;
    expect(["clean", "incomplete"], `round ${round}`).toContain(verdictOf(result as CheckResult));
    expect(garbage.size, `round ${round}`).toBeLessThan(bytes.length * 4 + MiB);
  }
});

describe.skipIf(!hasQemu)(`repair all, of damaged tables (seed ${SEED})`, () => {
  test.each(Object.entries(SHAPES))("%s", async (name, options) => {
    const original = make(name, options);
    const clusterSize = 2 ** original.readUInt32BE(20);
    const piece = Math.min(clusterSize, 4096);
    const right = await read(original, piece);
    const random = new Prng(SEED);
    for (let round = 0; round < ROUNDS; round++) {
      const damaged = damageTables(original, random);
      const where = `round ${round}`;
      const image = MemoryImage.from(damaged);
      const journal = new MemoryImage();
      const journaled = new JournaledFile(image, async () => journal);
      const found = await checkImage(MemoryImage.from(damaged)).catch((error: unknown) => error);
      if (found instanceof BlockError) continue;
      const before = await read(damaged, piece).catch(() => undefined);
      const lines: string[] = [];
      const tell = (line: string) => void lines.push(line);
      const result = await repairImage(journaled, "all", { mendTables: true, tell });
      expect(verdictOf(result), `${where}: ${JSON.stringify(result)} ${lines.join("\n")}`).toBe("clean");
      const repaired = image.bytes();
      writeFileSync(path, repaired);
      const check = spawnSync("qemu-img", ["check", "--output=json", path], { encoding: "utf8" });
      expect(check.status, `${where}: ${check.stdout}${check.stderr}${lines.join("\n")}`).toBe(0);
      const ours = imageCheck(await checkImage(MemoryImage.from(repaired)), path);
      expect(ours, where).toEqual(JSON.parse(check.stdout));
      // Without the damage of L1 size or the like the disk is as long as it was.
      const after = await read(repaired, piece);
      for (const [i, content] of right.entries()) {
        if (before?.[i]?.equals(content!) !== true) continue;
        const same = after[i]?.equals(content!);
        expect(same, `${where}: offset ${i * piece} was intact ${lines.join("\n")}`).toBe(true);
      }
      if (journaled.isUsed) await undoRepair(image, journal);
      // Leaked clusters went back to the host if there was nothing else.
      if ((found as CheckResult).corruptions > 0) {
        expect(image.bytes().equals(damaged), `${where}: undone`).toBe(true);
      }
    }
  });
});

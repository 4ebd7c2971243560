import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { BlockError } from "../../base/errors.ts";
import { Prng } from "../../base/prng.ts";
import { MiB } from "../../base/units.ts";
import { readCheckedHeader } from "./checked-image.ts";
import { newHeader } from "./create.ts";
import type { Qcow2Header } from "./header.ts";
import { parseSnapshots, readSnapshots, snapshotInfo } from "./snapshots.ts";
import { MemoryImage } from "./testing/memory-image.ts";

const hasQemu = spawnSync("qemu-img", ["--version"]).status === 0;

interface Fields {
  readonly id: string;
  readonly name: string;
  readonly extra: Buffer;
}

/** An entry by the specification's table, with its padding. */
function entry({ id, name, extra }: Fields): Buffer {
  const bytes = Buffer.alloc(40);
  bytes.writeBigUInt64BE(0x30000n, 0);
  bytes.writeUInt32BE(7, 8);
  bytes.writeUInt16BE(id.length, 12);
  bytes.writeUInt16BE(name.length, 14);
  bytes.writeUInt32BE(1700000000, 16);
  bytes.writeUInt32BE(123456789, 20);
  bytes.writeBigUInt64BE(5_000_000_042n, 24);
  bytes.writeUInt32BE(99, 32);
  bytes.writeUInt32BE(extra.length, 36);
  const all = Buffer.concat([bytes, extra, Buffer.from(id), Buffer.from(name)]);
  return Buffer.concat([all], Math.ceil(all.length / 8) * 8);
}

function extraData(...values: bigint[]): Buffer {
  const bytes = Buffer.alloc(values.length * 8);
  for (const [index, value] of values.entries()) bytes.writeBigUInt64BE(value, index * 8);
  return bytes;
}

function headerWith(change: Partial<Qcow2Header>): Qcow2Header {
  return { ...newHeader({ size: MiB }), snapshotsOffset: 65536, ...change };
}

test("entries of any length, one after the other", () => {
  const area = Buffer.concat([
    entry({ id: "1", name: "before the upgrade", extra: extraData(2n ** 33n, 1048576n, 77n) }),
    entry({ id: "22", name: "", extra: Buffer.alloc(0) }),
  ]);
  const table = parseSnapshots(area, 2)!;
  expect(table.snapshots).toEqual([
    {
      id: "1",
      name: "before the upgrade",
      l1TableOffset: 0x30000,
      l1TableOffsetLow: 0x30000,
      l1Size: 7,
      dateSeconds: 1700000000,
      dateNanoseconds: 123456789,
      vmClockNanoseconds: 5_000_000_042n,
      vmStateBytes: 2 ** 33,
      diskSize: 1048576,
      instructionCount: 77n,
      extraBytes: 24,
    },
    expect.objectContaining({ id: "22", name: "", vmStateBytes: 99, diskSize: undefined, extraBytes: 0 }),
  ]);
  // The last entry's padding does not belong to the table.
  expect(table.bytes).toBe(88 + 40 + 2);
  expect(snapshotInfo(table.snapshots[0]!)).toMatchObject({
    "vm-clock-sec": 5,
    "vm-clock-nsec": 42,
    icount: 77,
  });
});

test("a table that does not end in the area", () => {
  const area = entry({ id: "1", name: "n", extra: Buffer.alloc(16) });
  expect(parseSnapshots(area.subarray(0, 39), 1)).toBeUndefined();
  expect(parseSnapshots(area.subarray(0, 56), 1)).toBeUndefined();
  expect(parseSnapshots(area, 2)).toBeUndefined();
});

test("a table longer than the first read", async () => {
  const one = entry({ id: "1", name: "n".repeat(60_000), extra: Buffer.alloc(16) });
  const image = new MemoryImage();
  for (let index = 0; index < 5; index++) image.write(65536 + index * one.length, one.length, one, 0);
  const table = await readSnapshots(image, headerWith({ snapshotCount: 5 }));
  expect(table.snapshots.map((snapshot) => snapshot.name.length)).toEqual([
    60_000, 60_000, 60_000, 60_000, 60_000,
  ]);
});

test.each<[string, Partial<Qcow2Header>, Buffer, string]>([
  ["too many", { snapshotCount: 65537 }, Buffer.alloc(0), "Snapshot table too large"],
  ["unaligned", { snapshotCount: 1, snapshotsOffset: 8 }, Buffer.alloc(0), "Snapshot table offset invalid"],
  [
    "extra data",
    { snapshotCount: 1 },
    entry({ id: "", name: "", extra: Buffer.alloc(1025) }),
    "Too much extra metadata in snapshot table entry 0",
  ],
])("bounds: %s", async (_name, change, table, words) => {
  const image = new MemoryImage();
  image.write(65536, table.length, table, 0);
  await expect(readSnapshots(image, headerWith(change))).rejects.toMatchObject({
    code: "IMAGE_CORRUPT",
    message: words,
  });
});

test("a table of the largest count made of the largest entries stops at 64 MiB", async () => {
  const image = new MemoryImage();
  const largest = entry({ id: "i".repeat(65535), name: "n".repeat(65535), extra: Buffer.alloc(1024) });
  for (let at = 65536; at < 70 * MiB; at += largest.length) image.write(at, largest.length, largest, 0);
  const header = headerWith({ snapshotCount: 65536 });
  await expect(readSnapshots(image, header)).rejects.toThrow("Snapshot table is too big");
});

test("random bytes give a table or a BlockError (seed 8)", () => {
  const random = new Prng(8);
  for (let round = 0; round < 3000; round++) {
    const area = random.fill(Buffer.alloc(random.between(0, 400)));
    // Mostly small lengths, or nearly everything ends at the first bound.
    if (area.length > 40) for (const at of [12, 14, 36, 37, 38]) area[at] = 0;
    try {
      parseSnapshots(area, random.between(1, 4));
    } catch (error) {
      expect(error).toBeInstanceOf(BlockError);
    }
  }
});

describe.skipIf(!hasQemu)("of an image that QEMU made", () => {
  const directory = mkdtempSync(join(tmpdir(), "qcow2-snapshots-"));
  afterAll(() => rmSync(directory, { recursive: true, force: true }));

  test("names, ids and disk sizes are those of qemu-img info", async () => {
    const path = join(directory, "image");
    execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", path, "3M"]);
    for (const name of ["first", "zweiter", "ünicode"])
      execFileSync("qemu-img", ["snapshot", "-c", name, path]);
    const image = MemoryImage.from(readFileSync(path));
    const { snapshots } = await readSnapshots(image, await readCheckedHeader(image));
    const info = JSON.parse(execFileSync("qemu-img", ["info", "--output=json", path], { encoding: "utf8" }));
    expect(snapshots.map(snapshotInfo)).toEqual(info.snapshots);
    expect(snapshots.map((snapshot) => snapshot.diskSize)).toEqual([3 * MiB, 3 * MiB, 3 * MiB]);
  });
});

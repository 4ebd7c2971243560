import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { KiB, MiB } from "../../base/units.ts";
import { bitmapInfo, bitmapTableEntry, markBitmapsInUse, readBitmaps } from "./bitmaps.ts";
import { readCheckedHeader } from "./checked-image.ts";
import { newHeader } from "./create.ts";
import type { Qcow2Header } from "./header.ts";
import { MemoryImage } from "./testing/memory-image.ts";

const hasQemu = spawnSync("qemu-img", ["--version"]).status === 0;
const DIRECTORY_AT = 64 * KiB;
const IN_USE = 1;
const AUTO = 2;

interface Fields {
  readonly name: string;
  readonly flags: number;
  readonly tableOffset: number;
  readonly tableEntries: number;
  readonly type: number;
  readonly granularityBits: number;
  readonly extraBytes: number;
}

/** A directory entry by the specification's table. */
function entry(change: Partial<Fields> = {}): Buffer {
  const fields: Fields = {
    name: "backup",
    flags: AUTO,
    tableOffset: 128 * KiB,
    tableEntries: 1,
    type: 1,
    granularityBits: 16,
    extraBytes: 0,
    ...change,
  };
  const bytes = Buffer.alloc(24 + fields.extraBytes);
  bytes.writeBigUInt64BE(BigInt(fields.tableOffset), 0);
  bytes.writeUInt32BE(fields.tableEntries, 8);
  bytes.writeUInt32BE(fields.flags, 12);
  bytes[16] = fields.type;
  bytes[17] = fields.granularityBits;
  bytes.writeUInt16BE(fields.name.length, 18);
  bytes.writeUInt32BE(fields.extraBytes, 20);
  const all = Buffer.concat([bytes, Buffer.from(fields.name)]);
  return Buffer.concat([all], Math.ceil(all.length / 8) * 8);
}

function imageWith(entries: Buffer[], count = entries.length): { image: MemoryImage; header: Qcow2Header } {
  const directory = Buffer.concat(entries);
  const image = new MemoryImage();
  image.truncate(MiB);
  image.write(DIRECTORY_AT, directory.length, directory, 0);
  const bitmaps = { bitmapCount: count, directoryBytes: directory.length, directoryOffset: DIRECTORY_AT };
  return { image, header: { ...newHeader({ size: MiB }), autoclear: 1n, bitmaps } };
}

test("the directory is read", async () => {
  const { image, header } = imageWith([entry(), entry({ name: "a longer name", flags: IN_USE | AUTO })]);
  const bitmaps = await readBitmaps(image, header);
  expect(bitmaps.map(bitmapInfo)).toEqual([
    { name: "backup", granularity: 65536, flags: ["auto"] },
    { name: "a longer name", granularity: 65536, flags: ["in-use", "auto"] },
  ]);
});

test("enabled bitmaps are marked as in use, durably; disabled ones stay right", async () => {
  const entries = [entry(), entry({ name: "disabled", flags: 0 }), entry({ name: "third" })];
  const { image, header } = imageWith(entries);
  await markBitmapsInUse(image, header);
  expect((await readBitmaps(image, header)).map((bitmap) => bitmap.flags)).toEqual([3, 0, 3]);
  expect(image.flushes).toBe(1);
  // Whether the mark that is there is durable is not known: a flush may have failed.
  await markBitmapsInUse(image, header);
  expect(image.flushes).toBe(2);
});

test("an image without bitmaps is not touched", async () => {
  const image = new MemoryImage();
  await markBitmapsInUse(image, newHeader({ size: MiB }));
  expect([image.size, image.flushes]).toEqual([0, 0]);
});

test.each<[string, Partial<Fields>]>([
  ["no table", { tableEntries: 0 }],
  ["a huge table", { tableEntries: 0x8000001 }],
  ["table at 0", { tableOffset: 0 }],
  ["table unaligned", { tableOffset: 512 }],
  ["granularity 8", { granularityBits: 8 }],
  ["granularity 63", { granularityBits: 63 }],
  ["reserved flags", { flags: 8 }],
  ["no name", { name: "" }],
  ["a long name", { name: "x".repeat(1024) }],
  ["another type", { type: 2 }],
  ["extra data", { extraBytes: 8 }],
])("a broken entry is refused: %s", async (_name, change) => {
  const { image, header } = imageWith([entry(change)]);
  await expect(readBitmaps(image, header)).rejects.toThrow("doesn't satisfy the constraints");
  await expect(markBitmapsInUse(image, header)).rejects.toMatchObject({ code: "IMAGE_CORRUPT" });
});

test("a directory that does not add up is refused", async () => {
  const cut = imageWith([entry().subarray(0, 24)]);
  await expect(readBitmaps(cut.image, cut.header)).rejects.toThrow("Broken bitmap directory");
  const more = imageWith([entry(), entry()], 1);
  await expect(readBitmaps(more.image, more.header)).rejects.toThrow("More bitmaps found than specified");
  const less = imageWith([entry()], 2);
  await expect(readBitmaps(less.image, less.header)).rejects.toThrow("Less bitmaps found than specified");
  const outside = imageWith([entry()]);
  outside.image.truncate(DIRECTORY_AT);
  await expect(readBitmaps(outside.image, outside.header)).rejects.toThrow("past the end of the file");
});

test("entries of a bitmap table, by the specification's table", () => {
  const cluster = 64 * KiB;
  expect(bitmapTableEntry(0, 0, cluster)).toEqual({ valid: true, offset: 0 });
  expect(bitmapTableEntry(0, 1, cluster)).toEqual({ valid: true, offset: 0 });
  expect(bitmapTableEntry(1, cluster, cluster)).toEqual({ valid: true, offset: 2 ** 32 + cluster });
  expect(bitmapTableEntry(0, cluster | 1, cluster).valid).toBe(false);
  expect(bitmapTableEntry(0, 512, cluster).valid).toBe(false);
  for (let bit = 1; bit <= 8; bit++)
    expect(bitmapTableEntry(0, cluster | (1 << bit), cluster).valid).toBe(false);
  for (let bit = 24; bit < 32; bit++) expect(bitmapTableEntry(2 ** bit, cluster, cluster).valid).toBe(false);
});

describe.skipIf(!hasQemu)("of an image that QEMU made", () => {
  const directory = mkdtempSync(join(tmpdir(), "qcow2-bitmaps-"));
  afterAll(() => rmSync(directory, { recursive: true, force: true }));

  test("are listed as qemu-img does, and inconsistent there after the mark; the image is clean", async () => {
    const path = join(directory, "image");
    const info = () =>
      JSON.parse(execFileSync("qemu-img", ["info", "--output=json", path], { encoding: "utf8" }))[
        "format-specific"
      ].data.bitmaps;
    execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", path, "3M"]);
    execFileSync("qemu-img", ["bitmap", "--add", "-g", "128k", path, "one"]);
    execFileSync("qemu-img", ["bitmap", "--add", "--disable", path, "two"]);
    const image = MemoryImage.from(readFileSync(path));
    const header = await readCheckedHeader(image);
    expect((await readBitmaps(image, header)).map(bitmapInfo)).toEqual(info());
    await markBitmapsInUse(image, header);
    writeFileSync(path, image.bytes());
    expect(info()).toEqual([
      { name: "one", granularity: 131072, flags: ["in-use", "auto"] },
      { name: "two", granularity: 65536, flags: [] },
    ]);
    expect(execFileSync("qemu-img", ["check", path], { encoding: "utf8" })).toContain("No errors were found");
  });
});

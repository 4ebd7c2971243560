// No write goes over a table: an image of QEMU's with every kind of metadata, entries that name the place of
// one, and a guest that writes through them.

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, test } from "vitest";
import { readU64, writeU64 } from "../../base/bytes.ts";
import { KiB, MiB } from "../../base/units.ts";
import type { CorruptionReport } from "../../block/driver.ts";
import { MemoryFile } from "../../sys/memory-file.ts";
import { kindName, MetadataKind, MetadataPlaces } from "./metadata-places.ts";
import { overlapChecks } from "./overlap-checks.ts";
import { newMemoryImage, type OpenImage, openImage, readAll, writeAll } from "./testing/nodes.ts";

const hasQemu = spawnSync("qemu-img", ["--version"]).status === 0;
const directory = mkdtempSync(join(tmpdir(), "qcow2-overlap-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const CLUSTER = 64 * KiB;
const COPIED = 2 ** 63;
const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;

/** Where each kind of metadata stands in the image that `make` makes. */
type Places = Record<"L1" | "L2" | "block" | "reftable" | "snapshots" | "snapshotL1" | "bitmaps", number>;

const NAMES: Record<keyof Places, string> = {
  L1: "active L1 table",
  L2: "active L2 table",
  block: "refcount block",
  reftable: "refcount table",
  snapshots: "snapshot table",
  snapshotL1: "inactive L1 table",
  bitmaps: "bitmap directory",
};
const KINDS = Object.keys(NAMES) as (keyof Places)[];

let original: Buffer;
let at: Places;
let snapshotL2: number;

/** Guest cluster 0 holds ones and is ours; cluster 16 (1 MiB) is where entries are damaged; 17 is empty. */
function make(): void {
  const path = join(directory, "image.qcow2");
  const qemuImg = (...args: string[]) => execFileSync("qemu-img", args);
  qemuImg("create", "-q", "-f", "qcow2", path, "8M");
  const qemuIo = (...commands: string[]) =>
    execFileSync("qemu-io", [...commands.flatMap((command) => ["-c", command]), path], { stdio: "ignore" });
  qemuIo("write -P 7 2M 64k");
  qemuImg("snapshot", "-c", "one", path);
  qemuIo("write -P 1 0 64k", "write -P 2 1M 64k");
  qemuImg("bitmap", "--add", "-g", "64k", path, "b0");
  original = readFileSync(path);
  const entry = (from: number) => Number(original.readBigUInt64BE(from) & OFFSET_MASK);
  const L1 = readU64(original, 40);
  const reftable = readU64(original, 48);
  const snapshots = readU64(original, 64);
  const snapshotL1 = readU64(original, snapshots);
  const bitmapsExtension = original.indexOf(Buffer.from("23852875", "hex"));
  const bitmaps = readU64(original, bitmapsExtension + 8 + 16);
  at = { L1, L2: entry(L1), block: entry(reftable), reftable, snapshots, snapshotL1, bitmaps };
  snapshotL2 = entry(snapshotL1);
}

const copyOf = (bytes: Buffer): MemoryFile => {
  const file = new MemoryFile({ path: "memory.qcow2" });
  file.write(0, bytes.length, Buffer.from(bytes), 0);
  return file;
};

/** The image with its entry for 1 MiB changed. */
function withEntry(offset: number, flags: number): MemoryFile {
  const bytes = Buffer.from(original);
  writeU64(bytes, offset, at.L2 + 16 * 8);
  bytes[at.L2 + 16 * 8]! |= flags / 2 ** 56;
  return copyOf(bytes);
}

interface Opened extends OpenImage {
  readonly reports: CorruptionReport[];
}

async function open(file: MemoryFile, checks?: number): Promise<Opened> {
  const reports: CorruptionReport[] = [];
  const image = await openImage(file, {
    onCorruption: (report) => reports.push(report),
    ...(checks === undefined ? {} : { overlapChecks: checks }),
  });
  return { ...image, reports };
}

/** Everything but the feature bits of the header and the bitmap's mark is as before. */
function untouched(file: MemoryFile, before: Buffer, from: number): void {
  expect(file.content(from, CLUSTER).equals(before.subarray(from, from + CLUSTER))).toBe(true);
}

const isMarkedCorrupt = (file: MemoryFile) => (file.content(79, 1)[0]! & 2) !== 0;

describe.skipIf(!hasQemu)("guest data", () => {
  beforeAll(make);

  const writes: Record<string, (image: OpenImage) => Promise<void>> = {
    "in place": ({ node }) => writeAll(node, 16 * CLUSTER, Buffer.alloc(4096, 9)),
    "in place, in the middle of more": ({ node }) =>
      writeAll(node, 15 * CLUSTER, Buffer.alloc(3 * CLUSTER, 9)),
  };

  for (const [how, write] of Object.entries(writes)) {
    it.each(KINDS)(`${how}, not over the place of: %s`, async (kind) => {
      const file = withEntry(at[kind], COPIED);
      const before = file.content(0, file.size);
      const image = await open(file);
      await expect(write(image)).rejects.toMatchObject({ code: "EIO" });
      if (kind !== "bitmaps") untouched(file, before, at[kind]);
      const offset = at[kind];
      const report = image.reports[0]!;
      expect(image.reports).toHaveLength(1);
      expect(report.message).toBe(`Preventing invalid write on metadata (overlaps with ${NAMES[kind]})`);
      expect(report).toMatchObject({ fatal: true, node: image.node.name });
      expect(report.offset).toBeGreaterThanOrEqual(offset - CLUSTER);
      await expect(writeAll(image.node, 0, Buffer.alloc(512, 3))).rejects.toThrow("takes no more writes");
      expect((await readAll(image.node, 0, CLUSTER)).equals(Buffer.alloc(CLUSTER, 1))).toBe(true);
      await image.driver.close();
      expect(isMarkedCorrupt(file)).toBe(true);
      await expect(openImage(file)).rejects.toThrow("Image is corrupt; cannot be opened read/write");
    });
  }

  it.each(KINDS)("into a zero cluster that is set aside over: %s", async (kind) => {
    const file = withEntry(at[kind] + 1, COPIED);
    const before = file.content(0, file.size);
    const image = await open(file);
    await expect(writeAll(image.node, 16 * CLUSTER, Buffer.alloc(512, 9))).rejects.toMatchObject({
      code: "EIO",
    });
    if (kind !== "bitmaps") untouched(file, before, at[kind]);
    expect(image.reports[0]).toMatchObject({ offset: at[kind], bytes: CLUSTER, fatal: true });
    await image.driver.close();
  });

  it.each(KINDS)("a discard does not free the place of: %s", async (kind) => {
    const file = withEntry(at[kind], COPIED);
    const before = file.content(0, file.size);
    const image = await open(file);
    await image.node.discard(16 * CLUSTER, CLUSTER);
    await image.node.flush();
    await image.driver.image.frees.settled();
    if (kind !== "L2" && kind !== "bitmaps") untouched(file, before, at[kind]);
    expect(image.reports[0]?.message).toContain(`overlaps with ${NAMES[kind]}`);
    expect(file.content(at.block + 2 * (at[kind] / CLUSTER), 2).readUInt16BE(0)).toBeGreaterThan(0);
    await image.driver.close();
    expect(isMarkedCorrupt(file)).toBe(true);
  });

  it("the tables of a snapshot are checked with overlap-check=all only", async () => {
    const file = withEntry(snapshotL2, COPIED);
    const cached = await open(file);
    await writeAll(cached.node, 16 * CLUSTER, Buffer.alloc(512, 9));
    await cached.driver.close();
    const all = await open(withEntry(snapshotL2, COPIED), overlapChecks("all"));
    await expect(writeAll(all.node, 16 * CLUSTER, Buffer.alloc(512, 9))).rejects.toThrow("inactive L2 table");
    await all.driver.close();
  });

  it("nothing is checked with overlap-check=none", async () => {
    const file = withEntry(at.snapshots, COPIED);
    const image = await open(file, overlapChecks("none"));
    await writeAll(image.node, 16 * CLUSTER, Buffer.alloc(512, 9));
    expect(image.reports).toEqual([]);
    expect(file.content(at.snapshots, 1)[0]).toBe(9);
    await image.driver.close();
  });

  it("damage in an image that is open for reading is told once, and nothing is marked", async () => {
    const file = withEntry(at.L1 + 512, COPIED);
    const reports: CorruptionReport[] = [];
    const image = await openImage(file, { readOnly: true, onCorruption: (report) => reports.push(report) });
    for (let i = 0; i < 2; i++) {
      await expect(readAll(image.node, 16 * CLUSTER, 512)).rejects.toMatchObject({ code: "EIO" });
    }
    expect(reports).toHaveLength(1);
    expect(reports[0]).toMatchObject({ fatal: false });
    expect(isMarkedCorrupt(file)).toBe(false);
  });
});

describe.skipIf(!hasQemu)("tables", () => {
  beforeAll(make);
  const others = KINDS.filter((kind) => kind !== "L2");

  it.each(others)("no L2 table is written where it is also: %s", async (kind) => {
    const bytes = Buffer.from(original);
    writeU64(bytes, at[kind], at.L1);
    bytes[at.L1]! |= 0x80;
    const file = copyOf(bytes);
    const image = await open(file);
    // Refused before the guest is told that it was written: a flush never meets it.
    // A bitmap directory is met even before, when bitmaps are to be marked.
    const told = kind === "bitmaps" ? NAMES.L2 : NAMES[kind];
    await expect(writeAll(image.node, 17 * CLUSTER, Buffer.alloc(512, 9))).rejects.toThrow(told);
    await image.node.flush();
    await image.driver.close();
    if (kind !== "bitmaps") untouched(file, bytes, at[kind]);
    expect(isMarkedCorrupt(file)).toBe(true);
  });

  it("no refcount block is written where an L2 table stands", async () => {
    const bytes = Buffer.from(original);
    writeU64(bytes, at.L2, at.reftable);
    const file = copyOf(bytes);
    const image = await open(file);
    await expect(writeAll(image.node, 17 * CLUSTER, Buffer.alloc(512, 9))).rejects.toThrow(NAMES.block);
    await image.driver.close();
    untouched(file, bytes, at.L2);
  });

  it("no block is believed that stands for two stretches of the file", async () => {
    const bytes = Buffer.from(original);
    bytes.copy(bytes, at.reftable + 8, at.reftable, at.reftable + 8);
    const image = await open(copyOf(bytes));
    await expect(writeAll(image.node, 17 * CLUSTER, Buffer.alloc(512, 9))).rejects.toThrow("refcount block");
    await image.driver.close();
  });

  it("no table is written that two entries name as theirs", async () => {
    const path = join(directory, "twice.qcow2");
    execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "8M"]);
    execFileSync("qemu-io", ["-c", "write -P 1 0 64k", path], { stdio: "ignore" });
    const bytes = readFileSync(path);
    const l1 = readU64(bytes, 40);
    bytes.copy(bytes, l1 + 8, l1, l1 + 8);
    const image = await open(copyOf(bytes));
    await expect(writeAll(image.node, 0, Buffer.alloc(512, 9))).rejects.toThrow("active L2 table");
    await image.driver.close();
  });
});

test("the last look: what is in memory and belongs nowhere is not written, and the flush fails", async () => {
  const host = await newMemoryImage({ size: 8 * MiB });
  const { node, driver } = await openImage(host);
  await writeAll(node, 0, Buffer.alloc(512, 1));
  await node.flush();
  const { image } = driver;
  const l2 = image.l1.words[1]! & ~511;
  const before = host.content(l2, CLUSTER);
  await writeAll(node, MiB, Buffer.alloc(512, 1));
  image.places.add(MetadataKind.REFCOUNT_TABLE, l2 / CLUSTER, 1);
  await expect((async () => node.flush())()).rejects.toThrow("overlaps with refcount table");
  await expect((async () => node.flush())()).rejects.toMatchObject({ code: "EIO" });
  await driver.close();
  expect(host.content(l2, CLUSTER).equals(before)).toBe(true);
  expect(isMarkedCorrupt(host)).toBe(true);
});

test("the places: several kinds in a cluster, the lowest is told; one met twice stays when one goes", () => {
  const places = new MetadataPlaces(4096, overlapChecks("cached"));
  places.add(MetadataKind.ACTIVE_L2, 5, 2);
  places.add(MetadataKind.REFCOUNT_TABLE, 6, 1);
  expect(places.touchedBy(4096 * 4, 4096)).toBe(0);
  expect(kindName(places.touchedBy(4096 * 4 + 4095, 2))).toBe("active L2 table");
  expect(places.touchedBy(4096 * 5, 4096, MetadataKind.ACTIVE_L2)).toBe(0);
  expect(kindName(places.touchedBy(4096 * 6, 1, MetadataKind.ACTIVE_L2))).toBe("refcount table");
  // The same bit of the filter, another cluster.
  expect(places.kindsIn(5 + 2 ** 20)).toBe(0);
  expect(places.kindsIn(5 + 2 ** 33)).toBe(0);
  places.add(MetadataKind.ACTIVE_L2, 5 + 2 ** 33, 1);
  expect(places.kindsIn(5 + 2 ** 33)).toBe(MetadataKind.ACTIVE_L2);
  places.add(MetadataKind.ACTIVE_L2, 5, 1);
  expect(places.isTwice(MetadataKind.ACTIVE_L2, 5)).toBe(true);
  places.remove(MetadataKind.ACTIVE_L2, 5, 1);
  expect(places.kindsIn(5)).toBe(MetadataKind.ACTIVE_L2);
  places.remove(MetadataKind.ACTIVE_L2, 5, 1);
  expect(places.kindsIn(5)).toBe(0);
});

test("the option: templates, flags upon one, QEMU's default", () => {
  const { ACTIVE_L1, INACTIVE_L2, MAIN_HEADER } = MetadataKind;
  expect(overlapChecks(undefined)).toBe(0x1ff & ~INACTIVE_L2);
  expect(overlapChecks("all")).toBe(0x1ff);
  expect(overlapChecks("none")).toBe(0);
  expect(overlapChecks({ template: "none", "active-l1": true })).toBe(ACTIVE_L1);
  expect(overlapChecks({ template: "all", "main-header": false })).toBe(0x1ff & ~MAIN_HEADER);
  expect(overlapChecks({ "inactive-l2": true })).toBe(0x1ff);
  expect(overlapChecks({ template: "constant" })).toBe(0b1_0011_0011);
});

test("one image: how much memory the places take does not depend on its length", () => {
  const places = new MetadataPlaces(64 * KiB, overlapChecks("cached"));
  // 16 TiB of disk: an L2 table in every 512 MiB.
  for (let table = 0; table < 32768; table++) places.add(MetadataKind.ACTIVE_L2, table * 8193, 1);
  expect(places.size).toBe(32768);
  let maybe = 0;
  for (let cluster = 1; cluster < 2 ** 20; cluster += 7) if (places.kindsIn(cluster) !== 0) maybe++;
  expect(maybe).toBeLessThan(MiB / 7 / 1000);
});

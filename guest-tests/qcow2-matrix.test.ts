// Images of ours open in QEMU and QEMU's in ours: over version, cluster size, refcount width, compression,
// subclusters and forms of the backing link. Bytes are compared both ways, and `qemu-img check` ends every
// test.
//
// STRATA_SEED varies what is written; a failure names its seed.

import path from "node:path";
import { describe, expect, it } from "vitest";
import { Prng } from "../src/base/prng.ts";
import { alignDown, alignUp, KiB, MiB } from "../src/base/units.ts";
import type { CreateOptions } from "../src/format/qcow2/create.ts";
import {
  createImage,
  difference,
  type OpenImage,
  openImage,
  qemuCheck,
  qemuContent,
  qemuIo,
} from "./harness/qcow2-images.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { run } from "./harness/tool.ts";

const SEED = Number(process.env["STRATA_SEED"] ?? 1);

type BackingForm = "none" | "relative" | "absolute" | "json" | "raw, shorter" | "longer";
const BACKING_FORMS: readonly BackingForm[] = [
  "none",
  "relative",
  "absolute",
  "json",
  "raw, shorter",
  "longer",
];

interface Shape {
  readonly version: 2 | 3;
  readonly clusterSize: number;
  readonly refcountBits: number;
  readonly compression: "zlib" | "zstd";
  readonly extendedL2: boolean;
  readonly backing: BackingForm;
}

/** Every value of every dimension, and many pairs; all of them together would be thousands. */
function shapes(): Shape[] {
  const all: Shape[] = [];
  const add = (shape: Omit<Shape, "backing">) => {
    all.push({ ...shape, backing: BACKING_FORMS[all.length % BACKING_FORMS.length]! });
  };
  for (let bits = 9; bits <= 21; bits++) {
    const compression = bits % 2 === 0 ? ("zstd" as const) : ("zlib" as const);
    const common = { clusterSize: 2 ** bits, extendedL2: false };
    add({ ...common, version: 2, refcountBits: 16, compression: "zlib" });
    add({ ...common, version: 3, refcountBits: 16, compression });
  }
  for (const refcountBits of [1, 2, 4, 8, 32, 64]) {
    const common = { version: 3 as const, refcountBits, compression: "zlib" as const };
    add({ ...common, clusterSize: 4 * KiB, extendedL2: false });
    add({ ...common, clusterSize: 512, extendedL2: false });
    add({ ...common, clusterSize: 64 * KiB, extendedL2: true });
  }
  for (const bits of [14, 15, 16, 17, 19, 21]) {
    for (const compression of ["zlib", "zstd"] as const) {
      add({ version: 3, clusterSize: 2 ** bits, refcountBits: 16, compression, extendedL2: true });
    }
  }
  return all;
}

/** Length of the disk: some clusters, the last one cut. */
function diskBytes(shape: Shape): number {
  return Math.max(1 * MiB, 4 * shape.clusterSize) + 3 * 512 + (shape.clusterSize >> 1);
}

function qemuOptions(shape: Shape): string {
  const compat = shape.version === 2 ? "0.10" : "1.1";
  const v3 = `,refcount_bits=${shape.refcountBits},compression_type=${shape.compression},extended_l2=${
    shape.extendedL2 ? "on" : "off"
  }`;
  return `compat=${compat},cluster_size=${shape.clusterSize}${shape.version === 2 ? "" : v3}`;
}

function ourOptions(shape: Shape): Omit<CreateOptions, "size"> {
  const { version, clusterSize, refcountBits, compression, extendedL2 } = shape;
  return { version, clusterSize, refcountBits, compressionType: compression, extendedL2 };
}

interface Link {
  readonly file: string;
  readonly format: string;
}

/** Makes the backing image with data at random places; undefined for a shape without one. */
async function makeBacking(shape: Shape, directory: string, random: Prng): Promise<Link | undefined> {
  if (shape.backing === "none") return undefined;
  const disk = diskBytes(shape);
  const bytes =
    shape.backing === "raw, shorter"
      ? 512 * Math.floor(disk / 1024 - 3)
      : shape.backing === "longer"
        ? 2 * disk
        : disk;
  const format = shape.backing === "raw, shorter" ? "raw" : "qcow2";
  const file = path.join(directory, `base.${format}`);
  await run("qemu-img", "create", "-q", "-f", format, file, String(512 * Math.ceil(bytes / 512)));
  const commands = Array.from({ length: 12 }, () => writeCommand(random, bytes));
  await run("qemu-io", "-f", format, ...commands.flatMap((command) => ["-c", command]), file);
  switch (shape.backing) {
    case "relative":
      return { file: "base.qcow2", format };
    case "json":
      return {
        file: `json:${JSON.stringify({ driver: format, file: { driver: "file", filename: file } })}`,
        format,
      };
    default:
      return { file, format };
  }
}

function sectors(random: Prng, bytes: number): { at: number; length: number } {
  const at = 512 * random.below(Math.floor(bytes / 512));
  const longest = Math.min(bytes - at, random.chance(0.3) ? bytes / 3 : 40 * KiB);
  return { at, length: 512 * Math.max(1, Math.floor((random.next() * longest) / 512)) };
}

function writeCommand(random: Prng, bytes: number): string {
  const { at, length } = sectors(random, bytes);
  return `write -q -P ${random.between(1, 255)} ${at} ${length}`;
}

/** Commands for qemu-io that make every kind of cluster. */
function guestCommands(shape: Shape, random: Prng, count: number): string[] {
  const bytes = diskBytes(shape);
  const clusters = Math.floor(bytes / shape.clusterSize);
  const commands: string[] = [];
  for (let n = 0; n < count; n++) {
    const kind = random.below(10);
    const { at, length } = sectors(random, bytes);
    const cluster = random.below(clusters) * shape.clusterSize;
    if (kind < 5) commands.push(writeCommand(random, bytes));
    else if (kind === 5) commands.push(`write -q -z ${at} ${length}`);
    else if (kind === 6) commands.push(`write -q -z -u ${at} ${length}`);
    else if (kind === 7) commands.push(`discard -q ${cluster} ${shape.clusterSize}`);
    // Several compressed clusters share a host cluster: more than a narrow refcount can count with a
    // snapshot.
    else if (shape.refcountBits < 8) commands.push(writeCommand(random, bytes));
    else commands.push(`write -q -c -P ${random.between(1, 255)} ${cluster} ${shape.clusterSize}`);
  }
  // A compressed write over a cluster in use is an error of qemu-io: these go first, each to a cluster of its
  // own.
  const compressed = commands.filter((command) => command.includes(" -c "));
  const places = new Set<string>();
  const once = compressed.filter((command) => {
    const place = command.split(" ")[5]!;
    return !places.has(place) && places.add(place);
  });
  return [...once, ...commands.filter((command) => !command.includes(" -c "))];
}

/**
 * Writes, zeroes and discards through our driver, at any byte, and the same in `model`. What a discard leaves
 * is the driver's choice cluster by cluster: what was there, or zeros.
 */
async function useImage(image: OpenImage, model: Buffer, random: Prng, count: number): Promise<void> {
  const { node } = image;
  for (let n = 0; n < count; n++) {
    const at = random.below(model.length);
    const longest = Math.min(model.length - at, random.chance(0.2) ? model.length / 2 : 20 * KiB);
    const length = Math.max(1, Math.floor(random.next() * longest));
    const kind = random.below(10);
    if (kind < 6) {
      const data = Buffer.alloc(length, random.between(1, 255));
      await node.write(at, length, data, 0);
      data.copy(model, at);
    } else if (kind < 8) {
      await node.writeZeroes(at, length, random.pick([0, 2]));
      model.fill(0, at, at + length);
    } else if (kind === 8) {
      const before = Buffer.from(model.subarray(at, at + length));
      await node.discard(at, length);
      await node.read(at, length, model, at);
      for (let i = 0; i < length; i++) {
        const left = model[at + i]!;
        if (left !== 0 && left !== before[i]) throw new Error(`discard of ${length} at ${at} left ${left}`);
      }
    } else {
      await node.flush();
    }
    await checkAround(image, model, { at, length }, `operation ${n}, kind ${kind}: ${length} at ${at}`);
  }
}

/** The clusters of a change read as they should: at once, where the message still names the change. */
async function checkAround(
  image: OpenImage,
  model: Buffer,
  range: { at: number; length: number },
  what: string,
): Promise<void> {
  const { clusterSize } = image.driver;
  const from = alignDown(range.at, clusterSize);
  const to = Math.min(model.length, alignUp(range.at + range.length, clusterSize));
  const content = Buffer.alloc(to - from, 0xee);
  await image.node.read(from, to - from, content, 0);
  expect(difference(content, model.subarray(from, to)), `${what} (first byte is ${from})`).toBe("");
}

async function readInPieces(image: OpenImage, random: Prng): Promise<Buffer> {
  const content = Buffer.alloc(image.node.size, 0xee);
  for (let at = 0; at < content.length; ) {
    const length = Math.min(content.length - at, random.pick([1, 511, 513, 4096, 70_001, MiB]));
    await image.node.read(at, length, content, at);
    at += length;
  }
  return content;
}

function title(shape: Shape): string {
  const size = shape.clusterSize < KiB ? `${shape.clusterSize}` : `${shape.clusterSize / KiB}k`;
  const subclusters = shape.extendedL2 ? " subclusters" : "";
  return `v${shape.version} ${size} rc${shape.refcountBits} ${shape.compression}${subclusters}, backing ${shape.backing}`;
}

const CASES = shapes().map((shape, index) => ({ shape, name: title(shape), seed: SEED * 1000 + index }));

describe("QEMU's images in ours", () => {
  it.each(CASES)("$name (seed $seed)", async ({ shape, seed }) => {
    const random = new Prng(seed);
    const directory = scratchDirectory();
    const file = path.join(directory, "disk.qcow2");
    const link = await makeBacking(shape, directory, random);
    const backing = link === undefined ? [] : ["-b", link.file, "-F", link.format];
    const size = String(512 * Math.floor(diskBytes(shape) / 512));
    await run("qemu-img", "create", "-q", "-f", "qcow2", "-o", qemuOptions(shape), ...backing, file, size);
    await qemuIo(file, ...guestCommands(shape, random, 14));
    const snapshots: Buffer[] = [];
    // With refcounts of one bit nothing can be shared.
    if (shape.refcountBits > 1) {
      await run("qemu-img", "snapshot", "-c", "before", file);
      await qemuIo(file, ...guestCommands(shape, random, 8).filter((command) => !command.includes(" -c ")));
      snapshots.push(await qemuContent(file, "before"));
    }
    expect(await qemuCheck(file)).toBe("clean");
    const content = await qemuContent(file);

    const reading = await openImage(file, "read");
    expect(difference(await readInPieces(reading, random), content)).toBe("");
    await reading.close();

    const writing = await openImage(file, "write");
    await useImage(writing, content, random, 60);
    expect(difference(await writing.content(), content)).toBe("");
    await writing.close();
    expect(await qemuCheck(file)).toBe("clean");
    expect(difference(await qemuContent(file), content)).toBe("");
    for (const snapshot of snapshots)
      expect(difference(await qemuContent(file, "before"), snapshot)).toBe("");
    // And QEMU goes on with what we left.
    await qemuIo(file, ...guestCommands(shape, random, 8).filter((command) => !command.includes(" -c ")));
    expect(await qemuCheck(file)).toBe("clean");
    const again = await openImage(file, "read");
    expect(difference(await readInPieces(again, random), await qemuContent(file))).toBe("");
  });
});

describe("our images in QEMU", () => {
  it.each(CASES)("$name (seed $seed)", async ({ shape, seed }) => {
    const random = new Prng(seed);
    const directory = scratchDirectory();
    const file = path.join(directory, "disk.qcow2");
    const link = await makeBacking(shape, directory, random);
    const backing = link === undefined ? {} : { backingFile: link.file, backingFormat: link.format };
    await createImage(file, { ...ourOptions(shape), ...backing, size: diskBytes(shape) });
    expect(await qemuCheck(file)).toBe("clean");
    const content = await qemuContent(file);
    for (let round = 0; round < 2; round++) {
      const image = await openImage(file, "write");
      expect(difference(await image.content(), content)).toBe("");
      await useImage(image, content, random, 60);
      await image.close();
      expect(await qemuCheck(file)).toBe("clean");
      expect(difference(await qemuContent(file), content)).toBe("");
    }
    const info = JSON.parse(await run("qemu-img", "info", "--output=json", file));
    expect(info["virtual-size"]).toBe(content.length);
    expect(info["backing-filename"]).toBe(link?.file);
  });
});

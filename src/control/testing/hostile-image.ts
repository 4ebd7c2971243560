// qcow2 images that mean harm, by seed: first a sound one with everything that the format knows (data, zero
// and compressed clusters, snapshots, bitmaps, a backing link), then broken where it hurts.

import path from "node:path";
import { deflateRawSync } from "node:zlib";
import type { Prng } from "../../base/prng.ts";
import { alignUp, KiB, MiB } from "../../base/units.ts";
import { createQcow2 } from "../../format/qcow2/create.ts";
import { parseHeader, type Qcow2Header, serializeHeader } from "../../format/qcow2/header.ts";
import { hostImageFile } from "../../format/qcow2/image-file.ts";
import { openImage } from "../../format/qcow2/testing/nodes.ts";
import { MemoryFile } from "../../sys/memory-file.ts";
import { hostileJsonLink } from "./hostile-json-link.ts";

/** A file that is opened again and again. */
export class LastingFile extends MemoryFile {
  /** Where it may hurt: set when its parts are known. */
  regions: readonly Region[] = [];

  override async close(): Promise<void> {}
}

/** What an image may take on its host. */
const SPACE_MAX = 64 * MiB;

interface Region {
  readonly at: number;
  readonly bytes: number;
  /** Of its entries or fields. */
  readonly width: number;
}

/** Makes the image of one seed; `others` are the names of files that are there. */
export async function hostileImage(
  prng: Prng,
  name: string,
  others: readonly string[],
): Promise<LastingFile> {
  const file = new LastingFile({ path: name, spaceMax: SPACE_MAX });
  await soundImage(file, prng);
  const header = parseHeader(file.content(0, clusterBytes(file)), file.size);
  const regions = [...headerRegions(), ...addParts(file, header, prng), ...tableRegions(file, header)];
  addLink(file, header, prng, name, others);
  file.regions = regions;
  if (prng.chance(0.9)) breakIt(file, regions, prng);
  return file;
}

/** Breaks an image in one or a few more places. */
export function breakFurther(file: LastingFile, prng: Prng): void {
  breakIt(file, file.regions, prng);
}

function clusterBytes(file: MemoryFile): number {
  return 2 ** file.content(20, 4).readUInt32BE(0);
}

// --- a sound image -----------------------------------------------------------------------------------------

async function soundImage(file: LastingFile, prng: Prng): Promise<void> {
  const version = prng.chance(0.2) ? 2 : 3;
  const extendedL2 = version === 3 && prng.chance(0.2);
  const clusterSize = extendedL2 ? prng.pick([16 * KiB, 64 * KiB]) : prng.pick([512, 512, 4 * KiB, 64 * KiB]);
  await createQcow2(hostImageFile(file), {
    size: prng.pick([0, 512, clusterSize * 3, clusterSize * 40 + 512, clusterSize * 300]),
    clusterSize,
    version,
    extendedL2,
    refcountBits: version === 3 ? 2 ** prng.below(7) : 16,
    ...(version === 3 && prng.chance(0.2) && { compressionType: "zstd" as const }),
  });
  const { node } = await openImage(file);
  for (let count = prng.below(12); count > 0 && node.size > 0; count--) {
    const offset = prng.below(node.size);
    const bytes = Math.min(node.size - offset, prng.between(1, clusterSize * 3));
    // A refcount of one bit and the like may refuse; what is there by then is enough.
    if (prng.chance(0.7)) await node.write(offset, bytes, Buffer.alloc(bytes, prng.between(1, 255)), 0);
    else await node.writeZeroes(offset, bytes, 0);
  }
  await node.driver.close();
}

function headerRegions(): Region[] {
  return [
    { at: 0, bytes: 72, width: 4 },
    { at: 8, bytes: 64, width: 8 },
    { at: 72, bytes: 24, width: 8 },
    { at: 96, bytes: 16, width: 4 },
    { at: 104, bytes: 2, width: 1 },
    { at: 112, bytes: 200, width: 4 },
  ];
}

/** Snapshots, bitmaps and compressed clusters, written behind the rest. */
function addParts(file: LastingFile, header: Qcow2Header, prng: Prng): Region[] {
  const cluster = 2 ** header.clusterBits;
  const regions: Region[] = [];
  const place = (content: Buffer, width: number): number => {
    const at = alignUp(file.size, cluster);
    file.write(at, content.length, content, 0);
    regions.push({ at, bytes: content.length, width });
    return at;
  };
  if (prng.chance(0.4)) {
    header.snapshotCount = prng.between(1, 3);
    const entries = Array.from({ length: header.snapshotCount }, () => snapshotEntry(header, prng));
    header.snapshotsOffset = place(Buffer.concat(entries), 4);
  }
  if (header.version === 3 && prng.chance(0.3)) {
    const table = place(Buffer.alloc(8), 8);
    const entry = bitmapEntry(table, prng);
    const directoryOffset = place(entry, 4);
    header.bitmaps = { bitmapCount: 1, directoryBytes: entry.length, directoryOffset };
    header.autoclear |= 1n;
  }
  const l2 = firstL2(file, header);
  if (l2 !== undefined && prng.chance(0.5)) {
    const width = (header.incompatible & 16) !== 0 ? 16 : 8;
    for (let count = prng.between(1, 3); count > 0; count--) {
      const content = compressedData(header, cluster, prng);
      const at = place(content, 1);
      const sectors = Math.ceil(content.length / 512) - 1;
      const bits = BigInt(62 - (header.clusterBits - 8));
      const entry = (1n << 62n) | (BigInt(sectors) << bits) | BigInt(at);
      const bytes = Buffer.alloc(8);
      bytes.writeBigUInt64BE(BigInt.asUintN(64, entry));
      file.write(l2 + prng.below(cluster / width) * width, 8, bytes, 0);
    }
  }
  return regions;
}

function snapshotEntry(header: Qcow2Header, prng: Prng): Buffer {
  const id = String(prng.below(100));
  const name = prng.pick(["before", "", "n".repeat(300), "\0\0", "\u202e"]);
  const extra = prng.pick([0, 16, 24, 40]);
  const bytes = Buffer.alloc(alignUp(40 + extra + id.length + Buffer.byteLength(name), 8));
  bytes.writeBigUInt64BE(BigInt(header.l1TableOffset), 0);
  bytes.writeUInt32BE(header.l1Size, 8);
  bytes.writeUInt16BE(id.length, 12);
  bytes.writeUInt16BE(Buffer.byteLength(name), 14);
  bytes.writeUInt32BE(extra, 36);
  if (extra >= 16) bytes.writeBigUInt64BE(BigInt(header.size), 48);
  bytes.write(id + name, 40 + extra);
  return bytes;
}

function bitmapEntry(table: number, prng: Prng): Buffer {
  const bytes = Buffer.alloc(32);
  bytes.writeBigUInt64BE(BigInt(table), 0);
  bytes.writeUInt32BE(1, 8);
  bytes.writeUInt32BE(prng.below(4), 12);
  bytes[16] = 1;
  bytes[17] = 16;
  bytes.writeUInt16BE(4, 18);
  bytes.write("bits", 24);
  return bytes;
}

/** Sound, a bomb, cut, or garbage. */
function compressedData(header: Qcow2Header, cluster: number, prng: Prng): Buffer {
  const most = Math.min(cluster, 30_000);
  const kind = prng.below(4);
  if (kind === 0) return prng.fill(Buffer.alloc(prng.between(1, most)));
  const isZstd = header.compressionType === 1;
  const packed = kind === 1 ? bombs()[isZstd ? 1 : 0]! : packedCluster(cluster, isZstd);
  return packed.subarray(0, kind === 2 ? prng.below(packed.length) + 1 : most);
}

function packedCluster(cluster: number, isZstd: boolean): Buffer {
  const plain = Buffer.alloc(cluster, 7);
  return isZstd ? zstdFrameOf(plain, false) : deflateRawSync(plain);
}

let madeBombs: readonly Buffer[] | undefined;

/** 64 MiB in a few bytes, by deflate and by zstd. */
function bombs(): readonly Buffer[] {
  const plain = Buffer.alloc(madeBombs === undefined ? 64 * MiB : 0, 7);
  madeBombs ??= [deflateRawSync(plain, { level: 9 }), zstdFrameOf(plain, true)];
  return madeBombs;
}

/** A frame by the format's own description: run-length blocks, so that a few bytes stand for very many. */
function zstdFrameOf(plain: Buffer, bomb: boolean): Buffer {
  const blocks: Buffer[] = [];
  for (let left = plain.length; left > 0; left -= 128 * KiB) {
    const bytes = Math.min(left, 128 * KiB);
    const isLast = left <= 128 * KiB ? 1 : 0;
    const word = isLast | (1 << 1) | (bytes << 3);
    blocks.push(Buffer.from([word & 255, (word >> 8) & 255, (word >> 16) & 255, plain[0]!]));
  }
  // Single segment with a length of 4 bytes, or a window descriptor and no length.
  const head = bomb ? [0x00, 0x58] : [0xa0, ...lengthBytes(plain.length)];
  return Buffer.concat([Buffer.from([0x28, 0xb5, 0x2f, 0xfd, ...head]), ...blocks]);
}

function lengthBytes(length: number): number[] {
  return [length & 255, (length >> 8) & 255, (length >> 16) & 255, length >>> 24];
}

function firstL2(file: MemoryFile, header: Qcow2Header): number | undefined {
  const l1 = file.content(header.l1TableOffset, header.l1Size * 8);
  for (let at = 0; at < l1.length; at += 8) {
    const offset = Number(l1.readBigUInt64BE(at) & 0x00ff_ffff_ffff_fe00n);
    if (offset !== 0) return offset;
  }
  return undefined;
}

function tableRegions(file: MemoryFile, header: Qcow2Header): Region[] {
  const cluster = 2 ** header.clusterBits;
  const l2 = firstL2(file, header);
  const block = file.content(header.refcountTableOffset, 8).readBigUInt64BE(0);
  return [
    { at: header.l1TableOffset, bytes: Math.max(8, header.l1Size * 8), width: 8 },
    { at: header.refcountTableOffset, bytes: Math.min(cluster, 4096), width: 8 },
    { at: Number(block), bytes: Math.min(cluster, 4096), width: 2 },
    ...(l2 === undefined ? [] : [{ at: l2, bytes: Math.min(cluster, 4096), width: 8 }]),
  ];
}

// --- its backing link --------------------------------------------------------------------------------------

const FORMATS = ["qcow2", "qcow2", "raw", "file", "nbd", "vmdk", "luks", "\0", "ü"];

function addLink(
  file: LastingFile,
  header: Qcow2Header,
  prng: Prng,
  own: string,
  others: readonly string[],
): void {
  if (prng.chance(0.5)) {
    header.backingFile = linkName(prng, own, others);
    if (prng.chance(0.9)) header.backingFormat = prng.pick(FORMATS);
  }
  try {
    const area = serializeHeader(header);
    file.write(0, area.length, area, 0);
  } catch {
    // It does not fit clusters of 512 bytes: the image stays without.
    header.backingFile = undefined;
    header.backingFormat = undefined;
    header.extensions = [];
    const area = serializeHeader(header);
    file.write(0, area.length, area, 0);
  }
  // Names are bytes: also such as are no text.
  if (header.backingFile !== undefined && prng.chance(0.1)) {
    const at = Number(file.content(8, 8).readBigUInt64BE(0));
    file.write(
      at + prng.below(header.backingFile.length + 1),
      1,
      Buffer.from([prng.pick([0, 0xff, 0xc0])]),
      0,
    );
  }
}

function linkName(prng: Prng, own: string, others: readonly string[]): string {
  const there = path.basename(prng.pick(others));
  if (prng.chance(0.6)) return prng.pick([there, `./${there}`, `file:${there}`, prng.pick(others)]);
  if (prng.chance(0.4)) return hostileJsonLink(prng, [own, ...others]);
  return prng.pick([
    path.basename(own),
    "file:/etc/passwd",
    "../../../../etc/shadow",
    "/dev/zero",
    "/proc/self/mem",
    "nbd://127.0.0.1:10809/x",
    "nbd:unix:/tmp/x",
    "http://127.0.0.1/x",
    "https:x",
    "fat:rw:/tmp",
    "file:",
    "file:file:x",
    `${there}\0x`,
    "x".repeat(1000),
    "/".repeat(1000),
    "~/x",
    "-",
    " ",
  ]);
}

// --- what is broken in it ----------------------------------------------------------------------------------

function breakIt(file: LastingFile, regions: readonly Region[], prng: Prng): void {
  for (let count = prng.between(1, 5); count > 0; count--) {
    if (prng.chance(0.04)) file.truncate(prng.below(file.size + 1));
    else if (prng.chance(0.02)) file.truncate(file.size + prng.pick([1, 511, 2 ** 20, 2 ** 40, 2 ** 52]));
    else breakField(file, prng.pick(regions), regions, prng);
  }
}

function breakField(file: LastingFile, region: Region, regions: readonly Region[], prng: Prng): void {
  const { width } = region;
  const fields = Math.max(1, Math.floor(region.bytes / width));
  const at = region.at + prng.below(fields) * width;
  const field = file.content(at, 8);
  const kind = prng.below(5);
  if (kind === 0) field[prng.below(width)]! ^= 1 << prng.below(8);
  else if (kind === 1) file.content(region.at + prng.below(fields) * width, 8).copy(field, 0, 0, width);
  else if (kind === 2) prng.fill(field.subarray(0, width));
  else writeNumber(field, width, someNumber(file, regions, prng));
  // A file of 2**40 bytes that is cut in its last sector stays as it is.
  file.write(at, width, field, 0);
}

function writeNumber(field: Buffer, width: number, value: bigint): void {
  if (width === 8) field.writeBigUInt64BE(BigInt.asUintN(64, value));
  else field.writeUIntBE(Number(BigInt.asUintN(width * 8, value)), 0, width);
}

function someNumber(file: LastingFile, regions: readonly Region[], prng: Prng): bigint {
  const flags = prng.chance(0.3) ? prng.pick([1n << 63n, 1n << 62n, 1n << 61n, 1n]) : 0n;
  const number = prng.pick([
    0n,
    1n,
    2n,
    7n,
    BigInt(prng.below(64)),
    BigInt(prng.pick(regions).at),
    BigInt(prng.pick(regions).at) + 1n,
    BigInt(file.size),
    BigInt(alignUp(file.size, 65536)),
    0x7fff_ffffn,
    0x8000_0000n,
    0xffff_ffffn,
    2n ** 32n,
    2n ** 40n,
    2n ** 53n - 512n,
    2n ** 53n,
    2n ** 56n - 512n,
    2n ** 62n,
    2n ** 63n,
    2n ** 64n - 1n,
  ]);
  return number | flags;
}

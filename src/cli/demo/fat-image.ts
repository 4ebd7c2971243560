// A FAT16 file system, written and read by us: the demo needs a real one where mkfs is not installed.
// Layout and names of fields: "Microsoft FAT Specification" (2005), sections 3 to 6. Little-endian.
//
//   sector 0      boot sector with the BIOS parameter block
//   1 ..          two copies of the FAT: 16 bits per cluster, 0 free, 0xFFFF last of its file
//   then          root directory: ROOT_ENTRIES entries of 32 bytes, one per file; no folders, names of 8.3
//   then          clusters of CLUSTER_BYTES, numbered from 2; each file contiguous

import { assert } from "../../base/assert.ts";
import { divideUp } from "../../base/units.ts";

const SECTOR = 512;
const SECTORS_PER_CLUSTER = 4;
const CLUSTER_BYTES = SECTOR * SECTORS_PER_CLUSTER;
const ROOT_ENTRIES = 512;
const ENTRY_BYTES = 32;
const FIRST_CLUSTER = 2;
const END_OF_FILE = 0xffff;
/** A volume is FAT16 because its cluster count lies between these. */
const CLUSTERS_MIN = 4085;
const CLUSTERS_MAX = 65524;
const ATTRIBUTE_ARCHIVE = 0x20;

interface Layout {
  readonly fatSectors: number;
  readonly rootSector: number;
  readonly dataSector: number;
  readonly clusterCount: number;
}

function layoutFor(bytes: number): Layout {
  const sectors = Math.floor(bytes / SECTOR);
  const rootSectors = (ROOT_ENTRIES * ENTRY_BYTES) / SECTOR;
  // As many FAT sectors as a volume of clusters alone would need: a few too many, never one too few.
  const fatSectors = divideUp((sectors / SECTORS_PER_CLUSTER + FIRST_CLUSTER) * 2, SECTOR);
  const rootSector = 1 + 2 * fatSectors;
  const dataSector = rootSector + rootSectors;
  const clusterCount = Math.floor((sectors - dataSector) / SECTORS_PER_CLUSTER);
  assert(clusterCount >= CLUSTERS_MIN && clusterCount <= CLUSTERS_MAX, "the size makes a FAT16 volume");
  return { fatSectors, rootSector, dataSector, clusterCount };
}

/** A file system of `bytes` bytes that holds these files; names are upper case, 8.3. */
export function makeFatImage(bytes: number, files: ReadonlyMap<string, Buffer>): Buffer {
  const layout = layoutFor(bytes);
  const image = Buffer.alloc(bytes);
  writeBootSector(image, bytes, layout);
  const fat = image.subarray(SECTOR, SECTOR + layout.fatSectors * SECTOR);
  fat.writeUInt16LE(0xfff8, 0);
  fat.writeUInt16LE(END_OF_FILE, 2);
  let cluster = FIRST_CLUSTER;
  let entryAt = layout.rootSector * SECTOR;
  for (const [name, content] of files) {
    const count = divideUp(content.length, CLUSTER_BYTES);
    assert(cluster + count <= layout.clusterCount + FIRST_CLUSTER, "the files fit");
    for (let i = 0; i < count; i++) {
      fat.writeUInt16LE(i === count - 1 ? END_OF_FILE : cluster + i + 1, (cluster + i) * 2);
    }
    content.copy(image, clusterOffset(layout, cluster));
    writeEntry(image, entryAt, name, count === 0 ? 0 : cluster, content.length);
    entryAt += ENTRY_BYTES;
    cluster += count;
  }
  fat.copy(image, SECTOR + layout.fatSectors * SECTOR);
  return image;
}

function writeBootSector(image: Buffer, bytes: number, layout: Layout): void {
  image.set([0xeb, 0x3c, 0x90], 0);
  image.write("STRATA  ", 3, "latin1");
  image.writeUInt16LE(SECTOR, 11);
  image.writeUInt8(SECTORS_PER_CLUSTER, 13);
  image.writeUInt16LE(1, 14); // reserved sectors
  image.writeUInt8(2, 16); // copies of the FAT
  image.writeUInt16LE(ROOT_ENTRIES, 17);
  image.writeUInt8(0xf8, 21); // fixed disk
  image.writeUInt16LE(layout.fatSectors, 22);
  image.writeUInt16LE(32, 24); // sectors per track, of a geometry that nobody uses
  image.writeUInt16LE(64, 26);
  image.writeUInt32LE(Math.floor(bytes / SECTOR), 32);
  image.writeUInt8(0x80, 36);
  image.writeUInt8(0x29, 38);
  image.writeUInt32LE(0x57a7a000, 39);
  image.write("NO NAME    FAT16   ", 43, "latin1");
  image.writeUInt16LE(0xaa55, 510);
}

function writeEntry(image: Buffer, at: number, name: string, cluster: number, bytes: number): void {
  const [stem, extension] = name.split(".");
  image.write(stem!.padEnd(8) + (extension ?? "").padEnd(3), at, "latin1");
  image.writeUInt8(ATTRIBUTE_ARCHIVE, at + 11);
  image.writeUInt16LE(0x5a21, at + 24); // 1 January 2025
  image.writeUInt16LE(cluster, at + 26);
  image.writeUInt32LE(bytes, at + 28);
}

function clusterOffset(layout: Layout, cluster: number): number {
  return layout.dataSector * SECTOR + (cluster - FIRST_CLUSTER) * CLUSTER_BYTES;
}

/** The files of an image that {@link makeFatImage} made, found by following the FAT as any system does. */
export function readFatImage(image: Buffer): Map<string, Buffer> {
  const layout = layoutFor(image.readUInt32LE(32) * SECTOR);
  const files = new Map<string, Buffer>();
  for (let entry = 0; entry < ROOT_ENTRIES; entry++) {
    const at = layout.rootSector * SECTOR + entry * ENTRY_BYTES;
    if (image[at] === 0) break;
    const stem = image.toString("latin1", at, at + 8).trimEnd();
    const extension = image.toString("latin1", at + 8, at + 11).trimEnd();
    const name = extension === "" ? stem : `${stem}.${extension}`;
    files.set(name, readFile(image, layout, image.readUInt16LE(at + 26), image.readUInt32LE(at + 28)));
  }
  return files;
}

function readFile(image: Buffer, layout: Layout, first: number, bytes: number): Buffer {
  const content = Buffer.alloc(bytes);
  let cluster = first;
  for (let at = 0; at < bytes; at += CLUSTER_BYTES) {
    const from = clusterOffset(layout, cluster);
    image.copy(content, at, from, from + Math.min(CLUSTER_BYTES, bytes - at));
    cluster = image.readUInt16LE(SECTOR + cluster * 2);
  }
  return content;
}

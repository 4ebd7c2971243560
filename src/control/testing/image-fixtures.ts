// Image files for tests of this layer, made without any tool: sparse or patterned raw files and qcow2 images.
// The qcow2 header is built by field from the specification, so that a test does not trust the code under
// test.

import { writeFileSync } from "node:fs";

const CLUSTER_BITS = 16;
const CLUSTER_BYTES = 1 << CLUSTER_BITS;

/** Writes a raw file of `bytes` bytes; `patterned` fills it with bytes that differ from sector to sector. */
export function makeRawImage(path: string, bytes: number, patterned: boolean): void {
  const content = Buffer.alloc(bytes);
  if (patterned) for (let at = 0; at < bytes; at++) content[at] = ((at >> 9) + at) % 251 || 1;
  writeFileSync(path, content);
}

/**
 * Writes a qcow2 version 3 image of `bytes` bytes, with a backing link if one is given. It holds no data, or
 * (with `patterned`, up to 512 MiB) data in every cluster.
 */
export function makeQcow2Image(
  path: string,
  bytes: number,
  options: {
    readonly backing?: { readonly file: string; readonly format?: string };
    readonly patterned?: boolean;
  },
): void {
  const dataClusters = options.patterned === true ? Math.ceil(bytes / CLUSTER_BYTES) : 0;
  const clusters = 4 + (dataClusters > 0 ? 1 + dataClusters : 0);
  const image = Buffer.alloc(clusters * CLUSTER_BYTES);
  const header = image.subarray(0, CLUSTER_BYTES);
  header.write("QFI\xfb", 0, "latin1");
  header.writeUInt32BE(3, 4);
  header.writeUInt32BE(CLUSTER_BITS, 20);
  header.writeBigUInt64BE(BigInt(bytes), 24);
  header.writeUInt32BE(Math.max(1, Math.ceil(bytes / (CLUSTER_BYTES * (CLUSTER_BYTES / 8)))), 36);
  header.writeBigUInt64BE(BigInt(3 * CLUSTER_BYTES), 40);
  header.writeBigUInt64BE(BigInt(CLUSTER_BYTES), 48);
  header.writeUInt32BE(1, 56);
  header.writeUInt32BE(4, 96);
  header.writeUInt32BE(104, 100);
  if (options.backing !== undefined) writeBacking(header, options.backing);
  image.writeBigUInt64BE(BigInt(2 * CLUSTER_BYTES), CLUSTER_BYTES);
  for (let cluster = 0; cluster < clusters; cluster++)
    image.writeUInt16BE(1, 2 * CLUSTER_BYTES + 2 * cluster);
  if (dataClusters > 0) writeData(image, dataClusters);
  writeFileSync(path, image);
}

/** The L2 table in cluster 4 and the data behind it; COPIED (bit 63) is set in every entry. */
function writeData(image: Buffer, dataClusters: number): void {
  const copied = 1n << 63n;
  image.writeBigUInt64BE(copied | BigInt(4 * CLUSTER_BYTES), 3 * CLUSTER_BYTES);
  for (let cluster = 0; cluster < dataClusters; cluster++) {
    const host = (5 + cluster) * CLUSTER_BYTES;
    image.writeBigUInt64BE(copied | BigInt(host), 4 * CLUSTER_BYTES + 8 * cluster);
    image.fill(cluster % 255 || 1, host, host + CLUSTER_BYTES);
  }
}

function writeBacking(header: Buffer, backing: { readonly file: string; readonly format?: string }): void {
  let at = 104;
  if (backing.format !== undefined) {
    const format = Buffer.from(backing.format);
    header.writeUInt32BE(0xe2792aca, at);
    header.writeUInt32BE(format.length, at + 4);
    format.copy(header, at + 8);
    at += 8 + Math.ceil(format.length / 8) * 8;
  }
  at += 8;
  const name = Buffer.from(backing.file);
  name.copy(header, at);
  header.writeBigUInt64BE(BigInt(at), 8);
  header.writeUInt32BE(name.length, 16);
}

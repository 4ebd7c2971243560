// Nodes over host files for the tests of this folder.

import { buffers } from "../../../base/buffer-pool.ts";
import { BlockNode } from "../../../block/node.ts";
import { FileDriver } from "../../../protocol/file/file-driver.ts";
import type { HostFile } from "../../../sys/host-file.ts";
import { MemoryFile } from "../../../sys/memory-file.ts";
import { type CreateOptions, createQcow2 } from "../create.ts";
import { openQcow2, type Qcow2Driver } from "../driver.ts";
import { hostImageFile } from "../image-file.ts";
import type { Qcow2Options } from "../options.ts";

let nodes = 0;

/** A leaf node over a host file: growing, or with a fixed length as a raw image has it. */
export function fileNode(file: HostFile, options: { readonly growable?: boolean } = {}): BlockNode {
  const node = new BlockNode({ name: `file${nodes++}`, filename: file.path }, undefined, false);
  const growable = options.growable ?? true;
  node.install(new FileDriver(file, { growable, driverName: growable ? "file" : "raw" }));
  return node;
}

export interface OpenImage {
  readonly node: BlockNode;
  readonly driver: Qcow2Driver;
  readonly host: HostFile;
}

/** Opens the qcow2 image in `host` as a node, for writing unless told otherwise. */
export async function openImage(
  host: HostFile,
  options: Partial<Qcow2Options> & { readonly backing?: BlockNode; readonly file?: BlockNode } = {},
): Promise<OpenImage> {
  const { backing, file = fileNode(host), readOnly = false, ...rest } = options;
  const node = new BlockNode({ name: `image${nodes++}`, filename: host.path }, file, readOnly);
  if (backing !== undefined) node.setBacking(backing);
  const driver = await openQcow2(node, { ...rest, readOnly });
  node.install(driver);
  return { node, driver, host };
}

/** A new image in memory. */
export async function newMemoryImage(options: CreateOptions, path = "memory.qcow2"): Promise<MemoryFile> {
  const host = new MemoryFile({ path });
  await createQcow2(hostImageFile(host), options);
  return host;
}

/** What the guest sees of a range. */
export async function readAll(node: BlockNode, offset = 0, bytes = node.size - offset): Promise<Buffer> {
  const buffer = Buffer.alloc(bytes, 0xa5);
  await node.read(offset, bytes, buffer, 0);
  return buffer;
}

export async function writeAll(node: BlockNode, offset: number, content: Buffer): Promise<void> {
  await node.write(offset, content.length, content, 0);
}

/** Fills the buffer pool with bytes that are not zero, so that a forgotten fill shows. */
export function soilBufferPool(): void {
  const taken: Buffer[] = [];
  for (let bytes = 512; bytes <= 4 * 1024 * 1024; bytes *= 2) {
    for (let i = 0; i < 3; i++) taken.push(buffers.take(bytes).fill(0xee));
  }
  for (const buffer of taken) buffers.give(buffer);
}

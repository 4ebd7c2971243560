// Nodes over host files for the tests of this folder: a leaf of its own, since peers of a layer do not import
// each other.

import { buffers } from "../../../base/buffer-pool.ts";
import type { Completion } from "../../../base/completion.ts";
import type { Driver, ImageDetails } from "../../../block/driver.ts";
import { WriteFlags } from "../../../block/driver.ts";
import { ExtentKind, type ExtentSink } from "../../../block/extent.ts";
import { BlockNode } from "../../../block/node.ts";
import type { HostFile } from "../../../sys/host-file.ts";
import { MemoryFile } from "../../../sys/memory-file.ts";
import { type CreateOptions, createQcow2 } from "../create.ts";
import { openQcow2, type Qcow2Driver } from "../driver.ts";
import { hostImageFile } from "../image-file.ts";
import type { Qcow2Options } from "../options.ts";

/** A host file as a leaf. Growing, or with a fixed length as a raw image has it. */
class Leaf implements Driver {
  readonly driverName: string;
  readonly growable: boolean;
  readonly supportsBacking = false;
  readonly clusterSize = 512;
  readonly #file: HostFile;

  constructor(file: HostFile, growable: boolean) {
    this.#file = file;
    this.growable = growable;
    this.driverName = growable ? "file" : "raw";
  }

  get size(): number {
    return this.#file.size;
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return this.#file.read(offset, bytes, buffer, at);
  }

  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion {
    return this.#file.write(offset, bytes, buffer, at);
  }

  writeVector(offset: number, parts: readonly Buffer[]): Completion {
    return this.#file.writeVector(offset, parts);
  }

  async copyFrom(source: Driver, sourceOffset: number, offset: number, bytes: number): Promise<boolean> {
    if (!(source instanceof Leaf) || this.#file.copyFrom === undefined) return false;
    return this.#file.copyFrom(source.#file, sourceOffset, offset, bytes);
  }

  writeZeroes(offset: number, bytes: number, flags: number): Completion {
    const unmap = (flags & WriteFlags.MAY_UNMAP) !== 0;
    return this.#file.writeZeroes(offset, bytes, {
      unmap,
      cheapOnly: (flags & WriteFlags.NO_FALLBACK) !== 0,
    });
  }

  discard(offset: number, bytes: number): Completion {
    return this.#file.discard(offset, bytes);
  }

  flush(): Completion {
    return this.#file.sync();
  }

  extents(offset: number, bytes: number, out: ExtentSink): void {
    for (let from = offset; from < offset + bytes; ) {
      const extent = this.#file.extentAt(from);
      const length = Math.min(extent.bytes, offset + bytes - from);
      if (!out.push(length, extent.data ? ExtentKind.DATA : ExtentKind.ZERO, from, false)) return;
      from += length;
    }
  }

  truncate(size: number): Completion {
    return this.#file.truncate(size);
  }

  async setWritable(): Promise<void> {}

  details(): ImageDetails {
    return {};
  }

  allocatedBytes(): number {
    return this.#file.allocatedBytes();
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}

let nodes = 0;

/** A leaf node over a host file. */
export function fileNode(file: HostFile, options: { readonly growable?: boolean } = {}): BlockNode {
  const node = new BlockNode({ name: `file${nodes++}`, filename: file.path }, undefined, false);
  node.install(new Leaf(file, options.growable ?? true));
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

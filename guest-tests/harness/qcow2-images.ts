// Images opened in this process, through the real host file, graph and drivers, and what QEMU makes of the
// same files.

import { onTestFinished } from "vitest";
import { silentLogger } from "../../src/base/logger.ts";
import { MiB } from "../../src/base/units.ts";
import { Graph } from "../../src/block/graph.ts";
import type { BlockNode } from "../../src/block/node.ts";
import type { NodeOptions } from "../../src/block/node-options.ts";
import type { NodeUse } from "../../src/block/node-use.ts";
import { type DriverFactory, NodeOpener } from "../../src/block/open.ts";
import { ALL_PERMISSIONS, Permission } from "../../src/block/permissions.ts";
import { type CreateOptions, createQcow2 } from "../../src/format/qcow2/create.ts";
import { openQcow2, type Qcow2Driver } from "../../src/format/qcow2/driver.ts";
import { hostImageFile } from "../../src/format/qcow2/image-file.ts";
import { RawDriver } from "../../src/format/raw/raw-driver.ts";
import { openFileDriver } from "../../src/protocol/file/file-driver.ts";
import { openHostFile } from "../../src/sys/open-host-file.ts";
import { run, runAnyhow } from "./tool.ts";

const FACTORIES: readonly DriverFactory[] = [
  {
    driverName: "file",
    leaf: true,
    filename: (options) => String(options["filename"]),
    open: (_host, options, { readOnly }) =>
      openFileDriver(String(options["filename"]), { writable: !readOnly }),
  },
  { driverName: "raw", leaf: false, open: async (host) => new RawDriver(host) },
  {
    driverName: "qcow2",
    leaf: false,
    open: (host, _options, { readOnly }) => openQcow2(host, { readOnly }),
  },
];

/** An image with its chain, opened in this process. */
export class OpenImage {
  readonly node: BlockNode;
  readonly #graph: Graph;
  readonly #use: NodeUse;
  #closed = false;

  constructor(graph: Graph, node: BlockNode) {
    this.node = node;
    this.#graph = graph;
    const needs = node.readOnly ? Permission.CONSISTENT_READ : Permission.CONSISTENT_READ | Permission.WRITE;
    this.#use = graph.use(node, { user: "test", role: "root", needs, shares: ALL_PERMISSIONS });
    onTestFinished(() => this.close());
  }

  get driver(): Qcow2Driver {
    return this.node.driver as Qcow2Driver;
  }

  /** All that a guest sees. */
  async content(): Promise<Buffer> {
    const content = Buffer.alloc(this.node.size, 0xee);
    await this.node.read(0, content.length, content, 0);
    return content;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#graph.release(this.#use);
  }
}

/** Opens an image and what its backing links name. */
export async function openImage(
  filename: string,
  access: "read" | "write",
  more: Partial<NodeOptions> = {},
): Promise<OpenImage> {
  const graph = new Graph();
  const opener = new NodeOpener(graph, FACTORIES, silentLogger);
  const node = await opener.open({
    driver: "qcow2",
    "read-only": access === "read",
    file: { driver: "file", filename },
    ...more,
  });
  return new OpenImage(graph, node);
}

/** Makes an image with our code. */
export async function createImage(filename: string, options: CreateOptions): Promise<void> {
  const file = openHostFile(filename, { writable: true, create: true });
  try {
    await createQcow2(hostImageFile(file), options);
  } finally {
    await file.close();
  }
}

/** Runs commands of qemu-io on an image, all in one process. */
export async function qemuIo(filename: string, ...commands: readonly string[]): Promise<void> {
  await run("qemu-io", "-f", "qcow2", ...commands.flatMap((command) => ["-c", command]), filename);
}

/** What QEMU reads from an image: all of it, or one of its snapshots. */
export async function qemuContent(filename: string, snapshot?: string): Promise<Buffer> {
  const raw = `${filename}.content`;
  const source = snapshot === undefined ? [] : ["-l", `snapshot.name=${snapshot}`];
  await run("qemu-img", "convert", ...source, "-f", "qcow2", "-O", "raw", filename, raw);
  const file = openHostFile(raw, { writable: false });
  try {
    const content = Buffer.alloc(file.size);
    await file.read(0, content.length, content, 0);
    return content;
  } finally {
    await file.close();
    await run("rm", raw);
  }
}

/** Result of `qemu-img check`, which prints what is wrong. */
export async function qemuCheck(filename: string): Promise<string> {
  const outcome = await runAnyhow("qemu-img", "check", "-f", "qcow2", filename);
  return outcome.code === 0 ? "clean" : `${outcome.stdout}${outcome.stderr}`.slice(0, 2000);
}

/** Where two contents differ first, in words that help; empty when they are alike. */
export function difference(ours: Buffer, theirs: Buffer): string {
  if (ours.length !== theirs.length) return `${ours.length} bytes instead of ${theirs.length}`;
  if (ours.equals(theirs)) return "";
  let at = 0;
  while (ours[at] === theirs[at]) at++;
  let count = 0;
  for (let i = at; i < ours.length; i++) if (ours[i] !== theirs[i]) count++;
  const kib = (at / 1024).toFixed(1);
  return `byte ${at} (${kib} KiB) is ${ours[at]} instead of ${theirs[at]}; ${count} bytes differ`;
}

/** Memory outside of the heap that a piece of work took at its peak is not known; this is what it kept. */
export function buffersInMiB(): number {
  const { arrayBuffers, external } = process.memoryUsage();
  return (arrayBuffers + external) / MiB;
}

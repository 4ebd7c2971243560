// Hostile chains against everything that looks at images: opening, reading, listing, checking, writing,
// repairing.
//
//   1. A case follows from its seed alone. It runs on files in memory: what the code asks to open is known.
//   2. Judged: errors are BlockErrors; only files are opened that a link in an opened image names; nothing
//      stays open; memory and time stay below their limits; what a repair calls clean a check calls clean.

import path from "node:path";
import { BlockError } from "../../base/errors.ts";
import { silentLogger } from "../../base/logger.ts";
import { Prng } from "../../base/prng.ts";
import { KiB, MiB } from "../../base/units.ts";
import { chainOf } from "../../block/chain.ts";
import { ExtentList } from "../../block/extent.ts";
import { Graph } from "../../block/graph.ts";
import type { BlockNode } from "../../block/node.ts";
import type { NodeOptions } from "../../block/node-options.ts";
import { type DriverFactory, NodeOpener } from "../../block/open.ts";
import { chainInfo, infoText } from "../../cli/image-info.ts";
import { checkImage } from "../../format/qcow2/check.ts";
import { hostImageFile } from "../../format/qcow2/image-file.ts";
import { repairImage } from "../../format/qcow2/repair.ts";
import { FileDriver } from "../../protocol/file/file-driver.ts";
import { reportChain } from "../chain-report.ts";
import { DRIVERS } from "../drivers.ts";
import { linkRules } from "../link-options.ts";
import { breakFurther, hostileImage, type LastingFile } from "./hostile-image.ts";

/** What one step may ask for in buffers, all in all: tables have bounds of 32 and 64 MiB. */
const STEP_BYTES_MAX = 512 * MiB;
/** Several times what the slowest steps take (files of 2**31 clusters): the machine may be busy. */
const STEP_MS_MAX = 30_000;
const NAMES = ["/images/top", "/images/middle", "/images/base"];

interface Touched {
  readonly name: string;
  readonly writable: boolean;
}

export class ImageFuzz {
  /** Cases in which the chain could be opened. */
  opened = 0;
  slowest = { seed: 0, step: "", ms: 0 };
  largest = { seed: 0, step: "", bytes: 0 };
  #seed = 0;
  #files = new Map<string, LastingFile>();
  #touched: Touched[] = [];

  /** One chain. @throws Error that says what went wrong */
  async run(seed: number, further: readonly number[] = []): Promise<void> {
    const prng = new Prng(seed);
    this.#seed = seed;
    this.#files = new Map();
    this.#touched = [];
    const count = prng.between(1, NAMES.length);
    for (const name of NAMES.slice(0, count)) {
      this.#files.set(name, await hostileImage(prng, name, NAMES));
    }
    for (const more of further) breakFurther(this.#files.get(NAMES[0]!)!, new Prng(more));
    const top = this.#files.get(NAMES[0]!)!;
    await this.#step("read the chain", () => this.#withChain(true, (node) => readThrough(node, prng)));
    await this.#step("check", () => checkImage(hostImageFile(top)));
    await this.#step("write", () => this.#withChain(false, (node) => writeAbout(node, prng)));
    await this.#step("repair", () => repairAndCheck(top));
    await this.#step("read again", () => this.#withChain(true, (node) => readThrough(node, prng)));
    this.#checkTouched();
  }

  /** Runs a part: it may fail with a BlockError, and not with anything else. */
  async #step(step: string, run: () => Promise<unknown>): Promise<void> {
    const meter = new BufferMeter();
    const startMs = performance.now();
    try {
      await run();
    } catch (error) {
      if (!(error instanceof BlockError)) throw new Error(`${step}: ${stackOf(error)}`, { cause: error });
    } finally {
      meter.stop();
    }
    const ms = performance.now() - startMs;
    if (ms > this.slowest.ms) this.slowest = { seed: this.#seed, step, ms };
    if (meter.bytes > this.largest.bytes) this.largest = { seed: this.#seed, step, bytes: meter.bytes };
    if (ms > STEP_MS_MAX) throw new Error(`${step}: took ${Math.round(ms)} ms`);
    if (meter.bytes > STEP_BYTES_MAX) throw new Error(`${step}: took buffers of ${meter.bytes} bytes`);
  }

  async #withChain(readOnly: boolean, use: (node: BlockNode) => Promise<void>): Promise<void> {
    const graph = new Graph(silentLogger);
    const opener = new NodeOpener(
      graph,
      [this.#fileFactory(), ...DRIVERS.slice(1)],
      silentLogger,
      linkRules(undefined, silentLogger),
    );
    const options: NodeOptions = {
      driver: "qcow2",
      "node-name": "top",
      "read-only": readOnly,
      file: { driver: "file", filename: NAMES[0]! },
    };
    let node: BlockNode;
    try {
      node = await opener.open(options);
    } catch (error) {
      if ([...graph.nodes].length > 0)
        throw new Error(`${[...graph.nodes].length} nodes stay after a failed opening`);
      throw error;
    }
    this.opened++;
    try {
      await use(node);
    } finally {
      try {
        await opener.closeUnused(node);
      } finally {
        if ([...graph.nodes].length > 0) this.#complain(`${[...graph.nodes].length} nodes are left open`);
      }
    }
  }

  #complain(what: string): never {
    throw new Error(what);
  }

  #fileFactory(): DriverFactory {
    return {
      driverName: "file",
      leaf: true,
      filename: (options) => String(options["filename"]),
      open: async (_host, options, context) => {
        const name = String(options["filename"]);
        const writable = !context.readOnly;
        this.#touched.push({ name, writable });
        const file = this.#files.get(path.resolve(name));
        if (file === undefined) throw new BlockError("ENOENT", `Could not open '${name}'`);
        await file.setWritable(writable);
        return new FileDriver(file);
      },
    };
  }

  /** The top was named by us; all others by the head of an image, and those for reading only. */
  #checkTouched(): void {
    const heads = [...this.#files.values()].map((file) => file.content(0, 64 * KiB).toString("latin1"));
    for (const { name, writable } of this.#touched) {
      // The folder itself (a link to "./"): a host refuses to open it.
      if (name === NAMES[0] || path.resolve(name) === path.dirname(NAMES[0]!)) continue;
      if (writable) throw new Error(`'${name}' was opened for writing`);
      const last = Buffer.from(path.basename(name)).toString("latin1");
      if (!name.includes("\ufffd") && !heads.some((head) => head.includes(last))) {
        throw new Error(`'${name}' was opened, which no image names`);
      }
    }
  }
}

async function readThrough(node: BlockNode, prng: Prng): Promise<void> {
  infoText(chainInfo(node)[0]!);
  JSON.stringify(chainInfo(node));
  for (const each of chainOf(node)) each.details();
  await reportChain(node);
  const buffer = Buffer.alloc(256 * KiB);
  for (let count = 6; count > 0; count--) {
    const bytes = Math.min(node.size, prng.between(1, buffer.length));
    const offset = prng.chance(0.3) ? node.size - bytes : Math.floor(prng.next() * (node.size - bytes + 1));
    await harmless(async () => node.read(offset, bytes, buffer, 0));
    await harmless(async () => node.extents(offset, bytes, new ExtentList(offset)));
  }
}

async function writeAbout(node: BlockNode, prng: Prng): Promise<void> {
  const buffer = Buffer.alloc(128 * KiB, 0x5a);
  for (let count = prng.between(3, 10); count > 0; count--) {
    const bytes = Math.min(node.size, prng.between(1, buffer.length));
    const near = Math.min(node.size - bytes, 4 * MiB);
    const offset = Math.floor(prng.next() * ((prng.chance(0.8) ? near : node.size - bytes) + 1));
    await harmless(async () => {
      switch (prng.below(8)) {
        case 0:
          return node.writeZeroes(offset, bytes, prng.below(4));
        case 1:
          return node.discard(offset, bytes);
        case 2:
          return node.flush();
        case 3:
          return node.truncate(Math.min(2 ** 45, node.size + prng.pick([0, 512, 65536, 2 ** 30])));
        case 4:
          return copyUp(node, offset, bytes);
        default:
          return node.write(offset, bytes, buffer, 0);
      }
    });
  }
}

async function copyUp(node: BlockNode, offset: number, bytes: number): Promise<void> {
  const cluster = node.driver.clusterSize;
  const start = Math.floor(offset / cluster) * cluster;
  const end = Math.min(node.size, Math.ceil((offset + bytes) / cluster) * cluster);
  if (node.backing !== undefined && end > start)
    await node.driver.copyUp?.(start, end - start, undefined, start === 0);
}

async function repairAndCheck(file: LastingFile): Promise<void> {
  await file.setWritable(true);
  const repaired = await repairImage(hostImageFile(file), "all");
  const checked = await checkImage(hostImageFile(file));
  const worse = checked.corruptions > repaired.corruptions || checked.leaks > repaired.leaks;
  if (worse) throw new Error(`a repair promised more than it did: ${JSON.stringify([repaired, checked])}`);
}

/** A part of a step that may fail on its own. */
async function harmless(run: () => unknown): Promise<void> {
  try {
    await run();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
  }
}

function stackOf(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}

/** Counts the bytes of all buffers that are made while it runs. */
class BufferMeter {
  bytes = 0;
  readonly #alloc = Buffer.alloc;
  readonly #allocUnsafe = Buffer.allocUnsafe;

  constructor() {
    Buffer.alloc = (bytes, ...rest) => {
      this.bytes += bytes;
      return this.#alloc(bytes, ...rest);
    };
    Buffer.allocUnsafe = (bytes) => {
      this.bytes += bytes;
      return this.#allocUnsafe(bytes);
    };
  }

  stop(): void {
    Buffer.alloc = this.#alloc;
    Buffer.allocUnsafe = this.#allocUnsafe;
  }
}

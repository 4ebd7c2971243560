// A chain of images under random requests, against an array as the model. Everything follows from the seed.
//
// Requests of one batch run at the same time; their byte ranges do not overlap, their clusters do. Host calls
// finish at once or late, and may fail: then each byte of the request is the old or the new one.

import { errorMessage } from "../../../base/errors.ts";
import { Prng } from "../../../base/prng.ts";
import { KiB, MiB } from "../../../base/units.ts";
import { WriteFlags } from "../../../block/driver.ts";
import type { BlockNode } from "../../../block/node.ts";
import { FaultFile, RandomDelays } from "../../../sys/fault-file.ts";
import type { HostFile } from "../../../sys/host-file.ts";
import { MemoryFile } from "../../../sys/memory-file.ts";
import { checkImage } from "../check.ts";
import type { CreateOptions } from "../create.ts";
import { hostImageFile } from "../image-file.ts";
import { fileNode, newMemoryImage, type OpenImage, openImage, readAll, soilBufferPool } from "./nodes.ts";

export interface ModelRunOptions {
  readonly seed: number;
  readonly batches?: number;
  /** Host calls of the image fail now and then. */
  readonly faults?: boolean;
  /** Start from this image with this content instead of a new chain. */
  readonly image?: { readonly host: MemoryFile; readonly content: Buffer };
}

export interface ModelRunResult {
  /** The image as it was closed. */
  readonly host: MemoryFile;
  readonly content: Buffer;
  readonly log: string[];
  readonly backing: BlockNode | undefined;
  readonly stopped: boolean;
}

const SIZE_MAX = 6 * MiB;

/**
 * Runs to the end and checks everything. @throws with the seed and the last requests when something is wrong
 */
export async function runModel(options: ModelRunOptions): Promise<ModelRunResult> {
  const run = new ModelRun(options);
  try {
    return await run.run();
  } catch (error) {
    const log = run.log.slice(-25).join("\n  ");
    throw new Error(`seed ${options.seed}: ${errorMessage(error)}\n  ${log}`, { cause: error });
  }
}

interface Op {
  readonly kind: "write" | "zero" | "discard" | "read" | "copyUp" | "flush";
  readonly offset: number;
  readonly bytes: number;
  readonly payload: Buffer;
  readonly flags: number;
}

export class ModelRun {
  readonly log: string[] = [];
  readonly #prng: Prng;
  readonly #options: ModelRunOptions;
  #model: Buffer = Buffer.alloc(0);
  #faults!: FaultFile;
  #host!: MemoryFile;
  #image!: OpenImage;
  #config!: CreateOptions;
  #layers: BlockNode[] = [];
  #failed = false;

  constructor(options: ModelRunOptions) {
    this.#options = options;
    this.#prng = new Prng(options.seed);
  }

  async run(): Promise<ModelRunResult> {
    soilBufferPool();
    await this.#open();
    const batches = this.#options.batches ?? this.#prng.between(5, 25);
    for (let i = 0; i < batches && this.#image.driver.image.stopped === undefined; i++) {
      await this.#batch();
      if (this.#prng.chance(0.15) || process.env["STRATA_MODEL_COMPARE"])
        await this.#compare("between batches");
      if (this.#prng.chance(0.05)) await this.#grow();
      if (this.#prng.chance(0.05)) await this.#reopen();
    }
    this.#faults.clearFaults();
    const stopped = this.#image.driver.image.stopped !== undefined;
    if (!stopped) await this.#finish();
    return {
      host: this.#host,
      content: this.#model,
      log: this.log,
      backing: this.#image.node.backing,
      stopped,
    };
  }

  // --- set-up ----------------------------------------------------------------------------------------------

  async #open(): Promise<void> {
    if (this.#options.image !== undefined) {
      this.#host = this.#options.image.host;
      this.#model = Buffer.from(this.#options.image.content);
      this.#config = { size: this.#model.length, version: this.#host.content(4, 4).readUInt32BE(0) as 2 | 3 };
      await this.#openTop(undefined);
      return;
    }
    const depth = this.#prng.below(3);
    let view: Buffer = Buffer.alloc(0);
    let below: BlockNode | undefined;
    for (let i = 0; i < depth; i++) {
      [below, view] = await this.#layer(below, view, i === 0);
      this.#layers.push(below);
    }
    this.#config = this.#randomConfig(below !== undefined);
    this.#host = await newMemoryImage(this.#config);
    this.#model = extended(view, this.#config.size);
    await this.#openTop(below);
  }

  async #openTop(backing: BlockNode | undefined): Promise<void> {
    const delays = this.#prng.chance(0.7)
      ? new RandomDelays(this.#prng, this.#prng.pick([0.1, 0.5, 1]))
      : undefined;
    this.#faults = new FaultFile(this.#host, delays);
    this.#image = await this.#openNode(this.#faults, backing);
    const { clusterSize } = this.#image.driver;
    this.log.push(`top ${JSON.stringify(this.#config)} cluster ${clusterSize} backing ${backing?.size}`);
  }

  #openNode(host: HostFile, backing: BlockNode | undefined): Promise<OpenImage> {
    return openImage(host, {
      l2CacheBytes: this.#prng.pick([0, 8 * MiB]),
      refcountCacheBytes: this.#prng.pick([0, 2 * MiB]),
      ...(backing === undefined ? {} : { backing }),
    });
  }

  /** A backing layer with some data, and what it shows. */
  async #layer(below: BlockNode | undefined, view: Buffer, mayBeRaw: boolean): Promise<[BlockNode, Buffer]> {
    const delays = this.#prng.chance(0.5) ? new RandomDelays(this.#prng, 0.5) : undefined;
    if (mayBeRaw && this.#prng.chance(0.4)) {
      const size = this.#size(64 * KiB);
      const file = new MemoryFile({ path: "base.raw", size });
      const content = Buffer.alloc(size);
      for (let i = 0; i < 6; i++) this.#scribble(content, (at, part) => file.write(at, part.length, part, 0));
      const node = fileNode(new FaultFile(file, delays), { growable: false });
      this.log.push(`layer raw ${size}`);
      return [node, content];
    }
    const config = this.#randomConfig(below !== undefined);
    const host = await newMemoryImage(config);
    const content = extended(view, config.size);
    const image = await this.#openNode(host, below);
    for (let i = 0; i < 6; i++) {
      const writes: Promise<void>[] = [];
      this.#scribble(content, (at, part) => {
        const zero = this.#prng.chance(0.3);
        if (zero) part.fill(0);
        const done = zero
          ? image.node.writeZeroes(at, part.length, 0)
          : image.node.write(at, part.length, part, 0);
        if (done !== undefined) writes.push(done);
        if (zero) content.fill(0, at, at + part.length);
      });
      await Promise.all(writes);
    }
    await image.driver.setWritable(false);
    this.log.push(`layer ${JSON.stringify(config)}`);
    const again = await openImage(new FaultFile(host, delays), {
      readOnly: true,
      ...(below === undefined ? {} : { backing: below }),
    });
    return [again.node, content];
  }

  #scribble(content: Buffer, write: (at: number, part: Buffer) => void): void {
    if (content.length === 0) return;
    const offset = this.#prng.below(content.length);
    const bytes = Math.min(content.length - offset, 1 + this.#prng.below(300 * KiB));
    const part = this.#payload(bytes);
    part.copy(content, offset);
    write(offset, part);
  }

  #payload(bytes: number): Buffer {
    const buffer = Buffer.alloc(bytes, this.#prng.between(1, 255));
    // Marks that tell pieces of one payload apart.
    for (let at = this.#prng.below(64); at < bytes; at += 257) buffer[at] = this.#prng.below(256);
    return buffer;
  }

  #randomConfig(backed: boolean): CreateOptions {
    const version = this.#prng.chance(0.25) ? 2 : 3;
    const clusterBits = this.#prng.pick([9, 9, 10, 11, 12, 12, 13, 14, 15, 16, 16, 17, 19, 21]);
    const clusterSize = 2 ** clusterBits;
    const extendedL2 = version === 3 && clusterBits >= 14 && this.#prng.chance(0.6);
    return {
      size: this.#size(clusterSize),
      clusterSize,
      version,
      extendedL2,
      ...(version === 3 ? { refcountBits: 2 ** this.#prng.below(7) } : {}),
      ...(backed ? { backingFile: "base.img", backingFormat: "qcow2" } : {}),
    };
  }

  /** Sizes that are multiples of clusters, and others. A multiple of 512, as images are created. */
  #size(clusterSize: number): number {
    const clusters = this.#prng.between(1, Math.max(1, Math.min(300, Math.floor(SIZE_MAX / clusterSize))));
    const odd = this.#prng.chance(0.5) ? 512 * this.#prng.below(Math.max(1, clusterSize / 512)) : 0;
    return clusters * clusterSize + odd;
  }

  // --- requests --------------------------------------------------------------------------------------------

  async #batch(): Promise<void> {
    const count = this.#prng.between(1, 8);
    const ops: Op[] = [];
    for (let i = 0; i < count; i++) {
      const op = this.#randomOp();
      if (!ops.some((other) => overlaps(op, other))) ops.push(op);
    }
    if (this.#options.faults === true && this.#prng.chance(0.4)) this.#injectFault();
    const before = Buffer.from(this.#model);
    const results = await Promise.allSettled(ops.map((op) => this.#start(op, before)));
    this.#faults.clearFaults();
    for (const [index, result] of results.entries()) {
      const op = ops[index]!;
      if (result.status === "fulfilled") this.#apply(op);
      else await this.#applyFailed(op, result.reason);
    }
  }

  #injectFault(): void {
    const kind = this.#prng.pick(["read", "write", "zeroes", "discard", "sync", "any"] as const);
    const nth = this.#prng.between(1, 12);
    const times = this.#prng.pick([1, 1, 3, 1000]);
    this.#faults.fail({ kind, errno: this.#prng.pick(["EIO", "ENOSPC"] as const), nth, times });
    this.log.push(`fault ${kind} ${nth} ${times}`);
  }

  #randomOp(): Op {
    const kind = this.#prng.pick([
      "write",
      "write",
      "write",
      "zero",
      "discard",
      "read",
      "copyUp",
      "flush",
    ] as const);
    const { clusterSize, size } = this.#image.driver;
    let offset = this.#prng.below(size);
    let bytes = 1 + this.#prng.below(Math.min(size - offset, this.#prng.pick([700, 5000, 70_000, 2 * MiB])));
    if (this.#prng.chance(0.5)) offset -= offset % this.#prng.pick([512, clusterSize]);
    if (this.#prng.chance(0.3)) bytes = Math.max(1, bytes - (bytes % clusterSize));
    if (kind === "copyUp") {
      offset -= offset % clusterSize;
      bytes = Math.min(size - offset, Math.ceil(bytes / clusterSize) * clusterSize);
    }
    bytes = Math.min(bytes, size - offset);
    const flags = this.#prng.chance(0.5) ? WriteFlags.MAY_UNMAP : 0;
    return { kind, offset, bytes, flags, payload: kind === "write" ? this.#payload(bytes) : EMPTY };
  }

  async #start(op: Op, before: Buffer): Promise<void> {
    const { node } = this.#image;
    const { kind, offset, bytes, payload, flags } = op;
    this.log.push(`${kind} ${offset} ${bytes} ${flags}`);
    switch (kind) {
      case "write":
        return node.write(offset, bytes, payload, 0);
      case "zero":
        return node.writeZeroes(offset, bytes, flags);
      case "discard":
        return node.discard(offset, bytes);
      case "flush":
        return node.flush();
      case "copyUp":
        await node.copyUp(offset, bytes, this.#prng.pick([undefined, ...this.#layers.slice(0, -1)]));
        return;
      default: {
        const seen = await readAll(node, offset, bytes);
        const at = firstDifference(seen, before.subarray(offset, offset + bytes));
        if (at >= 0) throw new WrongData(`read at ${offset} sees other data at ${offset + at}`);
      }
    }
  }

  #apply(op: Op): void {
    const [from, to] = this.#changed(op);
    if (op.kind === "write") op.payload.copy(this.#model, op.offset);
    else if (to > from) this.#model.fill(0, from, to);
  }

  /** The bytes that a request makes zero. */
  #changed({ kind, offset, bytes }: Op): [number, number] {
    const { clusterSize, size } = this.#image.driver;
    if (kind === "zero" || kind === "write") return [offset, offset + bytes];
    if (kind !== "discard") return [0, 0];
    const { header, mayHaveBacking } = this.#image.driver.image;
    if (header.version < 3 && mayHaveBacking) return [0, 0];
    const from = Math.ceil(offset / clusterSize) * clusterSize;
    const end = offset + bytes;
    return [from, end === size ? end : Math.max(from, end - (end % clusterSize))];
  }

  async #applyFailed(op: Op, reason: unknown): Promise<void> {
    if (reason instanceof WrongData || !errorMessage(reason).includes("Injected")) {
      const stopped = this.#image.driver.image.stopped !== undefined;
      if (!stopped || !errorMessage(reason).includes("takes no more writes")) throw reason;
    }
    this.log.push(`failed: ${op.kind} ${op.offset}: ${errorMessage(reason)}`);
    this.#failed = true;
    const [from, to] = this.#changed(op);
    if (to <= from || this.#image.driver.image.stopped !== undefined) return;
    const seen = await readAll(this.#image.node, from, to - from);
    const wanted = op.kind === "write" ? op.payload : Buffer.alloc(to - from);
    for (let i = 0; i < seen.length; i++) {
      if (seen[i] !== wanted[i] && seen[i] !== this.#model[from + i]) {
        throw new WrongData(`failed ${op.kind} at ${op.offset}: byte ${from + i} is neither old nor new`);
      }
    }
    seen.copy(this.#model, from);
  }

  async #grow(): Promise<void> {
    const size = Math.min(2 * SIZE_MAX, this.#image.driver.size + 512 * this.#prng.below(2000));
    this.log.push(`grow ${size}`);
    await this.#image.node.truncate(size);
    this.#model = extended(this.#model, size);
    await this.#compare("after growing");
  }

  async #reopen(): Promise<void> {
    this.log.push("reopen");
    await this.#image.driver.close();
    await this.#check();
    await this.#openTop(this.#image.node.backing);
  }

  // --- judgement -------------------------------------------------------------------------------------------

  async #compare(when: string): Promise<void> {
    const seen = await readAll(this.#image.node);
    const at = firstDifference(seen, this.#model);
    if (at >= 0) {
      throw new WrongData(`${when}: byte ${at} is ${seen[at]}, not ${this.#model[at]}`);
    }
  }

  async #check(): Promise<void> {
    const found: string[] = [];
    const result = await checkImage(hostImageFile(this.#host), { tell: (line) => found.push(line) });
    const leaks = this.#failed ? 0 : result.leaks;
    if (result.corruptions + result.checkErrors + leaks > 0) {
      throw new Error(`the check finds ${JSON.stringify(result)}: ${found.slice(0, 5).join("; ")}`);
    }
  }

  async #finish(): Promise<void> {
    await this.#compare("at the end");
    if (this.#layers.length > 0 && this.#prng.chance(0.7)) await this.#streamAll();
    const { driver, node } = this.#image;
    await driver.close();
    const { held, waiting } = driver.image.locks;
    if (held + waiting > 0) throw new Error(`${held} locks are held and ${waiting} waited for at the end`);
    await this.#check();
    const backing = node.backing;
    this.#image = await openImage(this.#host, {
      readOnly: true,
      ...(backing === undefined ? {} : { backing }),
    });
    await this.#compare("opened again");
  }

  /** Copies up everything above a base and makes that the backing image. */
  async #streamAll(): Promise<void> {
    const { node, driver } = this.#image;
    const base = this.#prng.pick([undefined, ...this.#layers.slice(0, -1)]);
    this.log.push(`stream onto ${base?.size}`);
    const chunk = Math.ceil((512 * KiB) / driver.clusterSize) * driver.clusterSize;
    for (let at = 0; at < node.size; at += chunk) {
      await node.copyUp(at, Math.min(chunk, node.size - at), base);
    }
    await driver.changeBackingLink(base === undefined ? undefined : "base.img", base && "qcow2");
    node.setBacking(base);
    await this.#compare("after streaming");
  }
}

class WrongData extends Error {}

const EMPTY = Buffer.alloc(0);

function extended(content: Buffer, size: number): Buffer {
  const longer = Buffer.alloc(size);
  content.copy(longer);
  return longer;
}

function overlaps(a: Op, b: Op): boolean {
  const quiet = (op: Op) => op.kind === "flush" || op.kind === "copyUp";
  if (quiet(a) || quiet(b)) return false;
  return a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
}

/** Index of the first byte that differs, -1 when none does. */
export function firstDifference(a: Buffer, b: Buffer): number {
  if (a.equals(b)) return -1;
  for (let i = 0; i < Math.max(a.length, b.length); i++) if (a[i] !== b[i]) return i;
  return -1;
}

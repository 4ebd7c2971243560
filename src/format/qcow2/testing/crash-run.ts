// A recording host file, and what a crash may leave of it.
//
//   1. What was written before the last sync is there. Of what came later, each 512-byte sector of each write
//      may be there or not, in any combination.
//   2. Of every such state: the image opens, a check finds leaks at the most, and nothing that a flush
//      acknowledged is lost. What was written after that flush is there, or what was there before it.
//   3. Opened for writing, the leaks are repaired.

import { errorMessage } from "../../../base/errors.ts";
import { Prng } from "../../../base/prng.ts";
import { KiB } from "../../../base/units.ts";
import { WriteFlags } from "../../../block/driver.ts";
import type { BlockNode } from "../../../block/node.ts";
import { FaultFile, RandomDelays, type RecordedWrite } from "../../../sys/fault-file.ts";
import { MemoryFile } from "../../../sys/memory-file.ts";
import { checkImage } from "../check.ts";
import type { CreateOptions } from "../create.ts";
import { hostImageFile } from "../image-file.ts";
import { newMemoryImage, type OpenImage, openImage, readAll, soilBufferPool } from "./nodes.ts";

const SECTOR = 512;
const SIZE_MAX = 384 * KiB;

export interface CrashRunOptions {
  readonly seed: number;
  readonly config?: CreateOptions;
  /** Crashes that are looked at. */
  readonly crashes?: number;
}

interface Change {
  readonly offset: number;
  readonly bytes: number;
  /** Undefined: zeros. */
  readonly payload: Buffer | undefined;
  /** Calls recorded before it began. */
  readonly start: number;
}

interface Promised {
  readonly content: Buffer;
  /** Calls recorded when the flush was done. */
  readonly at: number;
  readonly changesBefore: number;
}

export async function runCrashes(options: CrashRunOptions): Promise<void> {
  const run = new CrashRun(options);
  try {
    await run.run();
  } catch (error) {
    throw new Error(`seed ${options.seed}: ${errorMessage(error)}\n  ${run.log.join("\n  ")}`, {
      cause: error,
    });
  }
}

class CrashRun {
  readonly log: string[] = [];
  readonly #options: CrashRunOptions;
  readonly #prng: Prng;
  readonly #changes: Change[] = [];
  readonly #promised: Promised[] = [];
  #start!: MemoryFile;
  #file!: FaultFile;
  #image!: OpenImage;
  #model!: Buffer;
  #base: BlockNode | undefined;

  constructor(options: CrashRunOptions) {
    this.#options = options;
    this.#prng = new Prng(options.seed);
  }

  async run(): Promise<void> {
    soilBufferPool();
    await this.#open();
    const batches = this.#prng.between(4, 12);
    for (let i = 0; i < batches; i++) await this.#batch();
    if (this.#base !== undefined && this.#prng.chance(0.6)) await this.#stream();
    if (this.#prng.chance(0.5)) await this.#image.driver.close();
    await this.#judge();
  }

  async #open(): Promise<void> {
    const config = this.#options.config ?? this.#config();
    this.log.push(JSON.stringify(config));
    this.#model = Buffer.alloc(config.size);
    if (config.backingFile !== undefined) await this.#openBase(config.size);
    const host = await newMemoryImage(config);
    this.#start = MemoryFile.of(host.content());
    const delays = this.#prng.chance(0.6) ? new RandomDelays(this.#prng, 0.5) : undefined;
    this.#file = new FaultFile(host, delays);
    this.#file.recording = true;
    this.#image = await openImage(this.#file, {
      l2CacheBytes: 0,
      refcountCacheBytes: 0,
      ...(this.#base === undefined ? {} : { backing: this.#base }),
    });
    this.#promised.push({ content: Buffer.from(this.#model), at: 0, changesBefore: 0 });
  }

  async #openBase(size: number): Promise<void> {
    const base = await newMemoryImage({ size: Math.max(512, size - 512 * this.#prng.below(20)) });
    const { node } = await openImage(base);
    const content = Buffer.alloc(Math.min(size, node.size), 0xba);
    await node.write(0, content.length, content, 0);
    content.copy(this.#model);
    await node.setWritable(false);
    this.#base = node;
  }

  #config(): CreateOptions {
    const version = this.#prng.chance(0.25) ? 2 : 3;
    const clusterBits = this.#prng.pick([9, 9, 10, 11, 12, 14, 16]);
    const clusterSize = 2 ** clusterBits;
    return {
      size: Math.min(SIZE_MAX, clusterSize * this.#prng.between(2, 300)),
      clusterSize,
      version,
      extendedL2: version === 3 && clusterBits >= 14 && this.#prng.chance(0.6),
      ...(version === 3 ? { refcountBits: 2 ** this.#prng.below(7) } : {}),
      ...(this.#prng.chance(0.6) ? { backingFile: "base.img", backingFormat: "qcow2" } : {}),
    };
  }

  // --- the requests ----------------------------------------------------------------------------------------

  async #batch(): Promise<void> {
    const started: Promise<unknown>[] = [];
    const changes: Change[] = [];
    for (let i = this.#prng.between(1, 6); i > 0; i--) {
      const change = this.#randomChange();
      if (changes.some((other) => overlaps(change, other))) continue;
      changes.push(change);
      this.#changes.push(change);
      started.push(this.#begin(change));
      if (this.#prng.chance(0.2)) started.push(this.#image.node.flush() ?? Promise.resolve());
    }
    await Promise.all(started);
    for (const { offset, bytes, payload } of changes) {
      if (payload === undefined) this.#model.fill(0, offset, offset + bytes);
      else payload.copy(this.#model, offset);
    }
    if (this.#prng.chance(0.5)) await this.#flush();
  }

  async #begin({ offset, bytes, payload }: Change): Promise<void> {
    const { node } = this.#image;
    if (payload !== undefined) return node.write(offset, bytes, payload, 0);
    const flags = this.#prng.chance(0.7) ? WriteFlags.MAY_UNMAP : 0;
    return node.writeZeroes(offset, bytes, flags);
  }

  #randomChange(): Change {
    const { size, clusterSize } = this.#image.driver;
    let offset = this.#prng.below(size);
    if (this.#prng.chance(0.5)) offset -= offset % clusterSize;
    const bytes = 1 + this.#prng.below(Math.min(size - offset, this.#prng.pick([600, 9000, 80_000])));
    const payload = this.#prng.chance(0.65) ? Buffer.alloc(bytes, this.#prng.between(1, 255)) : undefined;
    this.log.push(`${payload === undefined ? "zero" : "write"} ${offset} ${bytes}`);
    return { offset, bytes, payload, start: this.#file.recorded.length };
  }

  async #flush(): Promise<void> {
    const changesBefore = this.#changes.length;
    await this.#image.node.flush();
    this.log.push(`flush done at ${this.#file.recorded.length}`);
    const content = Buffer.from(this.#model);
    this.#promised.push({ content, at: this.#file.recorded.length, changesBefore });
  }

  async #stream(): Promise<void> {
    const { node, driver } = this.#image;
    const chunk = driver.clusterSize * 8;
    for (let at = 0; at < node.size; at += chunk) {
      await node.copyUp(at, Math.min(chunk, node.size - at), undefined);
    }
    await driver.changeBackingLink(undefined, undefined);
    this.log.push(`link changed at ${this.#file.recorded.length}`);
    node.setBacking(undefined);
  }

  // --- the crashes -----------------------------------------------------------------------------------------

  async #judge(): Promise<void> {
    const total = this.#file.recorded.length;
    const crashes = this.#options.crashes ?? 25;
    for (let i = 0; i < crashes; i++) {
      const at = i === 0 ? total : this.#crashPoint(total);
      for (const share of [0, this.#prng.next(), 1]) await this.#judgeState(at, share);
    }
  }

  /** Anywhere, or right before a sync, when most is at stake. */
  #crashPoint(total: number): number {
    const at = this.#prng.between(0, total);
    if (this.#prng.chance(0.4)) return at;
    const sync = this.#file.recorded.findIndex(({ kind }, index) => index >= at && kind === "sync");
    return sync < 0 ? at : sync;
  }

  async #judgeState(at: number, share: number): Promise<void> {
    const where = `crash at call ${at}, ${Math.round(share * 100)}% of what was not synced`;
    const state = this.#stateAt(at, share);
    const found: string[] = [];
    const result = await checkImage(hostImageFile(state), { tell: (line) => found.push(line) });
    if (result.corruptions + result.checkErrors > 0) throw new Error(`${where}: ${found.join("; ")}`);
    const probe = await openImage(state, { readOnly: true });
    const backing = probe.node.details().backingFile === undefined ? undefined : this.#base;
    const image = await openImage(state, backing === undefined ? {} : { backing });
    this.#compare(await readAll(image.node), at, where);
    await image.driver.close();
    const after = await checkImage(hostImageFile(state));
    if (after.leaks + after.corruptions > 0)
      throw new Error(`${where}: ${after.leaks} leaks after opening again`);
  }

  /** The file with all that was synced before call `at`, and a share of the sectors written since. */
  #stateAt(at: number, share: number): MemoryFile {
    const state = MemoryFile.of(this.#start.content());
    const calls = this.#file.recorded.slice(0, at);
    const synced = calls.findLastIndex(({ kind }) => kind === "sync");
    for (const [index, call] of calls.entries()) this.#apply(state, call, index <= synced ? 1 : share);
    return state;
  }

  #apply(state: MemoryFile, { kind, offset, bytes, content }: RecordedWrite, share: number): void {
    if (kind === "truncate" && this.#prng.chance(share)) state.truncate(offset);
    if (kind === "sync" || kind === "truncate") return;
    for (let from = offset; from < offset + bytes; ) {
      const to = Math.min(offset + bytes, from - (from % SECTOR) + SECTOR);
      if (share === 1 || this.#prng.next() < share) {
        if (content !== undefined) state.write(from, to - from, content, from - offset);
        else state.writeZeroes(from, to - from, { unmap: true, cheapOnly: false });
      }
      from = to;
    }
  }

  #compare(seen: Buffer, at: number, where: string): void {
    const promised = this.#promised.findLast((flush) => flush.at <= at)!;
    if (seen.equals(promised.content)) return;
    const since = this.#changes.slice(promised.changesBefore).filter(({ start }) => start <= at);
    for (let i = 0; i < seen.length; i++) {
      if (seen[i] === promised.content[i]) continue;
      if (!since.some((change) => valueAt(change, i) === seen[i])) {
        throw new Error(`${where}: byte ${i} is ${seen[i]}; ${promised.content[i]} was flushed`);
      }
    }
  }
}

function valueAt({ offset, bytes, payload }: Change, index: number): number | undefined {
  if (index < offset || index >= offset + bytes) return undefined;
  return payload === undefined ? 0 : payload[index - offset];
}

function overlaps(a: Change, b: Change): boolean {
  return a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
}

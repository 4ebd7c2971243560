// One life of a host: the images are opened, guests and an operator work, and at the end it is over, cleanly
// or not. Everything that the host is asked to do is in its log afterwards, together with what a power cut at
// any place of it must leave:
//
//   history    what the disk may show
//   tops       which image the disk is opened by
//   links      which backing links an image may have: the old one, and while a merge runs the new one
//   merges     what ran then, so that it can be done again

import { BlockError } from "../../../base/errors.ts";
import type { Prng } from "../../../base/prng.ts";
import { alignUp } from "../../../base/units.ts";
import { chainOf } from "../../../block/chain.ts";
import { Graph } from "../../../block/graph.ts";
import type { BlockNode } from "../../../block/node.ts";
import type { NodeOptions } from "../../../block/node-options.ts";
import type { NodeUse } from "../../../block/node-use.ts";
import { ALL_PERMISSIONS, Permission } from "../../../block/permissions.ts";
import { Scheduler } from "../../../block/testing/scheduler.ts";
import type { Daemon } from "../../../control/daemon.ts";
import { planOnto, takeSnapshots } from "../../../control/snapshot.ts";
import { NbdExport } from "../../../export/nbd-export.ts";
import { createQcow2 } from "../../../format/qcow2/create.ts";
import { hostImageFile } from "../../../format/qcow2/image-file.ts";
import type { Job } from "../../job.ts";
import { JobManager } from "../../manager.ts";
import { StreamJob } from "../../stream.ts";
import { breakHost, breakNode, type Rule } from "./broken-rules.ts";
import { DiskHistory } from "./disk-history.ts";
import { type Operation, type Plan, payloadOf } from "./plan.ts";
import type { FileContent } from "./sectors.ts";
import { SimulatedHost } from "./simulated-host.ts";

/** Something that holds from a place in the log on, up to the next of its kind. */
export interface Since<T> {
  readonly at: number;
  readonly is: T;
}

export interface Merge {
  readonly top: string;
  /** Undefined: everything is merged. */
  readonly base: string | undefined;
}

export interface LifeOptions {
  readonly plan: Plan;
  readonly operations: readonly Operation[];
  readonly files: ReadonlyMap<string, FileContent>;
  readonly top: string;
  readonly content: Buffer;
  /** Decides what waits for what. */
  readonly prng: Prng;
  /** Names of overlays that are made begin with it. */
  readonly name: string;
  /** A rule that is broken on purpose. */
  readonly broken?: Rule | undefined;
}

export const NO_LINK = "";

/** Of every merge, but for its id. */
export const MERGE_SETTINGS = {
  autoFinalize: true,
  autoDismiss: true,
  speed: 0,
  onError: "report",
} as const;

export class Life {
  readonly start: ReadonlyMap<string, FileContent>;
  readonly host: SimulatedHost;
  readonly history: DiskHistory;
  readonly tops: Since<string>[];
  readonly links = new Map<string, Since<readonly string[]>[]>();
  readonly merges: Since<Merge | undefined>[] = [];
  readonly #options: LifeOptions;
  readonly #scheduler: Scheduler;
  readonly #graph = new Graph();
  readonly #manager = new JobManager(() => {});
  readonly #running = new Set<Promise<void>>();
  readonly #jobs = new Set<Job>();
  #disk!: NbdExport;
  /** Keeps the disk open while its export is not there. */
  #keeper!: NodeUse;
  #takingSnapshot = false;
  #made = 0;

  constructor(options: LifeOptions) {
    const { files, plan, prng } = options;
    this.#options = options;
    this.start = new Map(files);
    this.host = new SimulatedHost(files);
    this.host.copies = { ...plan.copies, chance: (probability) => prng.chance(probability) };
    this.history = new DiskHistory(options.content);
    this.tops = [{ at: 0, is: options.top }];
    this.#scheduler = new Scheduler(prng, { waitChance: plan.waitChance });
    const step = (kind: string) => this.#scheduler.step(kind);
    this.host.delays = { before: step, after: step };
  }

  get now(): number {
    return this.host.log.length;
  }

  /** Lives it, to its end. @throws Error when anything fails, or never ends */
  async live(): Promise<void> {
    const { broken, operations } = this.#options;
    if (broken !== undefined)
      breakHost(broken, this.host, { graph: this.#graph, scheduler: this.#scheduler });
    await this.#scheduler.until(this.#open());
    for (const operation of operations) {
      const alone = isAlone(operation);
      if (alone) await this.#settle();
      this.#begin(this.#perform(operation));
      if (alone) await this.#settle();
      await this.#scheduler.run(operation.pause);
    }
  }

  async #open(): Promise<void> {
    const node = await this.#openNode(this.#options.top, {});
    for (const each of chainOf(node)) {
      this.links.set(each.filename, [{ at: 0, is: [linkOf(each)] }]);
      this.#broken(each);
    }
    this.#keep(node);
    this.#disk = this.#newExport(node);
  }

  #openNode(path: string, more: Partial<NodeOptions>): Promise<BlockNode> {
    const { cacheBytes } = this.#options.plan;
    const caches =
      cacheBytes === undefined ? {} : { "l2-cache-size": cacheBytes, "refcount-cache-size": cacheBytes };
    const options = { driver: path.endsWith(".raw") ? "raw" : "qcow2", ...more };
    const file = { driver: "file", filename: path };
    return this.host.opener(this.#graph).open({ ...options, ...caches, file });
  }

  #broken(node: BlockNode): void {
    const { broken } = this.#options;
    if (broken !== undefined) breakNode(broken, node);
  }

  #keep(node: BlockNode): void {
    this.#keeper = this.#graph.use(node, {
      user: "the operator",
      role: "keeper",
      needs: Permission.CONSISTENT_READ,
      shares: ALL_PERMISSIONS,
    });
  }

  #newExport(node: BlockNode): NbdExport {
    return new NbdExport(this.#graph, node, { writable: true, allocationDepth: false });
  }

  #begin(work: Promise<void>): void {
    const running: Promise<void> = work.finally(() => this.#running.delete(running));
    // Who waits for all of them sees the error; and somebody always does.
    running.catch(() => undefined);
    this.#running.add(running);
  }

  async #settle(): Promise<void> {
    await this.#scheduler.until(Promise.all(this.#running));
  }

  async #perform(operation: Operation): Promise<void> {
    switch (operation.kind) {
      case "write":
      case "zero":
      case "discard":
        return this.#change(operation);
      case "flush":
        return this.#flush();
      case "snapshot":
        return this.#snapshot(operation);
      case "stream":
        return this.#stream(operation);
      case "cancel":
        for (const job of this.#jobs) job.cancel();
        return;
      case "grow":
        return this.#grow(operation.bytes);
      case "close":
        return this.#close();
    }
  }

  // --- guests ------------------------------------------------------------------------------------

  async #change(operation: Extract<Operation, { kind: "write" | "zero" | "discard" }>): Promise<void> {
    const { history } = this;
    const disk = this.#disk;
    const offset = operation.offset % disk.size;
    const bytes = Math.min(operation.bytes, disk.size - offset);
    const fua = operation.fua && this.#options.broken?.ignoresFua !== true;
    const payload =
      operation.kind === "write" ? payloadOf(operation.fill, operation.mark, offset, bytes) : undefined;
    const isDiscard = operation.kind === "discard";
    const covered = history.covered();
    const change = history.begin({ offset, bytes, payload, isDiscard }, this.now);
    if (operation.kind === "write") await disk.write(offset, bytes, Buffer.from(payload!), 0, fua);
    else if (isDiscard) await disk.trim(offset, bytes, fua);
    else await disk.writeZeroes(offset, bytes, { fua, mayUnmap: operation.mayUnmap, fastOnly: false });
    history.settle(change);
    if (operation.fua) history.keep([...covered, change], this.now);
  }

  async #flush(): Promise<void> {
    const covered = this.history.covered();
    await this.#disk.flush();
    this.history.keep(covered, this.now);
  }

  // --- the operator ------------------------------------------------------------------------------

  async #snapshot(operation: Extract<Operation, { kind: "snapshot" }>): Promise<void> {
    if (this.#takingSnapshot) return;
    this.#takingSnapshot = true;
    await this.#takeSnapshot(operation).finally(() => {
      this.#takingSnapshot = false;
    });
  }

  async #takeSnapshot(operation: Extract<Operation, { kind: "snapshot" }>): Promise<void> {
    const node = this.#disk.node;
    const { plan, name } = this.#options;
    const path = `${plan.folder}/${name}${this.#made++}.qcow2`;
    const size = alignUp(node.size, 512);
    const longName = Buffer.byteLength(path) > 300;
    const { extendedL2, refcountBits } = operation;
    const clusterSize = longName ? Math.max(operation.clusterSize, 1024) : operation.clusterSize;
    const link = { backingFile: node.filename, backingFormat: node.driverName };
    const file = hostImageFile(this.host.create(path));
    await createQcow2(file, { size, clusterSize, extendedL2, refcountBits, ...link });
    if (operation.clusters !== undefined) {
      await file.truncate(operation.clusters * clusterSize);
      await file.flush();
    }
    const overlay = await this.#openNode(path, { backing: null });
    this.#broken(overlay);
    const before = this.tops.at(-1)!.is;
    const length = size === node.size ? undefined : this.history.grow(size, this.now);
    this.links.set(path, [{ at: this.now, is: [node.filename] }]);
    try {
      this.tops.push({ at: this.now, is: path });
      if (this.#options.broken?.snapshotWithoutFlush === true) withoutFlush(node);
      // Who takes a snapshot has the graph for himself.
      await takeSnapshots({ graph: this.#graph } as Daemon, [planOnto(node, overlay)]);
      if (length !== undefined) this.history.keepLength(length, this.now);
    } catch (error) {
      if (!(error instanceof BlockError) || !REFUSALS.has(error.code)) throw error;
      this.tops.push({ at: this.now, is: before });
      await this.host.opener(this.#graph).closeUnused(overlay);
    }
  }

  async #stream(operation: Extract<Operation, { kind: "stream" }>): Promise<void> {
    const chain = chainOf(this.#disk.node);
    const at = operation.top % chain.length;
    const lower = [undefined, ...chain.slice(at + 1)];
    const base = lower[operation.below % lower.length];
    const top = chain[at]!;
    const settings = {
      ...MERGE_SETTINGS,
      id: `job${this.#made++}`,
      autoFinalize: !operation.twoStep,
    };
    let job: StreamJob;
    try {
      job = await StreamJob.create(
        this.#graph,
        { top, base },
        settings,
        this.#manager,
        this.#scheduler.clock,
      );
    } catch (error) {
      if (!(error instanceof BlockError) || !(REFUSALS.has(error.code) || isTooLong(error))) throw error;
      return;
    }
    const merge = { top: top.filename, base: base?.filename };
    const before = linkOf(top);
    this.#note(merge.top, [before, merge.base ?? NO_LINK]);
    this.merges.push({ at: this.now, is: merge });
    this.#jobs.add(job);
    this.#manager.start(job);
    if (operation.twoStep) await this.#finalize(job);
    await job.concluded;
    this.#jobs.delete(job);
    this.#note(merge.top, [linkOf(top)]);
    this.merges.push({ at: this.now, is: undefined });
    if (job.error !== undefined && !job.isCancelled) throw new Error(`${job.id} failed: ${job.error}`);
  }

  async #finalize(job: StreamJob): Promise<void> {
    for (let turns = 0; job.status !== "pending" && job.status !== "concluded" && turns < 10_000; turns++) {
      await this.#scheduler.always("operator");
    }
    if (job.status === "pending") job.finalize();
  }

  #note(path: string, is: readonly string[]): void {
    this.links.get(path)!.push({ at: this.now, is });
  }

  /** As block_resize does it; it forbids that a client has the disk meanwhile. */
  async #grow(more: number): Promise<void> {
    const { node } = this.#disk;
    const size = alignUp(node.size, 512) + more;
    await this.#disk.release();
    const length = this.history.grow(size, this.now);
    try {
      node.refuseBlocked();
      await node.quiesce();
      try {
        await node.driver.truncate(size);
      } finally {
        node.resume();
      }
      this.history.keepLength(length, this.now);
    } catch (error) {
      if (!(error instanceof BlockError) || !REFUSALS.has(error.code)) throw error;
      this.history.dropLength(length);
    } finally {
      this.#disk = this.#newExport(node);
    }
  }

  async #close(): Promise<void> {
    for (const job of this.#jobs) job.cancel();
    await Promise.all([...this.#jobs].map((job) => job.concluded));
    const covered = this.history.covered();
    await this.#disk.release();
    await this.#graph.release(this.#keeper);
    this.history.keep(covered, this.now);
    if (this.host.open.size > 0) throw new Error(`still open: ${[...this.host.open].join(", ")}`);
  }
}

/** Raw, in the wrong order, or held by somebody else. */
const REFUSALS = new Set<string>(["EINVAL", "EBUSY", "ENOTSUP", "EPERM", "NODE_IN_USE"]);

/** A long name may not fit a small header: then the chain stays as it was. */
export function isTooLong(error: unknown): boolean {
  return String(error).includes("does not fit the first cluster");
}

/** Its next flushes do nothing: of a broken rule. */
function withoutFlush({ driver }: BlockNode): void {
  const flush = driver.flush.bind(driver);
  let left = 2;
  driver.flush = () => (left-- > 0 ? undefined : flush());
}

/** Nothing else goes on beside it. */
function isAlone({ kind }: Operation): boolean {
  return kind === "grow" || kind === "wait" || kind === "close";
}

export function linkOf(node: BlockNode): string {
  return node.backing?.filename ?? NO_LINK;
}

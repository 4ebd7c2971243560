// One random run of the whole stack: guests read, write, zero, discard and flush through exports, while an
// operator takes live snapshots and starts, pauses, speeds and cancels streams. A seed is one interleaving,
// to the last step.
//
//   guests   --> NbdExport --> node ... qcow2 <- qcow2 <- raw --> files in memory, whose calls wait and fail
//   at random operator --> Graph.append, StreamJob, verbs
//
// At the end: what the guest sees is what the model says, also through a chain that is opened anew; every
// image passes the check (no leaks where no fault was injected); no lock, request, blocker, claim or file is
// left behind.

import { BlockError } from "../../base/errors.ts";
import { Prng } from "../../base/prng.ts";
import { chainOf } from "../../block/chain.ts";
import { Graph } from "../../block/graph.ts";
import type { BlockNode } from "../../block/node.ts";
import type { NodeOpener } from "../../block/open.ts";
import { contentOf } from "../../block/testing/array-world.ts";
import { Scheduler } from "../../block/testing/scheduler.ts";
import { NbdExport } from "../../export/nbd-export.ts";
import type { FaultKind } from "../../sys/fault-file.ts";
import type { Job } from "../job.ts";
import { JobManager } from "../manager.ts";
import { type OnError, StreamJob } from "../stream.ts";
import { Chain, type ChainOptions } from "./chain-maker.ts";
import { DiskModel } from "./disk-model.ts";
import { judgeImages } from "./image-judge.ts";
import { MemoryHost } from "./memory-host.ts";

export interface RunOptions extends ChainOptions {
  readonly seed: number;
  /** How likely a host call fails. Default: a quarter of the seeds, a few in a hundred calls. */
  readonly faults?: number;
}

export interface RunReport {
  readonly steps: number;
  readonly requests: number;
  readonly snapshots: number;
  readonly merges: number;
  readonly host: MemoryHost;
  readonly top: string;
  readonly model: DiskModel;
}

/** @throws Error with words when anything is not as it should be */
export function runWholeStack(options: RunOptions): Promise<RunReport> {
  return new WholeStack(options).run();
}

const ON_ERROR: readonly OnError[] = ["report", "ignore", "stop", "enospc"];
const STEPS_TO_THE_END = 200_000;

class WholeStack {
  readonly #options: RunOptions;
  readonly #prng: Prng;
  readonly #scheduler: Scheduler;
  readonly #faults: number;
  readonly #host = new MemoryHost();
  readonly #graph = new Graph();
  readonly #opener: NodeOpener;
  readonly #nodes = new Set<BlockNode>();
  readonly #manager = new JobManager((event) => {
    if (event === "BLOCK_JOB_COMPLETED") this.#completed++;
  });
  readonly #jobs: Job[] = [];
  readonly #guests: NbdExport[] = [];
  #chain!: Chain;
  #model!: DiskModel;
  #made = 0;
  #requests = 0;
  #snapshots = 0;
  #completed = 0;

  constructor(options: RunOptions) {
    const { seed, faults } = options;
    this.#options = options;
    this.#prng = new Prng(seed);
    this.#faults = faults ?? (seed % 4 === 3 ? this.#prng.pick([0.005, 0.02, 0.1]) : 0);
    this.#scheduler = new Scheduler(this.#prng, { waitChance: this.#prng.pick([0.05, 0.3, 0.7, 1]) });
    this.#opener = this.#host.opener(this.#graph);
  }

  async run(): Promise<RunReport> {
    this.#chain = new Chain(this.#host, this.#prng, this.#options);
    this.#model = new DiskModel(await this.#chain.make());
    const top = await this.#opener.open(this.#chain.options(this.#chain.top));
    for (let i = 0; i < 2; i++) {
      this.#guests.push(new NbdExport(this.#graph, top, { writable: true, allocationDepth: true }));
    }
    this.#host.delays = {
      before: (kind) => this.#before(kind),
      after: (kind) => this.#scheduler.step(kind),
      atOnce: () => this.#prng.chance(0.7),
    };
    const clients = [0, 1, 2, 3].map(() => this.#client(this.#prng.between(3, 15)));
    await this.#scheduler.until(Promise.all([...clients, this.#operator(this.#prng.between(4, 12))]));
    await this.#endJobs();
    // What runs in the background, such as the release of freed clusters, ends too.
    await this.#scheduler.run(STEPS_TO_THE_END);
    this.#host.delays = undefined;
    await this.#judge();
    return {
      steps: this.#scheduler.steps,
      requests: this.#requests,
      snapshots: this.#snapshots,
      merges: this.#completed,
      host: this.#host,
      top: this.#chain.top,
      model: this.#model,
    };
  }

  #before(kind: FaultKind) {
    if (this.#faults > 0 && this.#prng.chance(this.#faults)) {
      throw new BlockError(this.#prng.pick(["EIO", "ENOSPC"]), `injected fault: ${kind}`);
    }
    return this.#scheduler.step(kind);
  }

  // --- guests ------------------------------------------------------------------------------------

  async #client(requests: number): Promise<void> {
    for (let i = 0; i < requests; i++) {
      this.#requests++;
      await this.#request(this.#prng.pick(this.#guests));
    }
  }

  async #request(disk: NbdExport): Promise<void> {
    const prng = this.#prng;
    const dice = prng.below(100);
    if (dice < 5) return this.#flush(disk);
    const [offset, bytes] = this.#chain.range();
    if (dice < 40) return this.#read(disk, offset, bytes);
    const request = this.#model.begin(offset, bytes, true);
    const fua = prng.chance(0.1);
    try {
      if (dice < 75) {
        const written = this.#chain.payload(bytes);
        await disk.write(offset, bytes, written, 0, fua);
        this.#model.wrote(request, written);
      } else if (dice < 88) {
        await disk.writeZeroes(offset, bytes, { fua, mayUnmap: prng.chance(0.5), fastOnly: false });
        this.#model.wrote(request, undefined);
      } else {
        await disk.trim(offset, bytes, fua);
        this.#model.discarded(request);
      }
    } catch (error) {
      this.#model.failed(request);
      this.#mayFail(error);
    }
  }

  async #read(disk: NbdExport, offset: number, bytes: number): Promise<void> {
    const request = this.#model.begin(offset, bytes, false);
    const seen = Buffer.alloc(bytes, 0xa5);
    try {
      await disk.read(offset, bytes, seen, 0);
    } catch (error) {
      this.#model.failed(request);
      this.#mayFail(error);
      return;
    }
    const wrong = this.#model.read(request, seen);
    if (wrong !== undefined) throw new Error(`a guest read ${offset}+${bytes}: ${wrong}`);
  }

  async #flush(disk: NbdExport): Promise<void> {
    try {
      await disk.flush();
    } catch (error) {
      this.#mayFail(error);
    }
  }

  /** Only errors that were injected, and what follows from them. */
  #mayFail(error: unknown): void {
    if (this.#faults === 0 || !(error instanceof BlockError)) throw error;
  }

  // --- operator ----------------------------------------------------------------------------------

  async #operator(actions: number): Promise<void> {
    for (let i = 0; i < actions; i++) {
      const dice = this.#prng.below(100);
      if (dice < 20) await this.#snapshot();
      else if (dice < 50) await this.#stream();
      else if (dice < 85) this.#verb();
      for (let pauses = this.#prng.below(6); pauses > 0; pauses--) await this.#scheduler.always("operator");
    }
  }

  async #snapshot(): Promise<void> {
    const node = this.#guests[0]!.node;
    let overlay: BlockNode | undefined;
    try {
      const path = await this.#chain.makeOverlay(node.filename, node.size);
      overlay = await this.#opener.open({ ...this.#chain.options(path), backing: null });
      this.#note(overlay);
      const on = overlay;
      await this.#graph.exclusively(() => this.#graph.append(node, on));
      this.#chain.top = path;
      this.#snapshots++;
    } catch (error) {
      // A job may hold the node.
      if (!(error instanceof BlockError)) throw error;
      if (this.#faults === 0 && error.code !== "EBUSY") throw error;
      if (overlay !== undefined)
        await this.#opener.closeUnused(overlay).catch((closing) => this.#mayFail(closing));
    }
  }

  async #stream(): Promise<void> {
    const prng = this.#prng;
    const chain = chainOf(this.#guests[0]!.node);
    const at = prng.below(chain.length);
    const below = prng.pick([undefined, ...(prng.chance(0.9) ? chain.slice(at + 1) : chain)]);
    const settings = {
      id: `job${this.#made++}`,
      autoFinalize: prng.chance(0.7),
      autoDismiss: prng.chance(0.7),
      speed: prng.chance(0.7) ? 0 : prng.pick([1, 1000, 100_000]),
      onError: prng.pick(ON_ERROR),
    };
    this.#note(...chain);
    try {
      const target = { top: chain[at]!, base: below };
      const job = await StreamJob.create(this.#graph, target, settings, this.#manager, this.#scheduler.clock);
      this.#manager.start(job);
      this.#jobs.push(job);
    } catch (error) {
      // Refused: raw, busy, or in the wrong order.
      if (!(error instanceof BlockError)) throw error;
      const refused = ["EINVAL", "EBUSY", "ENOTSUP"].includes(error.code);
      if (!refused && this.#faults === 0) throw error;
    }
  }

  #verb(): void {
    const job = this.#jobs.length === 0 ? undefined : this.#prng.pick(this.#jobs);
    if (job === undefined) return;
    const prng = this.#prng;
    const verbs = [
      () => job.pause(),
      () => job.pause(),
      () => job.resume(),
      () => job.resume(),
      () => job.cancel(),
      () => job.setSpeed(prng.pick([0, 0, 1000])),
      () => job.finalize(),
      () => job.dismiss(),
    ];
    attempt(prng.pick(verbs));
  }

  // --- the end -----------------------------------------------------------------------------------

  /** No more faults; everything that is under way may end. */
  async #endJobs(): Promise<void> {
    this.#host.delays = { before: (kind) => this.#scheduler.step(kind), after: () => undefined };
    for (let rounds = 0; this.#jobs.some((job) => !isOver(job)); rounds++) {
      for (const job of this.#jobs.filter((each) => !isOver(each))) {
        attempt(() => job.setSpeed(0));
        attempt(() => job.resume());
        attempt(() => job.finalize());
      }
      await this.#scheduler.run(20);
      if (rounds * 20 > STEPS_TO_THE_END) {
        const hanging = this.#jobs.filter((job) => !isOver(job)).map((job) => `${job.id} ${job.status}`);
        throw new Error(`jobs do not end: ${hanging.join(", ")}`);
      }
    }
    await this.#scheduler.until(Promise.all(this.#jobs.map((job) => job.concluded)));
    for (const job of this.#manager.jobs) job.dismiss();
    if (this.#faults > 0) return;
    const failed = this.#jobs.filter((job) => job.error !== undefined && !job.isCancelled);
    if (failed.length > 0) throw new Error(`${failed[0]!.id} failed: ${failed[0]!.error}`);
  }

  async #judge(): Promise<void> {
    const top = this.#guests[0]!.node;
    this.#note(...chainOf(top));
    const wrong = this.#model.readAll(await contentOf(top));
    if (wrong !== undefined) throw new Error(`the open chain: ${wrong}`);
    this.#judgeNodes();
    const files = chainOf(top).map((node) => node.filename);
    for (const guest of this.#guests) {
      await guest.release().catch((error: unknown) => this.#mayFail(error));
    }
    const left = [...this.#graph.nodes].map((node) => `${node.name} (${node.filename})`);
    if (left.length > 0) throw new Error(`nodes are left in the graph: ${left.join(", ")}`);
    if (this.#host.open.size > 0) throw new Error(`still open: ${[...this.#host.open.keys()].join(", ")}`);
    await judgeImages(this.#host, files, this.#model, { faults: this.#faults > 0 });
  }

  #judgeNodes(): void {
    for (const node of this.#nodes) {
      const { name, driver } = node;
      const locks = (driver as { image?: { locks: { held: number; waiting: number } } }).image?.locks;
      const found = [
        locks !== undefined && locks.held + locks.waiting > 0 && "cluster locks",
        node.inFlight > 0 && "requests in flight",
        node.blockers.size > 0 && "blockers",
        this.#graph.find(name) === node && node.isQuiesced && "a drain",
      ].filter(Boolean);
      if (found.length > 0) throw new Error(`'${name}' is left with ${found.join(", ")}`);
    }
  }

  #note(...nodes: BlockNode[]): void {
    for (const node of nodes) this.#nodes.add(node);
  }
}

function isOver(job: Job): boolean {
  return job.status === "concluded" || job.status === "null";
}

/** A verb that has no place in this status is refused; that is right. */
function attempt(verb: () => void): void {
  try {
    verb();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
  }
}

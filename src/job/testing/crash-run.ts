// One random merge with guest writes and flushes, and then many crashes of it: at every change of the host
// around the commit point, and at some others.
//
// Of every state that a crash may leave: each image passes the check but for leaks; the chain opens by its
// links, which are the old ones or the new ones; what a flush acknowledged is there; and streaming again
// completes.

import { Prng } from "../../base/prng.ts";
import { chainOf } from "../../block/chain.ts";
import { Graph } from "../../block/graph.ts";
import { contentOf } from "../../block/testing/array-world.ts";
import { Scheduler } from "../../block/testing/scheduler.ts";
import { NbdExport } from "../../export/nbd-export.ts";
import { checkImage } from "../../format/qcow2/check.ts";
import { hostImageFile } from "../../format/qcow2/image-file.ts";
import { JobManager } from "../manager.ts";
import { StreamJob, type StreamSettings } from "../stream.ts";
import { Chain } from "./chain-maker.ts";
import type { MemoryHost } from "./memory-host.ts";
import { MemoryHost as Host } from "./memory-host.ts";
import { PromisedModel } from "./promised-model.ts";
import { RecordedHost } from "./recorded-host.ts";

const SETTINGS: StreamSettings = {
  id: "job0",
  autoFinalize: true,
  autoDismiss: true,
  speed: 0,
  onError: "report",
};
/** States that are looked at away from the commit point. */
const OTHER_CRASHES = 6;
/** Of the states, one in so many is streamed again. */
const STREAM_AGAIN = 8;

export interface CrashReport {
  readonly states: number;
  /** How many of them showed the old links, and the new ones. */
  readonly old: number;
  readonly new: number;
}

/** @throws Error with words when a crash would cost data */
export async function runCrashes({ seed }: { readonly seed: number }): Promise<CrashReport> {
  const run = new CrashRun(seed);
  await run.merge();
  return run.crashes();
}

class CrashRun {
  readonly #prng: Prng;
  readonly #scheduler: Scheduler;
  readonly #host = new Host();
  #recorded!: RecordedHost;
  #model!: PromisedModel;
  #chain!: Chain;
  /** Names of top and base; base undefined: everything was merged. */
  #target!: { top: string; base: string | undefined };
  /** Links from the disk's top on, before and after. */
  #old: string[] = [];
  #new: string[] = [];
  /** Changes of the host when the copy was done, and when the job was. */
  #window = { from: 0, to: 0 };
  #states = 0;
  #seen = { old: 0, new: 0 };

  constructor(seed: number) {
    this.#prng = new Prng(seed);
    this.#scheduler = new Scheduler(this.#prng, { waitChance: this.#prng.pick([0.1, 0.5, 1]) });
  }

  // --- the merge ---------------------------------------------------------------------------------

  async merge(): Promise<void> {
    const prng = this.#prng;
    this.#chain = new Chain(this.#host, prng);
    this.#model = new PromisedModel(await this.#chain.make());
    this.#recorded = new RecordedHost(this.#host);
    const graph = new Graph();
    const opened = await this.#host.opener(graph).open(this.#chain.options(this.#chain.top));
    const disk = new NbdExport(graph, opened, { writable: true, allocationDepth: false });
    const manager = new JobManager((event, data) => {
      if (event === "JOB_STATUS_CHANGE" && data["status"] === "waiting") this.#window.from = this.#now;
    });
    const nodes = chainOf(opened);
    this.#old = nodes.map((node) => node.filename);
    const at = prng.below(Math.max(1, nodes.length - 1));
    const base = prng.pick([undefined, ...nodes.slice(at + 1)]);
    this.#target = { top: nodes[at]!.filename, base: base?.filename };
    this.#host.delays = {
      before: (kind) => this.#scheduler.step(kind),
      after: (kind) => this.#scheduler.step(kind),
    };
    const stream = async () => {
      const target = { top: nodes[at]!, base };
      const job = await StreamJob.create(graph, target, SETTINGS, manager, this.#scheduler.clock);
      manager.start(job);
      await job.concluded;
      if (job.error !== undefined) throw new Error(`the job failed: ${job.error}`);
      this.#window.to = this.#now;
    };
    await this.#scheduler.until(Promise.all([this.#guest(disk, 0), this.#guest(disk, 1), stream()]));
    await this.#scheduler.run(100_000);
    this.#new = chainOf(disk.node).map((node) => node.filename);
    // Not closed: the daemon is killed.
  }

  get #now(): number {
    return this.#recorded.changes.length;
  }

  /** Two guests, each on its own half of the disk. */
  async #guest(disk: NbdExport, half: number): Promise<void> {
    const prng = this.#prng;
    const middle = Math.floor(disk.size / 2);
    const [low, high] = half === 0 ? [0, middle] : [middle, disk.size];
    for (let i = prng.between(2, 14); i > 0; i--) {
      const dice = prng.below(10);
      if (dice < 3) {
        const covered = this.#model.covered();
        await disk.flush();
        this.#model.acknowledge(covered, this.#now);
        continue;
      }
      const [anywhere, wanted] = this.#chain.range();
      const offset = Math.min(high - 1, Math.max(low, anywhere));
      const bytes = Math.min(wanted, high - offset);
      if (bytes <= 0 || offset < low) continue;
      await this.#write(disk, offset, bytes, dice < 8 ? this.#chain.payload(bytes) : undefined);
    }
  }

  async #write(disk: NbdExport, offset: number, bytes: number, payload: Buffer | undefined): Promise<void> {
    const write = this.#model.begin(offset, bytes, payload, this.#now);
    const fua = this.#prng.chance(0.15);
    const covered = this.#model.covered();
    if (payload !== undefined) await disk.write(offset, bytes, payload, 0, fua);
    else await disk.writeZeroes(offset, bytes, { fua, mayUnmap: this.#prng.chance(0.5), fastOnly: false });
    write.settled = true;
    if (fua) this.#model.acknowledge([...covered, write], this.#now);
  }

  // --- the crashes -------------------------------------------------------------------------------

  async crashes(): Promise<CrashReport> {
    for (let at = Math.max(0, this.#window.from - 2); at <= Math.min(this.#window.to + 2, this.#now); at++) {
      await this.#crashAt(at);
    }
    for (let i = 0; i < OTHER_CRASHES; i++) await this.#crashAt(this.#prng.between(0, this.#now));
    return { states: this.#states, ...this.#seen };
  }

  async #crashAt(at: number): Promise<void> {
    for (const share of [0, this.#prng.next(), 1]) {
      const state = this.#recorded.stateAt(at, share, this.#prng);
      try {
        await this.#judge(state, at);
      } catch (error) {
        const words = error instanceof Error ? error.message : String(error);
        const where = `crash after ${at} of ${this.#now} changes (copied at ${this.#window.from}, done at `;
        throw new Error(
          `${where}${this.#window.to}), ${Math.round(share * 100)}% of the rest there: ${words}`,
          {
            cause: error,
          },
        );
      }
    }
  }

  async #judge(state: MemoryHost, at: number): Promise<void> {
    this.#states++;
    for (const [path, file] of state.files) {
      if (!path.endsWith(".qcow2")) continue;
      const lines: string[] = [];
      const result = await checkImage(hostImageFile(file), { tell: (line) => lines.push(line) });
      if (result.corruptions + result.checkErrors > 0)
        throw new Error(`${path}: ${lines.slice(0, 4).join("; ")}`);
    }
    const graph = new Graph();
    const opener = state.opener(graph);
    const top = await opener.open(this.#chain.options(this.#chain.top));
    const links = chainOf(top).map((node) => node.filename);
    const isOld = links.join() === this.#old.join();
    if (!isOld && links.join() !== this.#new.join()) throw new Error(`the links are ${links.join(" -> ")}`);
    this.#seen[isOld ? "old" : "new"]++;
    const seen = await contentOf(top);
    const wrong = this.#model.judge(seen, at);
    if (wrong !== undefined) throw new Error(`${wrong} (${isOld ? "old" : "new"} links)`);
    if (this.#prng.below(STREAM_AGAIN) === 0) await this.#streamAgain(graph, top.name, seen);
    await opener.closeUnused(top);
  }

  async #streamAgain(graph: Graph, name: string, seen: Buffer): Promise<void> {
    const disk = new NbdExport(graph, graph.get(name), { writable: true, allocationDepth: false });
    const chain = chainOf(disk.node);
    const find = (file: string | undefined) => chain.find((node) => node.filename === file);
    const clock = { nowMs: () => 0, after: () => () => {}, turn: () => Promise.resolve() };
    const manager = new JobManager(() => {});
    const target = { top: find(this.#target.top)!, base: find(this.#target.base) };
    const job = await StreamJob.create(graph, target, SETTINGS, manager, clock);
    manager.start(job);
    await job.concluded;
    if (job.error !== undefined) throw new Error(`streaming again failed: ${job.error}`);
    const links = chainOf(disk.node).map((node) => node.filename);
    if (links.join() !== this.#new.join()) throw new Error(`after streaming again: ${links.join(" -> ")}`);
    if (!(await contentOf(disk.node)).equals(seen))
      throw new Error("streaming again changed what the guest sees");
    await disk.release();
  }
}

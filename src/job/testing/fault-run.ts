// One scenario on a chain of four images while one of its files fails at chosen calls: a guest writes,
// zeroes, discards, reads and flushes while an intermediate image is merged.
//
//   guest --> [D] -> [C] -> [B] -> [A]      C is merged onto A; the faulty file is one of the four
//
//   1. An error of the host reaches the guest, or the job, as an error.
//   2. What failed is tried again once the fault is gone: then it succeeds.
//   3. What the guest reads is right at any time: an error, or what the model says.
//   4. In the end the images pass the check (leaks are no fault) and show what the model says.

import { BlockError } from "../../base/errors.ts";
import { KiB } from "../../base/units.ts";
import { chainOf } from "../../block/chain.ts";
import { Graph } from "../../block/graph.ts";
import type { NodeOpener } from "../../block/open.ts";
import { rest } from "../../block/testing/scheduler.ts";
import { NbdExport } from "../../export/nbd-export.ts";
import { type Fault, FaultFile } from "../../sys/fault-file.ts";
import { JobManager } from "../manager.ts";
import type { JobStatus } from "../states.ts";
import { type OnError, StreamJob } from "../stream.ts";
import { DiskModel } from "./disk-model.ts";
import { judgeImages } from "./image-judge.ts";
import { MemoryHost } from "./memory-host.ts";

export const FAULTY_FILES = ["/A.qcow2", "/B.qcow2", "/C.qcow2", "/D.qcow2"] as const;

export interface FaultRunOptions {
  readonly path: string;
  /** Without `nth`: see there. */
  readonly fault: Omit<Fault, "nth">;
  /** The call of that file, from the beginning of the scenario, that fails first. */
  readonly nth: number;
  readonly onError: OnError;
  /** Holds the call until all else has come to rest instead of failing it. */
  readonly stuck?: boolean;
}

export interface FaultRunReport {
  /** Whether the scenario came as far as the call. */
  readonly hit: boolean;
  /** Requests of the guest that failed. */
  readonly failed: number;
  readonly jobError: string | undefined;
  readonly jobStops: number;
}

/** Small, so that there are several L2 tables and refcount blocks: what one loses, another does not hide. */
const CLUSTER = 512;
const SIZE = 96 * KiB;
/** Turns of the loop after which nothing goes on by itself. */
const TURNS_MAX = 2000;

type Step =
  | {
      readonly kind: "write" | "zeroes" | "trim";
      readonly at: number;
      readonly bytes: number;
      readonly fua?: boolean;
    }
  | { readonly kind: "read" | "flush" };

const STEPS: readonly Step[] = [
  { kind: "write", at: 700, bytes: 5000 },
  { kind: "write", at: 40 * KiB, bytes: 8 * KiB, fua: true },
  { kind: "read" },
  { kind: "write", at: 41 * KiB + 5, bytes: 100 },
  { kind: "zeroes", at: 42 * KiB, bytes: 3 * KiB + 17 },
  { kind: "flush" },
  { kind: "trim", at: 40 * KiB, bytes: 4 * KiB },
  { kind: "flush" },
  { kind: "read" },
  { kind: "write", at: 40 * KiB, bytes: 2 * KiB },
  { kind: "zeroes", at: 10 * KiB, bytes: 20 * KiB },
  { kind: "write", at: 9 * KiB + 1, bytes: 12 * KiB },
  // The first in its L2 table: the last flush has an L1 entry to write.
  { kind: "write", at: 90 * KiB, bytes: 6 * KiB },
  { kind: "flush" },
];

/** @throws Error with words when anything is not as it should be */
export function runWithFaults(options: FaultRunOptions): Promise<FaultRunReport> {
  return new FaultRun(options).run();
}

class FaultRun {
  readonly #options: FaultRunOptions;
  readonly #host = new MemoryHost();
  readonly #graph = new Graph();
  readonly #opener: NodeOpener;
  #faulty: FaultFile | undefined;
  #model!: DiskModel;
  #disk!: NbdExport;
  #errors = 0;
  #stops = 0;
  #value = 1;
  #calls = 0;
  #stuck: (() => void) | undefined;

  constructor(options: FaultRunOptions) {
    this.#options = options;
    this.#opener = this.#host.opener(this.#graph);
  }

  async run(): Promise<FaultRunReport> {
    await this.#makeChain();
    this.#arm();
    const ended = Promise.all([this.#guest(), this.#merge()]);
    const [again, job] = await this.#settled(ended);
    const hit = this.#calls >= this.#options.nth;
    this.#faulty!.clearFaults();
    this.#faulty!.delays = undefined;
    // Work in the background that nobody waited for.
    this.#stuck?.();
    for (const step of again) await this.#take(step, true);
    await this.#more();
    await this.#judge();
    return { hit, failed: this.#errors, jobError: job?.error, jobStops: this.#stops };
  }

  // --- before ------------------------------------------------------------------------------------

  async #makeChain(): Promise<void> {
    const content = Buffer.alloc(SIZE);
    let below: string | undefined;
    for (const [layer, path] of FAULTY_FILES.entries()) {
      const link = below === undefined ? {} : { backingFile: below.slice(1), backingFormat: "qcow2" };
      await this.#host.createQcow2(path, { size: SIZE, clusterSize: CLUSTER, refcountBits: 64, ...link });
      const node = await this.#opener.open(openOptions(path));
      const end = layer === 3 ? 28 : 96;
      for (let cluster = layer; cluster < end; cluster += 3 + layer) {
        const bytes = KiB + 300;
        const at = Math.min(cluster * KiB, SIZE - bytes);
        const written = Buffer.alloc(bytes, 16 * (layer + 1) + (cluster % 16));
        await node.write(at, bytes, written, 0);
        written.copy(content, at);
      }
      await this.#opener.closeUnused(node);
      below = path;
    }
    this.#host.wrap = (file) => {
      if (file.path !== this.#options.path) return file;
      this.#faulty = new FaultFile(file);
      return this.#faulty;
    };
    const top = await this.#opener.open(openOptions(FAULTY_FILES[3]));
    this.#disk = new NbdExport(this.#graph, top, { writable: true, allocationDepth: false });
    this.#model = new DiskModel(content);
  }

  #arm(): void {
    const { fault, nth, stuck } = this.#options;
    const file = this.#faulty!;
    if (stuck !== true) file.fail({ ...fault, nth });
    file.delays = {
      before: (kind) => {
        if (fault.kind !== "any" && fault.kind !== kind) return undefined;
        this.#calls++;
        if (stuck !== true || this.#calls !== nth) return undefined;
        return new Promise((resolve) => {
          this.#stuck = resolve;
        });
      },
      after: () => undefined,
    };
  }

  /** Lets the stuck call go when nothing else moves any more. */
  async #settled<T>(work: Promise<T>): Promise<T> {
    let over = false;
    const watched = work.finally(() => {
      over = true;
    });
    for (let turns = 0; !over; turns++) {
      await rest();
      if (this.#stuck !== undefined && turns > 50) {
        this.#stuck();
        this.#stuck = undefined;
        turns = 0;
      }
      if (turns > TURNS_MAX) throw new Error("the scenario does not end");
    }
    return watched;
  }

  // --- the scenario ------------------------------------------------------------------------------

  /** The steps that failed, for another try. */
  async #guest(): Promise<Step[]> {
    const failed: Step[] = [];
    for (const step of STEPS) {
      if (!(await this.#take(step, false))) failed.push(step);
    }
    return failed;
  }

  async #take(step: Step, mustSucceed: boolean): Promise<boolean> {
    try {
      await this.#request(step);
      return true;
    } catch (error) {
      if (!(error instanceof BlockError) || mustSucceed) throw error;
      this.#errors++;
      return false;
    }
  }

  async #request(step: Step): Promise<void> {
    if (step.kind === "flush") return this.#disk.flush();
    if (!("at" in step)) return this.#read();
    const { kind, at, bytes, fua = false } = step;
    const request = this.#model.begin(at, bytes, true);
    try {
      if (kind === "write") {
        const written = Buffer.alloc(bytes, this.#value++);
        await this.#disk.write(at, bytes, written, 0, fua);
        this.#model.wrote(request, written);
      } else if (kind === "zeroes") {
        await this.#disk.writeZeroes(at, bytes, { fua, mayUnmap: true, fastOnly: false });
        this.#model.wrote(request, undefined);
      } else {
        await this.#disk.trim(at, bytes, fua);
        this.#model.discarded(request);
      }
    } catch (error) {
      this.#model.failed(request);
      throw error;
    }
  }

  async #read(): Promise<void> {
    for (let at = 0; at < SIZE; at += 16 * KiB) {
      const request = this.#model.begin(at, 16 * KiB, false);
      const seen = Buffer.alloc(16 * KiB, 0xa5);
      try {
        await this.#disk.read(at, seen.length, seen, 0);
      } catch (error) {
        this.#model.failed(request);
        throw error;
      }
      const wrong = this.#model.read(request, seen);
      if (wrong !== undefined) throw new Error(`the guest read at ${at}: ${wrong}`);
    }
  }

  /** Merges C onto A. Under the policy `stop` it is resumed as often as it stops. */
  async #merge(): Promise<StreamJob | undefined> {
    const [, c, , a] = chainOf(this.#disk.node);
    const manager = new JobManager((event, data) => {
      if (event === "BLOCK_JOB_ERROR" && data["action"] === "stop") this.#stops++;
    });
    const settings = {
      id: "merge",
      autoFinalize: true,
      autoDismiss: false,
      speed: 0,
      onError: this.#options.onError,
    };
    const clock = { nowMs: () => 0, after: () => () => {}, turn: rest };
    let job: StreamJob;
    try {
      job = await StreamJob.create(this.#graph, { top: c!, base: a }, settings, manager, clock);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      return undefined;
    }
    manager.start(job);
    for (let turns = 0; job.status !== "concluded" && turns < TURNS_MAX; turns++) {
      if ((job.status as JobStatus) === "paused") job.resume();
      await rest();
      if (this.#stuck !== undefined) turns = 0;
    }
    if (job.status !== "concluded") throw new Error(`the merge does not end: ${job.status}`);
    return job;
  }

  // --- after -------------------------------------------------------------------------------------

  /** A little more, which leaves most tables as the last flush should have left them. */
  async #more(): Promise<void> {
    await this.#disk.flush();
    await this.#take({ kind: "write", at: 30 * KiB, bytes: KiB }, true);
    await this.#disk.flush();
    await this.#read();
  }

  async #judge(): Promise<void> {
    const files = chainOf(this.#disk.node).map((node) => node.filename);
    for (const node of chainOf(this.#disk.node)) {
      if (node.inFlight > 0 || node.isQuiesced || node.blockers.size > 0) {
        throw new Error(`'${node.name}' is left with requests, a drain or blockers`);
      }
    }
    await this.#disk.release();
    if (this.#host.open.size > 0) throw new Error(`still open: ${[...this.#host.open.keys()].join(", ")}`);
    this.#host.wrap = (file) => file;
    await judgeImages(this.#host, files, this.#model, { faults: true });
  }
}

function openOptions(filename: string) {
  return { driver: "qcow2", file: { driver: "file", filename } };
}

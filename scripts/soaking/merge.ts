// One merge under everything that may happen to it: pauses, other speeds, cancels, snapshots, a full disk.
//
//   top first:   [0] [1] [2] [3] [4]        from 1 down to 3: what is in 2 is copied into 1; 2 is dropped
//                     |_______^

import { errorMessage } from "../../src/base/errors.ts";
import type { Prng } from "../../src/base/prng.ts";
import { MiB } from "../../src/base/units.ts";
import { eventually, type Layer } from "./live-chain.ts";
import type { SoakedDaemon } from "./soaked-daemon.ts";

/**
 * Which layers: the image at `from` gets what it lacks; the one at `to` is not touched, undefined: none is.
 */
export interface MergePlan {
  readonly from: number;
  readonly to: number | undefined;
}

/** One merge anywhere in a chain of at least two images, or one into the image at `from`. */
export function planMerge(prng: Prng, count: number, from = prng.below(count - 1)): MergePlan {
  const to = prng.between(from + 2, count);
  if (to < count) return { from, to };
  // All that is below: then the base goes too.
  return { from, to: undefined };
}

/** Two merges that have no image in common, where the chain is long enough. */
export function planMerges(prng: Prng, count: number): MergePlan[] {
  if (count < 6 || prng.chance(0.5)) return [planMerge(prng, count)];
  const upper = { from: prng.below(2), to: 3 };
  return [upper, planMerge(prng, count - 4)].map((plan, index) => (index === 0 ? plan : shifted(plan, 4)));
}

function shifted({ from, to }: MergePlan, by: number): MergePlan {
  return { from: from + by, to: to === undefined ? undefined : to + by };
}

/** How the job ended: with its change made, without, or with an error. */
export type MergeEnd = "completed" | "cancelled" | { readonly error: string };

export class Merge {
  readonly id: string;
  /** Layers that go when it completes. */
  readonly dropped: readonly Layer[];
  readonly top: Layer;
  readonly #daemon: SoakedDaemon;
  readonly #finalizes: boolean;

  private constructor(
    daemon: SoakedDaemon,
    job: { id: string; top: Layer; dropped: readonly Layer[]; finalizes: boolean },
  ) {
    this.#daemon = daemon;
    this.id = job.id;
    this.top = job.top;
    this.dropped = job.dropped;
    this.#finalizes = job.finalizes;
  }

  static async start(
    daemon: SoakedDaemon,
    layers: readonly Layer[],
    plan: MergePlan,
    job: { id: string; speed: number; onError: string; finalizes: boolean },
  ): Promise<Merge> {
    const top = layers[plan.from]!;
    await daemon.qmp.execute("block-stream", {
      "job-id": job.id,
      device: top.node,
      speed: job.speed,
      "on-error": job.onError,
      "auto-finalize": !job.finalizes,
      ...(plan.to === undefined ? {} : { "base-node": layers[plan.to]!.node }),
    });
    const dropped = layers.slice(plan.from + 1, plan.to ?? layers.length);
    return new Merge(daemon, { id: job.id, top, dropped, finalizes: job.finalizes });
  }

  /** Undefined when the job is gone. */
  async status(): Promise<string | undefined> {
    const jobs = (await this.#daemon.qmp.execute("query-jobs")) as { id: string; status: string }[];
    return jobs.find((job) => job.id === this.id)?.status;
  }

  /** A verb of the job; nothing happens when it has just ended or cannot do that now. */
  async tell(verb: string, args: Record<string, unknown> = {}): Promise<void> {
    const id = verb === "block-job-set-speed" ? { device: this.id } : { id: this.id };
    try {
      await this.#daemon.qmp.execute(verb, { ...id, ...args });
    } catch (error) {
      const status = await this.status();
      // A fault may have paused it before.
      if (status === "paused" && verb === "job-pause") return;
      if (status === "running" || status === "paused") {
        throw new Error(`${verb} of a job that is ${status}: ${errorMessage(error)}`);
      }
    }
  }

  /** Waits until it stands still, or is gone. */
  untilPaused(): Promise<void> {
    const isQuiet = async () => (await this.status()) !== "running";
    return eventually(isQuiet, `${this.id} is not paused`);
  }

  /** Waits until it is gone; a job that stands still is told to go on, one that is pending to finish. */
  async end(): Promise<MergeEnd> {
    await eventually(async () => {
      const status = await this.status();
      if (status === "paused") await this.tell("job-resume");
      if (status === "pending" && this.#finalizes) await this.tell("job-finalize");
      return status === undefined;
    }, `${this.id} does not end`);
    const last = this.#daemon.events.findLast(
      ({ name, data }) => END.test(name) && data["device"] === this.id,
    );
    if (last === undefined) throw new Error(`no event told of the end of ${this.id}`);
    if (last.data["error"] !== undefined) return { error: String(last.data["error"]) };
    return last.name === "BLOCK_JOB_CANCELLED" ? "cancelled" : "completed";
  }
}

const END = /^BLOCK_JOB_(COMPLETED|CANCELLED)$/;

/** Limits under which a merge of these disks takes some seconds; 0 is none. */
export function randomSpeed(prng: Prng): number {
  return prng.pick([0, 0, 8 * MiB, 16 * MiB, 32 * MiB, 64 * MiB]);
}

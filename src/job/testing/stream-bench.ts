// Streams over array images, ready for a test: started in one line, with their events written down.

import type { Clock } from "../../base/clock.ts";
import { ManualClock } from "../../base/clock.ts";
import type { BlockNode } from "../../block/node.ts";
import { ArrayWorld, contentOf } from "../../block/testing/array-world.ts";
import type { Call } from "../../block/testing/interpose.ts";
import { JobManager } from "../manager.ts";
import { StreamJob, type StreamSettings } from "../stream.ts";

export class StreamBench {
  readonly world = new ArrayWorld();
  /** "job0 running", "BLOCK_JOB_ERROR job0 stop" and so on, in order. */
  readonly events: string[] = [];
  readonly data: [string, Record<string, unknown>][] = [];
  readonly clock: Clock;
  readonly manager = new JobManager((event, data) => {
    this.data.push([event, data]);
    const more = [data["id"] ?? data["device"], data["status"] ?? data["action"]].filter(Boolean).join(" ");
    this.events.push(event === "JOB_STATUS_CHANGE" ? more : `${event} ${more}`);
  });

  constructor(clock: Clock = new ManualClock()) {
    this.clock = clock;
  }

  async start(
    top: BlockNode,
    base: BlockNode | undefined,
    settings: Partial<StreamSettings> = {},
  ): Promise<StreamJob> {
    const all = {
      id: "job0",
      autoFinalize: true,
      autoDismiss: false,
      speed: 0,
      onError: "report",
      ...settings,
    };
    const target = { top, base };
    const job = await StreamJob.create(
      this.world.graph,
      target,
      all as StreamSettings,
      this.manager,
      this.clock,
    );
    this.manager.start(job);
    return job;
  }

  async run(top: BlockNode, base: BlockNode | undefined, settings: Partial<StreamSettings> = {}) {
    const job = await this.start(top, base, settings);
    await job.concluded;
    return job;
  }
}

/** Length of the disk of `streamedChain`. */
export const STREAMED_BYTES = 16 * 512;

/** A chain with something of each image showing through, and what the guest sees in it. */
export async function streamedChain(names = "A B C D E", before?: (call: Call) => void) {
  const bench = new StreamBench();
  const { world } = bench;
  const { nodes, guest } = world.chain(names, { size: STREAMED_BYTES, ...(before && { before }) });
  names.split(" ").forEach((name, at) => {
    world.fill(name, at * 3, 5);
  });
  world.driver(names.split(" ")[1]!).clusters[4] = "zero";
  const named = Object.fromEntries(nodes.map((node) => [node.name, node])) as Record<string, BlockNode>;
  const seen = await contentOf(guest.node);
  return { bench, world, named, guest, seen };
}

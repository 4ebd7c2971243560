// Streams over array images, ready for a test: started in one line, with their events written down.

import type { Clock } from "../../base/clock.ts";
import { ManualClock } from "../../base/clock.ts";
import type { BlockNode } from "../../block/node.ts";
import { ArrayWorld } from "../../block/testing/array-world.ts";
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

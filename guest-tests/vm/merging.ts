// Begins merges at a daemon and follows them by its events: those of QMP, whoever gave the command.

import { expect } from "vitest";
import type { Daemon } from "../harness/daemon.ts";
import { later } from "../harness/patience.ts";
import type { QmpEvent } from "../harness/qmp-client.ts";

export interface StreamWords {
  readonly device: string;
  readonly base?: string;
  /** Bytes per second. */
  readonly speed?: number;
}

interface JobProgress {
  readonly device: string;
  readonly offset: number;
  readonly len: number;
}

export class Merging {
  readonly #daemon: Daemon;
  /** What a person types at the monitor; "" is what it answers when all is well. */
  readonly type: (line: string) => Promise<void>;

  private constructor(daemon: Daemon, type: (line: string) => Promise<void>) {
    this.#daemon = daemon;
    this.type = type;
  }

  static async at(daemon: Daemon): Promise<Merging> {
    const monitor = await daemon.hmp();
    return new Merging(daemon, async (line) => expect(await monitor.type(line), line).toBe(""));
  }

  /** `block_stream` at the monitor; the job gets the device's name. Gives how it ends, when it has ended. */
  async typed({ device, base, speed }: StreamWords): Promise<{ ended: Promise<QmpEvent> }> {
    const from = this.#daemon.qmp.mark;
    // Of the arguments the base comes before the speed, so there is no speed without a base.
    await this.type(["block_stream", device, base, speed].filter((word) => word !== undefined).join(" "));
    return { ended: this.#end(device, from) };
  }

  /** `block-stream` of QMP. */
  async streamed({ device, base, speed }: StreamWords): Promise<{ ended: Promise<QmpEvent> }> {
    const from = this.#daemon.qmp.mark;
    const more = {
      ...(base === undefined ? {} : { "base-node": base }),
      ...(speed === undefined ? {} : { speed }),
    };
    await this.#daemon.qmp.execute("block-stream", { "job-id": device, device, ...more });
    return { ended: this.#end(device, from) };
  }

  /** Jobs that are there now. */
  async jobs(): Promise<JobProgress[]> {
    return (await this.#daemon.qmp.execute("query-block-jobs")) as JobProgress[];
  }

  /** Waits until every job has copied something. */
  async allMoving(): Promise<void> {
    let jobs: JobProgress[];
    do jobs = await this.jobs();
    while (jobs.some((job) => job.offset === 0));
  }

  /** Waits until the job has done half of its work. @throws when it is over by then */
  async halfWay(device: string): Promise<void> {
    for (;;) {
      const job = (await this.jobs()).find((each) => each.device === device);
      if (job === undefined) throw new Error(`the job ${device} is over; it was to be cancelled half way`);
      if (job.len > 0 && job.offset >= job.len / 2) return;
    }
  }

  async setSpeed(device: string, speed: number): Promise<void> {
    await this.#daemon.qmp.execute("block-job-set-speed", { device, speed });
  }

  #end(device: string, from: number): Promise<QmpEvent> {
    return later(this.#daemon.qmp.waitForEnd(device, from));
  }
}

/** The job came to its end, and did all its work. */
export async function completed(merge: { ended: Promise<QmpEvent> }): Promise<void> {
  expect((await merge.ended).event).toBe("BLOCK_JOB_COMPLETED");
}

export async function cancelled(merge: { ended: Promise<QmpEvent> }): Promise<void> {
  expect((await merge.ended).event).toBe("BLOCK_JOB_CANCELLED");
}

// Watches a job of a daemon until it ends: progress in place at a terminal, a line per second elsewhere.
//
//   1. The end is told by the daemon's event, not by the job's absence: a job that ends between two looks is
//      not missed.
//   2. Ctrl-C ends the watching, never the job.

import type { Clock } from "../base/clock.ts";
import { BlockError } from "../base/errors.ts";
import { formatSize } from "../base/units.ts";
import { type JobView, viewJobs } from "./daemon-view.ts";
import {
  barProgress,
  type Progress,
  percentOf,
  plainProgress,
  RateMeter,
  secondsLeft,
} from "./progress-line.ts";
import type { QmpConnection, QmpEvent } from "./qmp-client.ts";
import { LiveLine, type Terminal } from "./terminal.ts";

/** How a job ended, or that nobody watches any more. */
export interface JobEnd {
  readonly result: "completed" | "failed" | "cancelled" | "unwatched";
  readonly error?: string;
  /** Bytes done. */
  readonly done: number;
}

export interface WatchSettings {
  readonly client: QmpConnection;
  readonly id: string;
  /** What stands before the figures. */
  readonly label: string;
  readonly terminal: Terminal;
  readonly clock: Clock;
  readonly json: boolean;
  /** Calls back at Ctrl-C; the result undoes that. */
  readonly onInterrupt: (callback: () => void) => () => void;
}

const LIVE_INTERVAL_MS = 200;
const PLAIN_INTERVAL_MS = 1000;

/**
 * Runs `start`, which makes the job, and watches it. The event of its end cannot be missed that way, however
 * soon.
 * @throws what `start` throws
 */
export async function watchJob(settings: WatchSettings, start: () => Promise<unknown>): Promise<JobEnd> {
  const { client, id, onInterrupt } = settings;
  let finish!: (end: JobEnd) => void;
  const ended = new Promise<JobEnd>((resolve) => {
    finish = resolve;
  });
  const forget = [
    client.onEvent((event) => {
      const end = endOf(event, id);
      if (end !== undefined) finish(end);
    }),
  ];
  try {
    await start();
    forget.push(onInterrupt(() => finish({ result: "unwatched", done: 0 })));
    return await new Watching(settings).until(ended);
  } finally {
    for (const undo of forget) undo();
  }
}

function endOf({ name, data }: QmpEvent, id: string): JobEnd | undefined {
  if (data["device"] !== id) return undefined;
  const done = Number(data["offset"] ?? 0);
  if (name === "BLOCK_JOB_CANCELLED") return { result: "cancelled", done };
  if (name !== "BLOCK_JOB_COMPLETED") return undefined;
  return typeof data["error"] === "string"
    ? { result: "failed", error: data["error"], done }
    : { result: "completed", done };
}

class Watching {
  readonly #settings: WatchSettings;
  readonly #line: LiveLine;
  readonly #rate = new RateMeter();

  constructor(settings: WatchSettings) {
    this.#settings = settings;
    this.#line = new LiveLine(settings.terminal);
  }

  async until(ended: Promise<JobEnd>): Promise<JobEnd> {
    const { client, id, terminal, clock, json } = this.#settings;
    const live = terminal.interactive && !json;
    let last: JobView | undefined;
    for (;;) {
      const job = (await viewJobs(client)).find((one) => one.device === id);
      if (job !== undefined) this.#show(job, live);
      const pause = sleep(clock, live ? LIVE_INTERVAL_MS : PLAIN_INTERVAL_MS);
      const end = await Promise.race([ended, pause.done]);
      pause.cancel();
      if (end !== undefined) return this.#finished(end, last, live);
      if (job === undefined) throw new BlockError("JOB_NOT_FOUND", `job ${id} has ended, how is not known`);
      last = job;
    }
  }

  #show(job: JobView, live: boolean): void {
    const { terminal, label, json, clock } = this.#settings;
    const stopped = job.paused || job.status !== "running";
    if (stopped) this.#rate.reset();
    const bytesPerSecond = stopped ? 0 : this.#rate.sample(clock.nowMs(), job.offset);
    const state = stopped ? stateOf(job) : undefined;
    const progress: Progress = { label, done: job.offset, total: job.len, bytesPerSecond, state };
    if (json) terminal.out(JSON.stringify(progressRecord(job, progress)) + "\n");
    else this.#line.show(live ? barProgress(progress, terminal.columns) : plainProgress(progress));
  }

  #finished(end: JobEnd, last: JobView | undefined, live: boolean): JobEnd {
    const { terminal, label, json, id } = this.#settings;
    if (json) {
      const error = end.error === undefined ? {} : { error: end.error };
      terminal.out(JSON.stringify({ id, result: end.result, offset: end.done, ...error }) + "\n");
      return end;
    }
    if (end.result === "completed") {
      const whole = { label, done: end.done, total: end.done, bytesPerSecond: 0 };
      const amount = `${label}  done: ${formatSize(end.done)}`;
      this.#line.show(live ? barProgress(whole, terminal.columns) : amount);
    } else if (end.result !== "unwatched" && last !== undefined) {
      this.#line.show(
        plainProgress({ label, done: end.done, total: last.len, bytesPerSecond: 0, state: end.result }),
      );
    }
    this.#line.end();
    return end;
  }
}

function stateOf(job: JobView): string {
  if (job["io-status"] !== "ok")
    return `stopped by an error (${job["io-status"]}): 'strata jobs resume ${job.device}'`;
  return job.paused ? "paused" : job.status;
}

function progressRecord(job: JobView, progress: Progress): Record<string, unknown> {
  return {
    id: job.device,
    type: job.type,
    status: job.status,
    offset: job.offset,
    len: job.len,
    percent: percentOf(progress),
    speed: job.speed,
    "bytes-per-second": Math.round(progress.bytesPerSecond),
    "seconds-left": secondsLeft(progress) ?? null,
  };
}

/** A wait that can be given up; settles to undefined. */
function sleep(clock: Clock, delayMs: number): { done: Promise<undefined>; cancel: () => void } {
  let cancel!: () => void;
  const done = new Promise<undefined>((resolve) => {
    cancel = clock.after(delayMs, () => resolve(undefined));
  });
  return { done, cancel };
}

/** The job that is to be watched, where only one runs or its id is given. */
export function findJob(jobs: readonly JobView[], id: string | undefined): JobView {
  const found = id === undefined ? jobs : jobs.filter((job) => job.device === id);
  if (found.length === 1) return found[0]!;
  const names = jobs.map((job) => job.device).join(", ") || "none";
  if (id !== undefined) throw new BlockError("JOB_NOT_FOUND", `no job is called '${id}': there are ${names}`);
  throw new BlockError("JOB_NOT_FOUND", `which job? there are ${names}`);
}

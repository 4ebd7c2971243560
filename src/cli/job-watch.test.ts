import { expect, it } from "vitest";
import { ManualClock } from "../base/clock.ts";
import type { JobView } from "./daemon-view.ts";
import { findJob, type JobEnd, type WatchSettings, watchJob } from "./job-watch.ts";
import type { QmpConnection, QmpEvent } from "./qmp-client.ts";
import type { Terminal } from "./terminal.ts";

const MiB = 1024 * 1024;

function job(more: Partial<JobView> = {}): JobView {
  return {
    device: "j",
    type: "stream",
    status: "running",
    offset: 0,
    len: 4 * MiB,
    speed: 0,
    paused: false,
    "io-status": "ok",
    ...more,
  };
}

/** A daemon with one job, whose state the test sets, and a clock that the test moves. */
class Stage implements QmpConnection {
  jobs: JobView[] = [job()];
  readonly clock = new ManualClock();
  shown = "";
  interrupt: (() => void) | undefined;
  #listener: ((event: QmpEvent) => void) | undefined;

  async execute(command: string): Promise<unknown> {
    expect(command).toBe("query-block-jobs");
    return this.jobs;
  }

  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listener = listener;
    return () => {
      this.#listener = undefined;
    };
  }

  tell(name: string, data: Record<string, unknown>): void {
    this.#listener?.({ name, data: { device: "j", ...data }, atMs: 0 });
  }

  watch(more: { interactive?: boolean; json?: boolean } = {}, start = async () => {}): Promise<JobEnd> {
    const terminal: Terminal = {
      out: (text) => {
        this.shown += text;
      },
      err: () => {},
      interactive: more.interactive === true,
      columns: 60,
    };
    const settings: WatchSettings = {
      client: this,
      id: "j",
      label: "into E",
      terminal,
      clock: this.clock,
      json: more.json === true,
      onInterrupt: (callback) => {
        this.interrupt = callback;
        return () => {
          this.interrupt = undefined;
        };
      },
    };
    return watchJob(settings, start);
  }

  /** Lets everything run that can, then moves the time on. */
  async advance(ms: number): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    this.clock.advance(ms);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

it("writes a line per second where nobody watches, and how it ended", async () => {
  const stage = new Stage();
  const ended = stage.watch();
  await stage.advance(1000);
  stage.jobs = [job({ offset: 2 * MiB })];
  await stage.advance(1000);
  stage.tell("BLOCK_JOB_COMPLETED", { offset: 4 * MiB, len: 4 * MiB });
  expect(await ended).toEqual({ result: "completed", done: 4 * MiB });
  expect(stage.shown).toBe(
    "into E  0%  0 B of 4 MiB\n" +
      "into E  0%  0 B of 4 MiB\n" +
      "into E  50%  2 MiB of 4 MiB  1 MiB/s  0:02 left\n" +
      "into E  done: 4 MiB\n",
  );
});

it("draws over the line at a terminal", async () => {
  const stage = new Stage();
  const ended = stage.watch({ interactive: true });
  await stage.advance(200);
  stage.tell("BLOCK_JOB_COMPLETED", { offset: 4 * MiB });
  await ended;
  const frames = stage.shown.split("\r");
  const last = frames.at(-1);
  expect(frames[1]).toMatch(/^into E {2}\[\.+\] {4}0%/);
  expect(last).toMatch(/100% {2}4 MiB of 4 MiB/);
  expect(last!.endsWith("\u001b[K\n")).toBe(true);
});

it("notices a job that ends before the command that started it is answered", async () => {
  const stage = new Stage();
  stage.jobs = [];
  const ended = stage.watch({}, async () =>
    stage.tell("BLOCK_JOB_COMPLETED", { offset: 0, error: "disk full" }),
  );
  expect(await ended).toEqual({ result: "failed", error: "disk full", done: 0 });
});

it("does not wait for ever for a job that is gone", async () => {
  const stage = new Stage();
  stage.jobs = [];
  const ended = stage.watch();
  const refused = expect(ended).rejects.toMatchObject({ code: "JOB_NOT_FOUND" });
  await stage.advance(1000);
  await refused;
});

it("leaves the job alone at Ctrl-C", async () => {
  const stage = new Stage();
  const ended = stage.watch();
  await stage.advance(0);
  stage.interrupt?.();
  expect((await ended).result).toBe("unwatched");
});

it("tells of a cancelled job, a paused one, and one that an error stopped", async () => {
  const stage = new Stage();
  stage.jobs = [job({ paused: true, status: "paused" })];
  const ended = stage.watch();
  await stage.advance(1000);
  stage.jobs = [job({ paused: true, status: "paused", "io-status": "nospace" })];
  await stage.advance(1000);
  stage.tell("BLOCK_JOB_CANCELLED", { offset: MiB });
  expect((await ended).result).toBe("cancelled");
  const lines = stage.shown.trimEnd().split("\n");
  expect(lines.at(0)).toBe("into E  0%  0 B of 4 MiB  paused");
  expect(lines.at(-2)).toBe(
    "into E  0%  0 B of 4 MiB  stopped by an error (nospace): 'strata jobs resume j'",
  );
  expect(lines.at(-1)).toBe("into E  25%  1 MiB of 4 MiB  cancelled");
});

it("writes JSON objects for programs", async () => {
  const stage = new Stage();
  const ended = stage.watch({ json: true });
  await stage.advance(1000);
  stage.tell("BLOCK_JOB_COMPLETED", { offset: 4 * MiB });
  await ended;
  const records = stage.shown
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  expect(records[0]).toEqual({
    id: "j",
    type: "stream",
    status: "running",
    offset: 0,
    len: 4 * MiB,
    percent: 0,
    speed: 0,
    "bytes-per-second": 0,
    "seconds-left": null,
  });
  expect(records.at(-1)).toEqual({ id: "j", result: "completed", offset: 4 * MiB });
});

it("finds the only job, or says what there is", () => {
  expect(findJob([job()], undefined).device).toBe("j");
  expect(() => findJob([], undefined)).toThrow("which job? there are none");
  expect(() => findJob([job()], "k")).toThrow("no job is called 'k': there are j");
});

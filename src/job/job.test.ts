import { describe, expect, it } from "vitest";
import { ManualClock } from "../base/clock.ts";
import { BlockError } from "../base/errors.ts";
import { rest } from "../block/testing/scheduler.ts";
import { Job, type JobErrorAction, type JobSettings } from "./job.ts";
import { JobManager } from "./manager.ts";

/** A job that does what the test tells it: it stands at a gate in `run`, `prepare` and `clean`. */
class PuppetJob extends Job {
  override readonly type = "puppet";
  override readonly hasNothingToDo = false;
  readonly done: string[] = [];
  readonly #gates = new Map<string, () => void>();
  holdAt = "";
  failAt = "";

  protected override async run(): Promise<void> {
    await this.#at("run");
    await this.checkpoint();
    await this.#at("late");
  }
  protected override prepare(): Promise<void> {
    return this.#at("prepare");
  }
  protected override clean(): Promise<void> {
    return this.#at("clean");
  }

  tell(action: JobErrorAction, noSpace = false): void {
    this.reportError(action, "read", noSpace);
  }

  /** Lets the job go on from where it is held. */
  async release(): Promise<void> {
    this.holdAt = "";
    for (const go of this.#gates.values()) go();
    this.#gates.clear();
    await rest();
  }

  async #at(place: string): Promise<void> {
    this.done.push(place);
    if (this.holdAt === place) await new Promise<void>((go) => this.#gates.set(place, go));
    if (this.failAt === place) throw new BlockError("EIO", `failed in ${place}`);
  }
}

function setUp(settings: Partial<JobSettings> & { holdAt?: string; failAt?: string } = {}) {
  const events: string[] = [];
  const full: [string, Record<string, unknown>][] = [];
  const manager = new JobManager((event, data) => {
    full.push([event, data]);
    events.push(event === "JOB_STATUS_CHANGE" ? String(data["status"]) : event);
  });
  const job = new PuppetJob(
    { id: "job0", autoFinalize: true, autoDismiss: true, speed: 0, ...settings },
    manager,
    new ManualClock(),
  );
  job.holdAt = settings.holdAt ?? "";
  job.failAt = settings.failAt ?? "";
  manager.start(job);
  return { job, manager, events, full };
}

describe("the order of events", () => {
  it("of a job that completes", async () => {
    const { job, manager, events, full } = setUp();
    expect(events).toEqual(["created", "running"]);
    await job.concluded;
    expect(events).toEqual([
      "created",
      "running",
      "waiting",
      "pending",
      "BLOCK_JOB_COMPLETED",
      "concluded",
      "null",
    ]);
    expect(job.done).toEqual(["run", "late", "prepare", "clean"]);
    expect(manager.jobs).toEqual([]);
    expect(full.find(([event]) => event === "BLOCK_JOB_COMPLETED")![1]).toEqual({
      type: "puppet",
      device: "job0",
      len: 0,
      offset: 0,
      speed: 0,
    });
  });

  it("of one that is finalized and dismissed by hand", async () => {
    const { job, manager, events, full } = setUp({ autoFinalize: false, autoDismiss: false });
    await rest();
    expect(events).toEqual(["created", "running", "waiting", "pending", "BLOCK_JOB_PENDING"]);
    expect(full.at(-1)![1]).toEqual({ type: "puppet", id: "job0" });
    expect(job.done).toEqual(["run", "late"]);
    job.finalize();
    await job.concluded;
    expect(events.slice(5)).toEqual(["BLOCK_JOB_COMPLETED", "concluded"]);
    expect(manager.find("job0")).toBe(job);
    job.dismiss();
    expect(events.slice(7)).toEqual(["null"]);
    expect(manager.find("job0")).toBeUndefined();
  });

  it.each([
    ["run", ["running", "aborting"], ["run", "clean"]],
    ["prepare", ["waiting", "pending", "aborting"], ["run", "late", "prepare", "clean"]],
  ])("of one that fails in %s", async (failAt, moves, done) => {
    const { job, events, full } = setUp({ failAt, autoDismiss: false });
    await job.concluded;
    expect(events.slice(-moves.length - 2)).toEqual([...moves, "BLOCK_JOB_COMPLETED", "concluded"]);
    expect(full.find(([event]) => event === "BLOCK_JOB_COMPLETED")![1]["error"]).toBe(`failed in ${failAt}`);
    expect([job.error, job.done]).toEqual([`failed in ${failAt}`, done]);
  });

  it("of one whose cleaning fails: it has happened, and the error is told", async () => {
    const { job, events, full } = setUp({ failAt: "clean", autoDismiss: false });
    await job.concluded;
    expect(events.slice(2)).toEqual(["waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded"]);
    expect(full.find(([event]) => event === "BLOCK_JOB_COMPLETED")![1]["error"]).toBe("failed in clean");
    expect(job.error).toBe("failed in clean");
  });

  it("of one that is cancelled at its work", async () => {
    const { job, events } = setUp({ holdAt: "run", autoDismiss: false });
    await rest();
    job.cancel();
    expect(job.error).toBeUndefined();
    await job.release();
    await job.concluded;
    expect(events.slice(2)).toEqual(["aborting", "BLOCK_JOB_CANCELLED", "concluded"]);
    expect(job.done).toEqual(["run", "clean"]);
    expect(job.error).toBe("Operation canceled");
  });
});

describe("pause and resume", () => {
  it("stand still at a checkpoint, and tell of it", async () => {
    const { job, events } = setUp({ holdAt: "run" });
    await rest();
    job.pause();
    expect([job.paused, job.busy, job.status]).toEqual([true, true, "running"]);
    expect(() => job.pause()).toThrow("Job is already paused");
    await job.release();
    expect([job.paused, job.busy, job.status]).toEqual([true, false, "paused"]);
    expect(job.done).toEqual(["run"]);
    job.resume();
    await job.concluded;
    expect(events.slice(2, 4)).toEqual(["paused", "running"]);
    expect(job.done).toEqual(["run", "late", "prepare", "clean"]);
  });

  it("before the work has begun keep it from beginning", async () => {
    const { job } = setUp();
    job.pause();
    await rest();
    expect([job.status, job.done]).toEqual(["paused", []]);
    job.resume();
    await job.concluded;
    expect(job.done).toContain("prepare");
  });

  it("a pause that is taken back in time is no pause", async () => {
    const { job, events } = setUp({ holdAt: "run" });
    await rest();
    job.pause();
    job.resume();
    expect(() => job.resume()).toThrow("Can't resume a job that was not paused");
    await job.release();
    await job.concluded;
    expect(events).not.toContain("paused");
  });

  it("a pause after the last checkpoint does not keep the job from ending", async () => {
    const { job } = setUp({ holdAt: "late" });
    await rest();
    job.pause();
    await job.release();
    await job.concluded;
    expect(job.status).toBe("null");
  });
});

describe("an error that the policy stops for", () => {
  it("pauses as a user would, until a user resumes", async () => {
    const { job, full } = setUp({ holdAt: "run" });
    await rest();
    job.tell("stop", true);
    expect(full.at(-1)).toEqual(["BLOCK_JOB_ERROR", { device: "job0", operation: "read", action: "stop" }]);
    expect([job.paused, job.ioStatus]).toEqual([true, "nospace"]);
    job.tell("stop", false);
    expect(job.ioStatus).toBe("nospace");
    await job.release();
    expect(job.status).toBe("paused");
    job.resume();
    expect(job.ioStatus).toBe("ok");
    await job.concluded;
    expect(job.done).toContain("prepare");
  });

  it.each(["report", "ignore"] as const)("'%s' only tells", async (action) => {
    const { job } = setUp({ holdAt: "run" });
    await rest();
    job.tell(action);
    expect([job.paused, job.ioStatus]).toEqual([false, "ok"]);
    await job.release();
    await job.concluded;
  });
});

describe("cancel in every state", () => {
  const CANCELLED = ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"];

  it("running, before the work has begun", async () => {
    const { job, events } = setUp();
    job.cancel();
    await job.concluded;
    expect(events.slice(2)).toEqual(CANCELLED);
    expect(job.done).toEqual(["clean"]);
  });

  it("paused: it goes back to running, as QEMU's does, and ends", async () => {
    const { job, events } = setUp({ holdAt: "run" });
    await rest();
    job.pause();
    await job.release();
    expect(job.status).toBe("paused");
    job.cancel();
    await job.concluded;
    expect(events.slice(2)).toEqual(["paused", "running", ...CANCELLED]);
  });

  it("at its work, though the work itself fails then: the error is told", async () => {
    const { job, full } = setUp({ holdAt: "run", failAt: "run" });
    await rest();
    job.cancel();
    await job.release();
    await job.concluded;
    expect(full.find(([event]) => event === "BLOCK_JOB_COMPLETED")![1]["error"]).toBe("failed in run");
  });

  it("past the last checkpoint of the work", async () => {
    const { job, events } = setUp({ holdAt: "late" });
    await rest();
    job.cancel();
    await job.release();
    await job.concluded;
    expect(events.slice(2)).toEqual(CANCELLED);
    expect(job.done).not.toContain("prepare");
  });

  it("pending: nothing is prepared", async () => {
    const { job, events } = setUp({ autoFinalize: false });
    await rest();
    job.cancel();
    await job.concluded;
    expect(events.slice(5)).toEqual(CANCELLED);
    expect(job.done).toEqual(["run", "late", "clean"]);
  });

  it("pending, twice, and then finalized: the second ones find it gone", async () => {
    const { job, events } = setUp({ autoFinalize: false, holdAt: "clean" });
    await rest();
    job.cancel();
    expect(job.status).toBe("aborting");
    expect(() => job.cancel()).toThrow("in state 'aborting' cannot accept command verb 'cancel'");
    expect(() => job.finalize()).toThrow("in state 'aborting' cannot accept command verb 'finalize'");
    await job.release();
    await job.concluded;
    expect(events.filter((event) => event === "BLOCK_JOB_CANCELLED")).toHaveLength(1);
    expect(job.done.filter((step) => step === "clean")).toHaveLength(1);
  });

  it.each(["prepare", "clean"])("while finalizing, in %s: it ends as completed", async (holdAt) => {
    const { job, events } = setUp({ holdAt, autoFinalize: false });
    await rest();
    job.finalize();
    await rest();
    expect(job.status).toBe("pending");
    job.cancel();
    job.finalize();
    await job.release();
    await job.concluded;
    expect(events.slice(5)).toEqual(["BLOCK_JOB_COMPLETED", "concluded", "null"]);
    expect(job.done).toEqual(["run", "late", "prepare", "clean"]);
    expect(job.isCancelled).toBe(false);
  });

  it("concluded: refused in QEMU's words", async () => {
    const { job } = setUp({ autoDismiss: false });
    await job.concluded;
    expect(() => job.cancel()).toThrow("Job 'job0' in state 'concluded' cannot accept command verb 'cancel'");
    expect(() => job.pause()).toThrow("Job 'job0' in state 'concluded' cannot accept command verb 'pause'");
    expect(() => job.setSpeed(1)).toThrow("cannot accept command verb 'set-speed'");
    expect(() => job.complete()).toThrow("cannot accept command verb 'complete'");
    expect(() => job.resume()).toThrow("Can't resume a job that was not paused");
  });
});

describe("speed", () => {
  it("is set while the job is under way, however large", async () => {
    const { job } = setUp({ speed: 5, holdAt: "run" });
    expect(job.speed).toBe(5);
    for (const good of [100, 2 ** 53, 2 ** 63]) {
      job.setSpeed(good);
      expect(job.speed).toBe(good);
    }
    for (const bad of [-1, Number.NaN]) {
      expect(() => job.setSpeed(bad)).toThrow("Parameter 'speed' expects a non-negative value");
    }
    await rest();
    await job.release();
  });
});

describe("the manager", () => {
  it.each(["", "1a", "a b", "_x", "#block"])("refuses the id '%s'", (id) => {
    expect(() => new JobManager(() => {}).checkId(id)).toThrow(`Invalid job ID '${id}'`);
  });

  it("refuses an id until its job is dismissed", async () => {
    const { job, manager } = setUp({ autoDismiss: false });
    expect(() => manager.checkId("job0")).toThrow("Job ID 'job0' already in use");
    await job.concluded;
    expect(() => manager.checkId("job0")).toThrow("Job ID 'job0' already in use");
    job.dismiss();
    expect(() => manager.checkId("job0")).not.toThrow();
  });

  it("cancels everything, in whatever state, and waits for the end", async () => {
    const ends: string[] = [];
    const manager = new JobManager((event, data) => {
      if (event !== "JOB_STATUS_CHANGE") ends.push(`${event} ${String(data["device"])}`);
    });
    const start = (id: string, settings: Partial<JobSettings>, holdAt = "") => {
      const all = { id, autoFinalize: true, autoDismiss: true, speed: 0, ...settings };
      const job = new PuppetJob(all, manager, new ManualClock());
      job.holdAt = holdAt;
      manager.start(job);
      return job;
    };
    const working = start("working", {}, "run");
    const paused = start("paused", {});
    paused.pause();
    start("pending", { autoFinalize: false });
    start("concluded", { autoDismiss: false });
    const finishing = start("finishing", {}, "prepare");
    await rest();
    let over = false;
    const all = manager.cancelAll().then(() => {
      over = true;
    });
    await rest();
    expect(over).toBe(false);
    await working.release();
    await finishing.release();
    await all;
    expect(ends.sort()).toEqual([
      "BLOCK_JOB_CANCELLED paused",
      "BLOCK_JOB_CANCELLED pending",
      "BLOCK_JOB_CANCELLED working",
      "BLOCK_JOB_COMPLETED concluded",
      "BLOCK_JOB_COMPLETED finishing",
      "BLOCK_JOB_PENDING undefined",
    ]);
    expect(manager.jobs.map((job) => job.id)).toEqual(["concluded"]);
  });
});

// A background operation: its status, what users ask of it, and how it ends.
//
//   run()      the work; asks `checkpoint` often: there it pauses, and there a cancelled job leaves
//   prepare()  the one change of the graph, when the job is finalized; an error here still fails the job
//   clean()    gives back what the job held, however it ended; runs exactly once
//
//   1. Status moves by the table in states.ts alone, and every move is told to the listener.
//   2. A cancelled job never prepares. A job that failed, or that ignored an error, never prepares.
//   3. The end: waiting, pending, (finalize) prepare, clean, BLOCK_JOB_COMPLETED, concluded, (dismiss) null.

import type { Clock } from "../base/clock.ts";
import { BlockError, errorMessage } from "../base/errors.ts";
import { RateLimit } from "./rate-limit.ts";
import type { JobStatus } from "./states.ts";
import { assertMove, checkVerb } from "./states.ts";

/** What a job tells while it lives; names and members are those of QMP's events. */
export interface JobListener {
  statusChanged(job: Job): void;
  /** BLOCK_JOB_COMPLETED, BLOCK_JOB_CANCELLED, BLOCK_JOB_ERROR, BLOCK_JOB_PENDING, BLOCK_JOB_READY */
  event(name: string, data: Record<string, unknown>): void;
}

export interface JobSettings {
  readonly id: string;
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
  /** Bytes per second; 0: no limit. */
  readonly speed: number;
}

export type JobErrorAction = "report" | "ignore" | "stop";

export abstract class Job {
  readonly id: string;
  abstract readonly type: string;
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
  /** Bytes done, and bytes that there are to do in all as far as is known. */
  offset = 0;
  length = 0;
  ioStatus: "ok" | "failed" | "nospace" = "ok";

  protected readonly clock: Clock;
  protected readonly limit: RateLimit;
  readonly #listener: JobListener;
  #status: JobStatus = "undefined";
  #pauses = 0;
  #userPaused = false;
  #busy = false;
  #cancelled = false;
  #error: unknown;
  #wake: (() => void) | undefined;
  #ended!: () => void;
  /** Settles when the job is concluded; never rejects. */
  readonly concluded: Promise<void>;

  constructor(settings: JobSettings, listener: JobListener, clock: Clock) {
    this.id = settings.id;
    this.autoFinalize = settings.autoFinalize;
    this.autoDismiss = settings.autoDismiss;
    this.#listener = listener;
    this.clock = clock;
    this.limit = new RateLimit(clock);
    this.limit.setSpeed(settings.speed);
    this.concluded = new Promise((resolve) => {
      this.#ended = resolve;
    });
  }

  protected abstract run(): Promise<void>;
  protected abstract prepare(): Promise<void>;
  protected abstract clean(): Promise<void>;
  /** Known before the start: the command that makes such a job answers when it has ended. */
  abstract readonly hasNothingToDo: boolean;

  get status(): JobStatus {
    return this.#status;
  }

  get busy(): boolean {
    return this.#busy;
  }

  get paused(): boolean {
    return this.#pauses > 0;
  }

  get speed(): number {
    return this.limit.bytesPerSecond;
  }

  get isCancelled(): boolean {
    return this.#cancelled;
  }

  /** Why it failed, for people; undefined while all is well. */
  get error(): string | undefined {
    if (this.#error !== undefined) return errorMessage(this.#error);
    return this.#cancelled && this.#status === "concluded" ? "Operation canceled" : undefined;
  }

  // --- verbs -------------------------------------------------------------------------------------

  /** Gives back what a job holds that is not to be started. */
  abandon(): Promise<void> {
    return this.#clean();
  }

  start(): void {
    this.#move("created");
    this.#busy = true;
    this.#move("running");
    void this.#live();
  }

  pause(): void {
    checkVerb(this.id, this.#status, "pause");
    if (this.#userPaused) throw new BlockError("EINVAL", "Job is already paused");
    this.#userPaused = true;
    this.#pauses++;
    this.limit.wake();
  }

  resume(): void {
    if (!this.#userPaused) throw new BlockError("EINVAL", "Can't resume a job that was not paused");
    checkVerb(this.id, this.#status, "resume");
    this.ioStatus = "ok";
    this.#userPaused = false;
    this.#pauses--;
    this.#wakeUp();
  }

  setSpeed(bytesPerSecond: number): void {
    checkVerb(this.id, this.#status, "set-speed");
    if (!(bytesPerSecond >= 0)) {
      throw new BlockError("EINVAL", "Parameter 'speed' expects a non-negative value");
    }
    this.limit.setSpeed(bytesPerSecond);
  }

  cancel(): void {
    checkVerb(this.id, this.#status, "cancel");
    // Past its commit point a job ends as completed: nothing is half done.
    if (this.#finishing !== undefined) return;
    this.#cancelled = true;
    if (this.#status === "pending") {
      void this.#finish();
      return;
    }
    this.limit.wake();
    this.#wakeUp();
  }

  complete(): void {
    checkVerb(this.id, this.#status, "complete");
    throw new BlockError("EINVAL", `The active block job '${this.id}' cannot be completed`);
  }

  finalize(): void {
    checkVerb(this.id, this.#status, "finalize");
    void this.#finish();
  }

  dismiss(): void {
    checkVerb(this.id, this.#status, "dismiss");
    this.#move("null");
  }

  // --- for the work ------------------------------------------------------------------------------

  /** Whether the work should come to its checkpoint: a pause or a cancel waits there. */
  protected get isAskedToStop(): boolean {
    return this.#cancelled || this.#pauses > 0;
  }

  /**
   * Where the work stands still: waits out a pause. Nothing of the job may be in flight. @throws when
   * cancelled
   */
  protected async checkpoint(): Promise<void> {
    while (this.#pauses > 0 && !this.#cancelled) {
      const before = this.#status;
      this.#busy = false;
      this.#move(before === "ready" ? "standby" : "paused");
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#busy = true;
      this.#move(before);
    }
    if (this.#cancelled) throw new JobCancelled();
  }

  /** Tells of an error and does what the policy says; `stop` pauses as a user would. */
  protected reportError(action: JobErrorAction, operation: "read" | "write", noSpace: boolean): void {
    this.#listener.event("BLOCK_JOB_ERROR", { device: this.id, operation, action });
    if (action !== "stop") return;
    if (!this.#userPaused) {
      this.#userPaused = true;
      this.#pauses++;
    }
    if (this.ioStatus === "ok") this.ioStatus = noSpace ? "nospace" : "failed";
  }

  // --- life --------------------------------------------------------------------------------------

  async #live(): Promise<void> {
    try {
      // The answer to the command that made the job goes out before anything that the job does.
      await this.clock.turn();
      await this.checkpoint();
      await this.run();
      await this.#leave();
    } catch (error) {
      if (!(error instanceof JobCancelled)) this.#error = error;
      else this.#cancelled = true;
      await this.#fail();
    }
  }

  /** The work is done. A pause that was asked for meanwhile has no place any more. */
  async #leave(): Promise<void> {
    if (this.#cancelled) throw new JobCancelled();
    this.#busy = false;
    this.#move("waiting");
    this.#move("pending");
    if (this.autoFinalize) return this.#finish();
    this.#listener.event("BLOCK_JOB_PENDING", { type: this.type, id: this.id });
  }

  #finishing: Promise<void> | undefined;

  #finish(): Promise<void> {
    this.#finishing ??= this.#doFinish();
    return this.#finishing;
  }

  async #doFinish(): Promise<void> {
    if (!this.#cancelled) {
      try {
        await this.prepare();
      } catch (error) {
        this.#error = error;
      }
    }
    if (this.#cancelled || this.#error !== undefined) return this.#fail();
    await this.#clean();
    this.#tellCompleted();
    this.#conclude();
  }

  async #fail(): Promise<void> {
    this.#busy = false;
    if (this.#status !== "aborting") this.#move("aborting");
    await this.#clean();
    if (this.#error === undefined) this.#listener.event("BLOCK_JOB_CANCELLED", this.#summary());
    else this.#tellCompleted();
    this.#conclude();
  }

  #tellCompleted(): void {
    const error = this.#error === undefined ? {} : { error: this.error };
    this.#listener.event("BLOCK_JOB_COMPLETED", { ...this.#summary(), ...error });
  }

  async #clean(): Promise<void> {
    try {
      await this.clean();
    } catch (error) {
      this.#error ??= error;
    }
  }

  #summary(): Record<string, unknown> {
    return { type: this.type, device: this.id, len: this.length, offset: this.offset, speed: this.speed };
  }

  #conclude(): void {
    this.#move("concluded");
    if (this.autoDismiss) this.#move("null");
    this.#ended();
  }

  #move(to: JobStatus): void {
    assertMove(this.#status, to);
    this.#status = to;
    this.#listener.statusChanged(this);
  }

  #wakeUp(): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
  }
}

/** Thrown through the work of a cancelled job. */
class JobCancelled extends Error {}

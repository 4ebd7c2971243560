import { BlockError } from "../base/errors.ts";
import type { Job, JobListener } from "./job.ts";

/** Jobs by id. A job is found from its start until it is dismissed. */
export class JobManager implements JobListener {
  readonly #jobs = new Map<string, Job>();
  readonly #emit: (event: string, data: Record<string, unknown>) => void;

  /** `emit` gets QMP events in the order in which they happen. */
  constructor(emit: (event: string, data: Record<string, unknown>) => void) {
    this.#emit = emit;
  }

  /** Oldest first. */
  get jobs(): Job[] {
    return [...this.#jobs.values()];
  }

  find(id: string): Job | undefined {
    return this.#jobs.get(id);
  }

  /** @throws BlockError EINVAL, EEXIST in QEMU's words */
  checkId(id: string): void {
    if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(id)) throw new BlockError("EINVAL", `Invalid job ID '${id}'`);
    if (this.#jobs.has(id)) throw new BlockError("EEXIST", `Job ID '${id}' already in use`);
  }

  /**
   * Starts a job. One whose id was taken while it was being made gives back what it holds. @throws as checkId
   */
  start(job: Job): void {
    try {
      this.checkId(job.id);
    } catch (error) {
      void job.abandon();
      throw error;
    }
    this.#jobs.set(job.id, job);
    job.start();
  }

  statusChanged(job: Job): void {
    if (job.status === "null") this.#jobs.delete(job.id);
    this.#emit("JOB_STATUS_CHANGE", { id: job.id, status: job.status });
  }

  event(name: string, data: Record<string, unknown>): void {
    this.#emit(name, data);
  }

  /** Cancels everything and waits until it has ended: before the daemon stops. */
  async cancelAll(): Promise<void> {
    const ending = this.jobs.map(async (job) => {
      try {
        job.cancel();
      } catch {
        // It is past the point where it can be cancelled: it ends by itself.
      }
      await job.concluded;
    });
    await Promise.all(ending);
  }
}

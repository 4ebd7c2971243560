import type { Clock } from "../base/clock.ts";
import { Job, type JobListener } from "../job/job.ts";

/** Makes an image: one step, one unit of progress; concluded, it waits to be dismissed. */
export class CreateJob extends Job {
  override readonly type = "create";
  readonly #create: () => Promise<void>;

  constructor(id: string, create: () => Promise<void>, listener: JobListener, clock: Clock) {
    super({ id, autoFinalize: true, autoDismiss: false, speed: 0 }, statusOnly(listener), clock);
    this.#create = create;
    this.length = 1;
  }

  override get hasNothingToDo(): boolean {
    return false;
  }

  protected override async run(): Promise<void> {
    // The reference counts the step as done however it ended.
    this.offset = 1;
    await this.#create();
  }

  protected override async prepare(): Promise<void> {}

  protected override async clean(): Promise<void> {}
}

/** Events of block jobs are not for a job that has no disk. */
function statusOnly(listener: JobListener): JobListener {
  return { statusChanged: (job) => listener.statusChanged(job), event() {} };
}

// Verbs and queries of jobs, in both of QEMU's spellings: job-* for all jobs, block-job-* for those that have
// a disk.

import { BlockError } from "../../base/errors.ts";
import type { Job } from "../../job/job.ts";
import { type Command, command } from "../command.ts";
import type { Daemon } from "../daemon.ts";
import { blockJobInfo, jobInfo } from "../qapi/results.ts";
import { array, bool, empty, int, str, struct } from "../qapi/types.ts";

/** @throws BlockError JOB_NOT_FOUND in QEMU's words */
export function findJob(daemon: Daemon, id: string): Job {
  const job = daemon.jobs.find(id);
  if (job === undefined) throw new BlockError("JOB_NOT_FOUND", "Job not found");
  return job;
}

/** Jobs that block-job-* may not name: they hold no disk. */
const PLAIN_TYPES: readonly string[] = ["create"];

/** @throws BlockError JOB_NOT_ACTIVE in QEMU's words */
export function findBlockJob(daemon: Daemon, id: string): Job {
  const job = daemon.jobs.find(id);
  if (job === undefined || PLAIN_TYPES.includes(job.type)) {
    throw new BlockError("JOB_NOT_ACTIVE", `Block job '${id}' not found`);
  }
  return job;
}

export function blockJobs(daemon: Daemon): Job[] {
  return daemon.jobs.jobs.filter((job) => !PLAIN_TYPES.includes(job.type));
}

/** A job that stands still ends before the answer, as in the reference; one that works ends when it can. */
function cancelJob(job: Job): Promise<void> | undefined {
  const standsStill = job.status === "paused" || job.status === "pending";
  job.cancel();
  return standsStill ? job.concluded : undefined;
}

/** The answer comes after the job's change and its events, as in the reference. */
function finalizeJob(job: Job): Promise<void> {
  job.finalize();
  return job.concluded;
}

/** Cancels as block-job-cancel does: a job that a user paused wants to be resumed or forced. */
export function cancelBlockJob(job: Job, force: boolean): Promise<void> | undefined {
  if (job.paused && job.status === "paused" && !force) {
    throw new BlockError("EINVAL", `The block job for device '${job.id}' is currently paused`);
  }
  return cancelJob(job);
}

const byId = struct("JobArguments", "", { id: str });
const byDevice = struct("BlockJobArguments", "", { device: str });

function jobVerb(verb: string, doc: string, run: (job: Job) => unknown): Command {
  return command({ name: `job-${verb}`, doc, data: byId, run: (daemon, { id }) => run(findJob(daemon, id)) });
}

function blockJobVerb(verb: string, doc: string, run: (job: Job) => unknown): Command {
  return command({
    name: `block-job-${verb}`,
    doc,
    data: byDevice,
    run: (daemon, { device }) => run(findBlockJob(daemon, device)),
  });
}

function blockJobVerbById(verb: string, doc: string, run: (job: Job) => unknown): Command {
  return command({
    name: `block-job-${verb}`,
    doc,
    data: byId,
    run: (daemon, { id }) => run(findBlockJob(daemon, id)),
  });
}

function describeJob(job: Job): Record<string, unknown> {
  return {
    id: job.id,
    type: job.type,
    status: job.status,
    "current-progress": job.offset,
    "total-progress": job.length,
    ...(job.error === undefined ? {} : { error: job.error }),
  };
}

export function describeBlockJob(job: Job): Record<string, unknown> {
  return {
    type: job.type,
    device: job.id,
    len: job.length,
    offset: job.offset,
    busy: job.busy,
    paused: job.paused,
    speed: job.speed,
    "io-status": job.ioStatus,
    ready: job.status === "ready",
    status: job.status,
    "auto-finalize": job.autoFinalize,
    "auto-dismiss": job.autoDismiss,
    ...(job.error === undefined ? {} : { error: job.error }),
  };
}

export const JOB_COMMANDS: readonly Command[] = [
  command({
    name: "query-jobs",
    doc: "Lists all jobs.",
    data: empty,
    returns: array(jobInfo),
    run: (daemon) => daemon.jobs.jobs.map(describeJob),
  }),
  command({
    name: "query-block-jobs",
    doc: "Lists jobs that have a disk.",
    data: empty,
    returns: array(blockJobInfo),
    run: (daemon) => blockJobs(daemon).map(describeBlockJob),
  }),
  jobVerb("pause", "Pauses a job; JOB_STATUS_CHANGE tells when it stands still.", (job) => job.pause()),
  jobVerb("resume", "Lets a paused job go on.", (job) => job.resume()),
  jobVerb("cancel", "Ends a job without its result.", cancelJob),
  jobVerb("complete", "Ends a job that is ready.", (job) => job.complete()),
  jobVerb("finalize", "Lets a pending job make its change.", finalizeJob),
  jobVerb("dismiss", "Forgets a concluded job.", (job) => job.dismiss()),
  command({
    name: "block-job-set-speed",
    doc: "Limits a job to a number of bytes per second; 0 is no limit.",
    data: struct("BlockJobSetSpeedArguments", "", { device: str, speed: int }),
    run: (daemon, { device, speed }) => findBlockJob(daemon, device).setSpeed(speed),
  }),
  command({
    name: "block-job-cancel",
    doc: "Ends a block job without its result; a paused one only by force.",
    data: struct("BlockJobCancelArguments", "", { device: str, "?force": bool }),
    run: (daemon, { device, force }) => cancelBlockJob(findBlockJob(daemon, device), force ?? false),
  }),
  blockJobVerb("pause", "As job-pause.", (job) => job.pause()),
  blockJobVerb("resume", "As job-resume.", (job) => job.resume()),
  blockJobVerb("complete", "As job-complete.", (job) => job.complete()),
  blockJobVerbById("finalize", "As job-finalize.", finalizeJob),
  blockJobVerbById("dismiss", "As job-dismiss.", (job) => job.dismiss()),
];

// The life of a job, as two tables: which status may follow which, and which verb is allowed in which status.
// Names and moves are those of QEMU's job API (qapi/job.json), so that its clients feel at home.
//
//   created -> running <-> paused
//                 |
//              waiting -> pending -> concluded -> null
//                 \          \          ^
//                  +-- aborting --------+

import { assert } from "../base/assert.ts";
import { BlockError } from "../base/errors.ts";

export type JobStatus =
  | "undefined"
  | "created"
  | "running"
  | "paused"
  | "ready"
  | "standby"
  | "waiting"
  | "pending"
  | "aborting"
  | "concluded"
  | "null";

export type JobVerb =
  | "cancel"
  | "pause"
  | "resume"
  | "set-speed"
  | "complete"
  | "finalize"
  | "dismiss"
  | "change";

const NEXT: Readonly<Record<JobStatus, readonly JobStatus[]>> = {
  undefined: ["created"],
  created: ["running", "aborting", "null"],
  running: ["paused", "ready", "waiting", "aborting"],
  paused: ["running"],
  ready: ["standby", "waiting", "aborting"],
  standby: ["ready"],
  waiting: ["pending", "aborting"],
  pending: ["aborting", "concluded"],
  aborting: ["aborting", "concluded"],
  concluded: ["null"],
  null: [],
};

const UNDER_WAY: readonly JobStatus[] = ["created", "running", "paused", "ready", "standby"];

const ALLOWED: Readonly<Record<JobVerb, readonly JobStatus[]>> = {
  cancel: [...UNDER_WAY, "waiting", "pending"],
  pause: UNDER_WAY,
  resume: UNDER_WAY,
  "set-speed": UNDER_WAY,
  complete: ["ready", "standby"],
  finalize: ["pending"],
  dismiss: ["concluded"],
  change: UNDER_WAY,
};

/** An illegal move is our mistake. */
export function assertMove(from: JobStatus, to: JobStatus): void {
  assert(NEXT[from].includes(to), `a job does not go from ${from} to ${to}`);
}

/** @throws BlockError EINVAL in QEMU's words when the verb has no place in this status */
export function checkVerb(id: string, status: JobStatus, verb: JobVerb): void {
  if (ALLOWED[verb].includes(status)) return;
  throw new BlockError("EINVAL", `Job '${id}' in state '${status}' cannot accept command verb '${verb}'`);
}

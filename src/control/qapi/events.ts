// The events that a monitor may send, with their members.

import { errorAction, ioOperation, jobStatus, jobType } from "./job.ts";
import { bool, int, type StructType, str, struct } from "./types.ts";

export interface EventType {
  readonly name: string;
  readonly doc: string;
  readonly data: StructType;
}

const progress = { type: jobType, device: str, len: int, offset: int, speed: int } as const;

function event(name: string, doc: string, members: Parameters<typeof struct>[2]): EventType {
  return { name, doc, data: struct(name, doc, members) as StructType };
}

export const EVENTS: readonly EventType[] = [
  event("JOB_STATUS_CHANGE", "A job's status has changed.", { id: str, status: jobStatus }),
  event("BLOCK_JOB_COMPLETED", "A block job has ended; with `error` it has failed.", {
    ...progress,
    "?error": str,
  }),
  event("BLOCK_JOB_CANCELLED", "A block job was cancelled.", progress),
  event("BLOCK_JOB_ERROR", "A block job met an error; `action` is what it does about it.", {
    device: str,
    operation: ioOperation,
    action: errorAction,
  }),
  event("BLOCK_JOB_READY", "A block job can be completed.", progress),
  event("BLOCK_JOB_PENDING", "A block job waits to be finalized.", { type: jobType, id: str }),
  event("BLOCK_IMAGE_CORRUPTED", "An image is damaged; a fatal damage makes it take no more writes.", {
    device: str,
    "?node-name": str,
    msg: str,
    "?offset": int,
    "?size": int,
    fatal: bool,
  }),
  event("BLOCK_EXPORT_DELETED", "An export is gone.", { id: str }),
];

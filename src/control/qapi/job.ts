import { enumeration } from "./types.ts";

export const jobType = enumeration("JobType", ["stream", "create"]);

export const jobStatus = enumeration("JobStatus", [
  "undefined",
  "created",
  "running",
  "paused",
  "ready",
  "standby",
  "waiting",
  "pending",
  "aborting",
  "concluded",
  "null",
]);

export const onError = enumeration("BlockdevOnError", ["report", "ignore", "enospc", "stop", "auto"]);

export const ioStatus = enumeration("BlockDeviceIoStatus", ["ok", "failed", "nospace"]);

export const ioOperation = enumeration("IoOperationType", ["read", "write"]);

export const errorAction = enumeration("BlockErrorAction", ["ignore", "report", "stop"]);

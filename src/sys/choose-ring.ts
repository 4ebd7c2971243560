import { isMainThread } from "node:worker_threads";
import { type Logger, silentLogger } from "../base/logger.ts";
import { loadKoffi } from "./load-koffi.ts";
import { openRing } from "./ring-calls.ts";
import { RingReads } from "./ring-reads.ts";

/** Reads in the kernel at a time. */
const PLACES = 256;

let chosen: RingReads | undefined;
let tried = false;

/**
 * The ring of this process, made when it is first asked for; undefined where there is none, or with
 * STRATA_NO_IO_URING=1.
 */
export function ringReads(logger: Logger = silentLogger): RingReads | undefined {
  if (tried) return chosen;
  tried = true;
  const made = make();
  if (typeof made !== "string") chosen = made;
  else logger.debug(`no io_uring (${made}): reads that wait for a disk take the thread pool`);
  return chosen;
}

function make(): RingReads | string {
  if (process.env["STRATA_NO_IO_URING"] === "1") return "STRATA_NO_IO_URING=1 is set";
  // The memory of a thread goes away when it is ended, whatever the kernel still writes there.
  if (!isMainThread) return "not the main thread";
  const koffi = loadKoffi();
  if (typeof koffi === "string") return koffi;
  // Nothing wakes the loop before `reads` is there.
  let reads: RingReads | undefined;
  const handlers = { woken: () => reads?.woken(), lost: () => reads?.lost() };
  const ring = openRing(koffi, PLACES, handlers);
  if (typeof ring === "string") return ring;
  try {
    reads = new RingReads(ring);
    return reads;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

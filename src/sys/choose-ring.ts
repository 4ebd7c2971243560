import { isMainThread } from "node:worker_threads";
import { type Logger, silentLogger } from "../base/logger.ts";
import { loadKoffi } from "./load-koffi.ts";
import { openRing } from "./ring-calls.ts";
import { RingOperations } from "./ring-operations.ts";

/** Operations in the kernel at a time. */
const PLACES = 256;

let chosen: RingOperations | undefined;
let tried = false;

/**
 * The ring of this process, made when it is first asked for; undefined where there is none, or with
 * STRATA_NO_IO_URING=1.
 */
export function hostRing(logger: Logger = silentLogger): RingOperations | undefined {
  if (tried) return chosen;
  tried = true;
  const made = make();
  if (typeof made !== "string") chosen = made;
  else logger.debug(`no io_uring (${made}): what waits for a disk takes the thread pool`);
  return chosen;
}

function make(): RingOperations | string {
  if (process.env["STRATA_NO_IO_URING"] === "1") return "STRATA_NO_IO_URING=1 is set";
  // The memory of a thread goes away when it is ended, whatever the kernel still writes there.
  if (!isMainThread) return "not the main thread";
  const koffi = loadKoffi();
  if (typeof koffi === "string") return koffi;
  // Nothing wakes the loop before `operations` is there.
  let operations: RingOperations | undefined;
  const handlers = { woken: () => operations?.woken(), lost: () => operations?.lost() };
  const ring = openRing(koffi, PLACES, handlers);
  if (typeof ring === "string") return ring;
  try {
    operations = new RingOperations(ring);
    return operations;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

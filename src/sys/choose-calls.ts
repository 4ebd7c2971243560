import type { Logger } from "../base/logger.ts";
import { silentLogger } from "../base/logger.ts";
import { loadLibc } from "./libc.ts";
import { portableCalls } from "./portable-calls.ts";
import type { SystemCalls } from "./system-calls.ts";

let chosen: SystemCalls | undefined;

/**
 * The calls of this process: the C library's, or node:fs's where that cannot be loaded or STRATA_NO_FFI=1 is
 * set. Says so once in the log when it is the latter.
 */
export function systemCalls(logger: Logger = silentLogger): SystemCalls {
  if (chosen !== undefined) return chosen;
  const libc = loadLibc();
  if (typeof libc !== "string") chosen = libc;
  else {
    chosen = portableCalls;
    logger.warn(
      `no system calls beyond Node's (${libc}): images are not locked, holes are not punched ` +
        "and cached reads take the thread pool",
    );
  }
  return chosen;
}

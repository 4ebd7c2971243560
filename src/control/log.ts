import pino from "pino";
import type { Logger } from "../base/logger.ts";

/**
 * The log of the programs: one line each on standard error; warnings and errors, unless more is asked for.
 */
export function createLogger(verbose: boolean): Logger {
  const log = pino({ level: verbose ? "debug" : "warn" }, pino.destination({ dest: 2, sync: true }));
  return {
    debug: (message) => log.debug(message),
    info: (message) => log.info(message),
    warn: (message) => log.warn(message),
    error: (message) => log.error(message),
  };
}

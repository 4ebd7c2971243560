import pino from "pino";
import type { Logger } from "../base/logger.ts";

/**
 * The log of the programs on standard error: warnings and errors, unless more is asked for. A person at a
 * terminal gets a sentence, everybody else one JSON object a line.
 */
export function createLogger(verbose: boolean): Logger {
  const destination = process.stderr.isTTY === true ? sentences : pino.destination({ dest: 2, sync: true });
  const log = pino({ level: verbose ? "debug" : "warn" }, destination);
  return {
    debug: (message) => log.debug(message),
    info: (message) => log.info(message),
    warn: (message) => log.warn(message),
    error: (message) => log.error(message),
  };
}

const sentences = {
  write(line: string): void {
    process.stderr.write(sentenceOf(line));
  },
};

/** What a line of the log says, for people. */
export function sentenceOf(line: string): string {
  const { level, msg } = JSON.parse(line) as { level: number; msg: string };
  const word = pino.levels.labels[level] === "warn" ? "warning" : pino.levels.labels[level];
  return `strata: ${word}: ${msg}\n`;
}

// Failed requests, told to whoever runs the server: the guest only gets an errno.
//
//   1. Each kind (export, command, code) is told when it appears, and then once per PAUSE_MS with the number
//      of those left out: a broken disk fails thousands of requests per second.
//   2. What is not a BlockError is a mistake of ours: told as an error, with its stack.
//   3. "Not supported" is an answer, not a failure.

import type { Clock } from "../src/base/clock.ts";
import { BlockError, errorCode, errorMessage } from "../src/base/errors.ts";
import type { Logger } from "../src/base/logger.ts";

const PAUSE_MS = 10_000;
/** Kinds that are kept; with more, the oldest is told anew when it comes again. */
const KINDS_MAX = 256;

interface Kind {
  untilMs: number;
  leftOut: number;
}

export class FailureLog {
  readonly #logger: Logger;
  readonly #clock: Clock;
  readonly #kinds = new Map<string, Kind>();

  constructor(logger: Logger, clock: Clock) {
    this.#logger = logger;
    this.#clock = clock;
  }

  /** @param request the command with its range, in words */
  tell(exportName: string, command: string, request: string, error: unknown): void {
    const code = errorCode(error);
    if (code === "ENOTSUP") return;
    const key = `${exportName}/${command}/${code}`;
    const nowMs = this.#clock.nowMs();
    const kind = this.#kinds.get(key);
    if (kind !== undefined && nowMs < kind.untilMs) {
      kind.leftOut++;
      return;
    }
    this.#keep(key, { untilMs: nowMs + PAUSE_MS, leftOut: 0 });
    const more = kind === undefined || kind.leftOut === 0 ? "" : ` (and ${kind.leftOut} like it before)`;
    const what = `NBD export '${exportName}': ${request} failed`;
    if (error instanceof BlockError) this.#logger.warn(`${what}: ${errorMessage(error)}${more}`);
    else this.#logger.error(`${what} by a mistake of this program: ${stackOf(error)}${more}`);
  }

  #keep(key: string, kind: Kind): void {
    this.#kinds.delete(key);
    this.#kinds.set(key, kind);
    if (this.#kinds.size > KINDS_MAX) this.#kinds.delete(this.#kinds.keys().next().value!);
  }
}

function stackOf(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}

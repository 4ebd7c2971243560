// What tests put before every call of a driver or host file: it may make the call wait, or fail it.

import type { Completion } from "../../base/completion.ts";
import { BlockError, type ErrorCode } from "../../base/errors.ts";

/** A call that is about to begin. */
export interface Call {
  readonly node: string;
  readonly operation: string;
  readonly offset: number;
  readonly bytes: number;
}

/** Throws, or hands up a promise, in place of an uneventful call. */
export type Before = (call: Call) => Completion;

/** Fails the n-th call (from 0) that `chosen` picks, and those after it as long as `times` says. */
export class Faults {
  readonly #chosen: (call: Call) => boolean;
  readonly #code: ErrorCode;
  #left: number;
  #times: number;
  /** Calls that were picked so far. */
  seen = 0;
  /** Calls that failed. */
  failed = 0;

  constructor(at: number, chosen: (call: Call) => boolean = () => true, code: ErrorCode = "EIO", times = 1) {
    this.#left = at;
    this.#chosen = chosen;
    this.#code = code;
    this.#times = times;
  }

  readonly before: Before = (call) => {
    if (!this.#chosen(call)) return;
    this.seen++;
    if (this.#left-- > 0 || this.#times-- <= 0) return;
    this.failed++;
    throw new BlockError(this.#code, `injected fault: ${call.operation} of '${call.node}' at ${call.offset}`);
  };
}

/** Holds the calls that `chosen` picks until it is opened. */
export class Gate {
  readonly #chosen: (call: Call) => boolean;
  #open = false;
  #held: (() => void)[] = [];
  #arrived: (() => void)[] = [];

  constructor(chosen: (call: Call) => boolean) {
    this.#chosen = chosen;
  }

  get held(): number {
    return this.#held.length;
  }

  readonly before: Before = (call) => {
    if (this.#open || !this.#chosen(call)) return;
    const waiting = new Promise<void>((go) => this.#held.push(go));
    for (const tell of this.#arrived.splice(0)) tell();
    return waiting;
  };

  /** Done when a call is held. */
  arrival(): Promise<void> {
    if (this.#held.length > 0) return Promise.resolve();
    return new Promise((resolve) => this.#arrived.push(resolve));
  }

  /** Lets those that wait and all that follow pass. */
  open(): void {
    this.#open = true;
    for (const go of this.#held.splice(0)) go();
  }
}

/** All of them, in order. */
export function inOrder(...parts: readonly Before[]): Before {
  return (call) =>
    parts.reduce<Completion>(
      (done, part) => (done === undefined ? part(call) : done.then(() => part(call))),
      undefined,
    );
}

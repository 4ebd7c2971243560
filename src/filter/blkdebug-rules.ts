// The rules of a `blkdebug` node: which request fails, and when. A table and a state, no I/O.
//
//   inject-error  event  -> the rule becomes active: requests that it fits fail
//   set-state     event  -> state := new_state
//
//   1. The state is 1 at first. A rule counts in its own state only; state 0 is any.
//   2. An event that makes rules active takes the place of those that were active before. One that makes none
//      active leaves them: a rule goes on until another event's rules follow it.
//   3. State changes of an event count after all rules of the event were looked at; the first rule wins.
//   4. Active rules are tried in their order; the first that fits decides. One with errno 0 lets the request
//      pass. One with `once` is gone after the error that it gave.

import type { DebugEvent } from "../block/debug-event.ts";

export const IO_TYPES = ["read", "write", "write-zeroes", "discard", "flush", "block-status"] as const;
export type IoType = (typeof IO_TYPES)[number];

const SECTOR_BYTES = 512;
/** Where no `iotype` is given: all but questions about the mapping. */
const DEFAULT_IO_TYPES: readonly IoType[] = ["read", "write", "write-zeroes", "discard", "flush"];

/** In QAPI's words (BlkdebugInjectErrorOptions). */
export interface InjectError {
  readonly event: DebugEvent;
  readonly state?: number;
  readonly iotype?: IoType;
  /** As this host numbers them. Default EIO. */
  readonly errno?: number;
  /** Requests that touch this sector of 512 bytes. Default, and -1: all. */
  readonly sector?: number;
  readonly once?: boolean;
  /** Fails before the call returns instead of in a later turn of the loop. */
  readonly immediately?: boolean;
}

/** In QAPI's words (BlkdebugSetStateOptions). */
export interface SetState {
  readonly event: DebugEvent;
  readonly state?: number;
  readonly new_state: number;
}

export class BlkdebugRules {
  #injections: readonly InjectError[];
  readonly #changes: readonly SetState[];
  #active: readonly InjectError[] = [];
  #state = 1;

  constructor(injections: readonly InjectError[], changes: readonly SetState[]) {
    this.#injections = injections;
    this.#changes = changes;
  }

  get state(): number {
    return this.#state;
  }

  event(event: DebugEvent): void {
    const activated = this.#injections.filter((rule) => this.#counts(rule, event));
    if (activated.length > 0) this.#active = activated;
    const change = this.#changes.find((rule) => this.#counts(rule, event));
    if (change !== undefined) this.#state = change.new_state;
  }

  /** The rule that makes this request fail. Each call stands for one request. */
  failing(type: IoType, offset: number, bytes: number): InjectError | undefined {
    const rule = this.#active.find((active) => fits(active, type, offset, bytes));
    if (rule === undefined || rule.errno === 0) return undefined;
    if (rule.once === true) {
      this.#active = this.#active.filter((active) => active !== rule);
      this.#injections = this.#injections.filter((kept) => kept !== rule);
    }
    return rule;
  }

  #counts(rule: { readonly event: DebugEvent; readonly state?: number }, event: DebugEvent): boolean {
    const state = rule.state ?? 0;
    return rule.event === event && (state === 0 || state === this.#state);
  }
}

function fits({ iotype, sector = -1 }: InjectError, type: IoType, offset: number, bytes: number): boolean {
  if (iotype === undefined ? !DEFAULT_IO_TYPES.includes(type) : iotype !== type) return false;
  if (sector === -1) return true;
  const at = sector * SECTOR_BYTES;
  return bytes > 0 && at >= offset && at < offset + bytes;
}

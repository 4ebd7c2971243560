// Lent data that was sent to a client and may not have been read yet: its pages are still the image's own.
//
//   sent so far  |-- reply --|-- lent data --|-- reply --|-- lent data --|
//                            what the client has read ^  (at the least)
//
//   1. The kernel tells how much the client has not read: at least its bytes, often more. So what was sent
//      less that has been read, and with it the lent data that ends before.
//   2. The client is looked at whenever it sends something, and now and then while it is silent. A timer for
//      that is not cancelled when nothing is lent any more: a fast client would have one made for each reply.
//   3. It may go on reading when the connection has ended, so the watch goes on too.

import type { Clock } from "../src/base/clock.ts";
import type { LentData } from "./backend.ts";

/** What the system knows of the unread bytes of a unix socket's client (as SocketWatch of the host layer). */
export interface UnreadWatch {
  /** Bytes at the least that the client has not read; 0: none. */
  unreadBytes(): number;
  /** The socket was closed: the client sees its end, though this watch goes on. */
  socketClosed(): void;
  close(): void;
}

/** The first look at a silent client; each one after it comes twice as late. */
const LOOK_MS = 10;
const LOOK_MS_MAX = 1000;

export class Unread {
  readonly #watch: UnreadWatch;
  readonly #clock: Clock;
  readonly #lent: { readonly end: number; readonly data: LentData }[] = [];
  #sent = 0;
  #lookMs = LOOK_MS;
  #cancelTimer: (() => void) | undefined;
  #socketClosed = false;

  constructor(watch: UnreadWatch, clock: Clock) {
    this.#watch = watch;
    this.#clock = clock;
  }

  /** The socket took so many bytes, the last of them lent ones if there are any. */
  sent(bytes: number, lent: LentData | undefined): void {
    this.#sent += bytes;
    if (lent === undefined) return;
    const first = this.#lent.length === 0;
    this.#lent.push({ end: this.#sent, data: lent });
    if (first && this.#lookMs > LOOK_MS) this.#stopTimer();
    if (this.#cancelTimer === undefined) this.#lookIn(LOOK_MS);
  }

  /** Lets go of what the client has read by now. */
  look(): void {
    if (this.#lent.length === 0) return;
    const read = this.#sent - this.#watch.unreadBytes();
    while (this.#lent.length > 0 && this.#lent[0]!.end <= read) this.#lent.shift()!.data.release();
    if (this.#lent.length === 0 && this.#socketClosed) this.#end();
  }

  /** The socket was closed; what the client has not read is kept for it until it has. */
  socketClosed(): void {
    this.#socketClosed = true;
    this.#watch.socketClosed();
    if (this.#lent.length === 0) this.#end();
    else this.look();
  }

  readonly #timer = () => {
    this.#cancelTimer = undefined;
    this.look();
    if (this.#lent.length > 0) this.#lookIn(Math.min(this.#lookMs * 2, LOOK_MS_MAX));
  };

  #lookIn(ms: number): void {
    this.#lookMs = ms;
    this.#cancelTimer = this.#clock.after(ms, this.#timer);
  }

  #stopTimer(): void {
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
  }

  #end(): void {
    this.#stopTimer();
    this.#watch.close();
  }
}

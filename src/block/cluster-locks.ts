// Cluster locks keep two requests from changing one cluster's entry at once. One manager stands for one
// image.
//
//   1. Exclusive: alone. Shared: many. Overlapping ranges are granted in order of arrival; nobody starves.
//   2. A caller takes its whole range in one call and holds no other cluster lock, so there is no deadlock.
//   3. A free range is granted synchronously, without a promise.
//   4. Who waits is granted when nothing held and nothing older that waits is in conflict with it.
//
//   held:    [0..3] shared   [8..9] exclusive
//   waiting: [2..8] exclusive (for both)  ->  [3..3] shared waits behind it, though only shared locks hold
//            cluster 3
//
// Everything is on one event loop: "lock" means that other requests wait, never that a thread does.

import { assert } from "../base/assert.ts";
import type { Clock } from "../base/clock.ts";
import { systemClock } from "../base/clock.ts";
import type { Completion } from "../base/completion.ts";

/** What the locks of one image have seen; times in milliseconds. */
export interface ClusterLockCounters {
  grants: number;
  waits: number;
  waitMs: number;
  longestWaitMs: number;
  longestQueue: number;
}

interface Waiter {
  readonly first: number;
  readonly end: number;
  readonly exclusive: boolean;
  readonly sinceMs: number;
  readonly grant: () => void;
}

export class ClusterLocks {
  readonly counters: ClusterLockCounters = {
    grants: 0,
    waits: 0,
    waitMs: 0,
    longestWaitMs: 0,
    longestQueue: 0,
  };
  // Held ranges [first, end), three arrays side by side: no object is made for a lock. An order of arrival is
  // not needed among the held, so a lock that is given back is overwritten by the last one. The arrays are
  // never shortened: they would be allocated anew for the next lock.
  #heldCount = 0;
  readonly #first: number[] = [];
  readonly #end: number[] = [];
  readonly #exclusive: boolean[] = [];
  #waiting: Waiter[] = [];
  readonly #clock: Clock;

  constructor(clock: Clock = systemClock) {
    this.#clock = clock;
  }

  /** Locks that are held and that are waited for; zero when nothing is going on. */
  get held(): number {
    return this.#heldCount;
  }

  get waiting(): number {
    return this.#waiting.length;
  }

  /** Takes clusters [first, first+count) together with other shared holders. */
  lockShared(first: number, count: number): Completion {
    return this.#lock(first, first + count, false);
  }

  /** Takes clusters [first, first+count) alone. */
  lockExclusive(first: number, count: number): Completion {
    return this.#lock(first, first + count, true);
  }

  /** Gives back exactly what one `lockShared` took. */
  unlockShared(first: number, count: number): void {
    this.#unlock(first, first + count, false);
  }

  /** Gives back exactly what one `lockExclusive` took. */
  unlockExclusive(first: number, count: number): void {
    this.#unlock(first, first + count, true);
  }

  #lock(first: number, end: number, exclusive: boolean): Completion {
    assert(end > first, "a lock covers at least one cluster");
    this.counters.grants++;
    if (!this.#heldConflict(first, end, exclusive) && !this.#queueConflict(first, end, exclusive)) {
      this.#hold(first, end, exclusive);
      return;
    }
    this.counters.waits++;
    return new Promise<void>((resolve) => {
      this.#waiting.push({ first, end, exclusive, sinceMs: this.#clock.nowMs(), grant: resolve });
      this.counters.longestQueue = Math.max(this.counters.longestQueue, this.#waiting.length);
    });
  }

  #hold(first: number, end: number, exclusive: boolean): void {
    const at = this.#heldCount++;
    this.#first[at] = first;
    this.#end[at] = end;
    this.#exclusive[at] = exclusive;
  }

  #heldConflict(first: number, end: number, exclusive: boolean): boolean {
    for (let i = 0; i < this.#heldCount; i++) {
      if (this.#first[i]! < end && first < this.#end[i]! && (exclusive || this.#exclusive[i]!)) return true;
    }
    return false;
  }

  #queueConflict(first: number, end: number, exclusive: boolean): boolean {
    for (const waiter of this.#waiting) if (conflicts(waiter, first, end, exclusive)) return true;
    return false;
  }

  #unlock(first: number, end: number, exclusive: boolean): void {
    const at = this.#find(first, end, exclusive);
    assert(at >= 0, `cluster lock [${first}, ${end}) was not held`);
    const last = --this.#heldCount;
    this.#first[at] = this.#first[last]!;
    this.#end[at] = this.#end[last]!;
    this.#exclusive[at] = this.#exclusive[last]!;
    if (this.#waiting.length > 0) this.#grantWaiting(first, end);
  }

  #find(first: number, end: number, exclusive: boolean): number {
    for (let i = this.#heldCount - 1; i >= 0; i--) {
      if (this.#first[i] === first && this.#end[i] === end && this.#exclusive[i] === exclusive) return i;
    }
    return -1;
  }

  /** Grants, oldest first, what [first, end) kept waiting and nothing else does. */
  #grantWaiting(first: number, end: number): void {
    const still: Waiter[] = [];
    for (const waiter of this.#waiting) {
      const freed = waiter.first < end && first < waiter.end;
      if (
        freed &&
        !this.#heldConflict(waiter.first, waiter.end, waiter.exclusive) &&
        !blocked(still, waiter)
      ) {
        this.#hold(waiter.first, waiter.end, waiter.exclusive);
        const waitedMs = this.#clock.nowMs() - waiter.sinceMs;
        this.counters.waitMs += waitedMs;
        this.counters.longestWaitMs = Math.max(this.counters.longestWaitMs, waitedMs);
        waiter.grant();
      } else {
        still.push(waiter);
      }
    }
    this.#waiting = still;
  }
}

function conflicts(waiter: Waiter, first: number, end: number, exclusive: boolean): boolean {
  return waiter.first < end && first < waiter.end && (exclusive || waiter.exclusive);
}

function blocked(older: readonly Waiter[], waiter: Waiter): boolean {
  return older.some((other) => conflicts(other, waiter.first, waiter.end, waiter.exclusive));
}

import { describe, expect, it } from "vitest";
import { ManualClock } from "../base/clock.ts";
import type { Completion } from "../base/completion.ts";
import { Prng } from "../base/prng.ts";
import { ClusterLocks } from "./cluster-locks.ts";
import { rest } from "./testing/scheduler.ts";

/** Locks whose grants are written down by name, in order. */
class Watched {
  readonly clock = new ManualClock();
  readonly locks = new ClusterLocks(this.clock);
  readonly granted: string[] = [];

  shared(name: string, first: number, count: number): Completion {
    return this.#note(name, this.locks.lockShared(first, count));
  }

  exclusive(name: string, first: number, count: number): Completion {
    return this.#note(name, this.locks.lockExclusive(first, count));
  }

  #note(name: string, lock: Completion): Completion {
    if (lock !== undefined) return lock.then(() => void this.granted.push(name));
    this.granted.push(name);
  }
}

describe("a free range", () => {
  it("is granted at once, without a promise", () => {
    const { locks } = new Watched();
    expect(locks.lockShared(0, 4)).toBeUndefined();
    expect(locks.lockShared(3, 4)).toBeUndefined();
    expect(locks.lockExclusive(7, 1)).toBeUndefined();
    expect(locks.lockExclusive(8, 1)).toBeUndefined();
    expect(locks.held).toBe(4);
  });

  it("above 2^32 is like any other", () => {
    const { locks } = new Watched();
    const first = 2 ** 44;
    expect(locks.lockExclusive(first, 1)).toBeUndefined();
    expect(locks.lockExclusive(first - 2 ** 32, 1)).toBeUndefined();
    expect(locks.lockShared(first, 1)).toBeInstanceOf(Promise);
  });
});

describe("order", () => {
  it("lets many share, and one be alone", async () => {
    const it = new Watched();
    it.shared("a", 0, 4);
    it.shared("b", 2, 4);
    it.exclusive("c", 3, 1);
    await rest();
    expect(it.granted).toEqual(["a", "b"]);
    it.locks.unlockShared(0, 4);
    await rest();
    expect(it.granted).toEqual(["a", "b"]);
    it.locks.unlockShared(2, 4);
    await rest();
    expect(it.granted).toEqual(["a", "b", "c"]);
  });

  it("does not let a stream of sharers starve one who wants to be alone", async () => {
    const it = new Watched();
    it.shared("s0", 0, 1);
    it.exclusive("x", 0, 1);
    for (let i = 1; i < 10; i++) {
      it.shared(`s${i}`, 0, 1);
      expect(it.locks.held).toBe(1);
    }
    it.locks.unlockShared(0, 1);
    await rest();
    expect(it.granted).toEqual(["s0", "x"]);
    it.locks.unlockExclusive(0, 1);
    await rest();
    expect(it.granted).toEqual(["s0", "x", ...Array.from({ length: 9 }, (_, i) => `s${i + 1}`)]);
  });

  it("waits behind an older waiter that it overlaps, though nobody holds its own cluster", async () => {
    const it = new Watched();
    it.exclusive("left", 0, 1);
    it.exclusive("wide", 0, 10);
    it.exclusive("right", 9, 1);
    it.exclusive("apart", 20, 1);
    await rest();
    expect(it.granted).toEqual(["left", "apart"]);
    it.locks.unlockExclusive(0, 1);
    it.locks.unlockExclusive(20, 1);
    await rest();
    expect(it.granted).toEqual(["left", "apart", "wide"]);
    it.locks.unlockExclusive(0, 10);
    await rest();
    expect(it.granted).toEqual(["left", "apart", "wide", "right"]);
  });
});

describe("giving back", () => {
  it("of what is not held is a programmer's error", () => {
    const { locks } = new Watched();
    locks.lockShared(0, 2);
    expect(() => locks.unlockExclusive(0, 2)).toThrow("was not held");
    expect(() => locks.unlockShared(0, 1)).toThrow("was not held");
    expect(() => locks.lockShared(5, 0)).toThrow("at least one cluster");
    locks.unlockShared(0, 2);
    expect(() => locks.unlockShared(0, 2)).toThrow("was not held");
    expect(locks.held).toBe(0);
  });
});

it("counts grants, waits and how long they took", async () => {
  const it = new Watched();
  it.exclusive("a", 0, 1);
  it.exclusive("b", 0, 1);
  it.exclusive("c", 0, 1);
  it.clock.advance(30);
  it.locks.unlockExclusive(0, 1);
  it.clock.advance(20);
  it.locks.unlockExclusive(0, 1);
  await rest();
  it.locks.unlockExclusive(0, 1);
  expect(it.locks.counters).toEqual({
    grants: 3,
    waits: 2,
    waitMs: 30 + 50,
    longestWaitMs: 50,
    longestQueue: 2,
  });
  expect([it.locks.held, it.locks.waiting]).toEqual([0, 0]);
});

// The model says who may hold what by going through everybody in order of arrival, each time anew.
interface Claimed {
  readonly id: number;
  readonly first: number;
  readonly end: number;
  readonly exclusive: boolean;
}

function grantedByModel(present: readonly Claimed[], holding: ReadonlySet<number>): Set<number> {
  const granted = new Set<number>();
  present.forEach((one, at) => {
    const conflict = (other: Claimed) =>
      other.first < one.end && one.first < other.end && (other.exclusive || one.exclusive);
    const older = present.slice(0, at);
    const held = present.filter((other) => holding.has(other.id) && other !== one);
    if (holding.has(one.id) || !(older.some(conflict) || held.some(conflict))) granted.add(one.id);
  });
  return granted;
}

it.each([1, 2, 3, 4, 5, 6, 7, 8])("agrees with a naive model, seed %d", async (seed) => {
  const prng = new Prng(seed);
  const locks = new ClusterLocks(new ManualClock());
  let present: Claimed[] = [];
  let modelled = new Set<number>();
  const granted = new Set<number>();
  for (let id = 0; id < 600; id++) {
    if (prng.chance(0.55)) {
      const first = prng.below(12);
      const one = { id, first, end: first + prng.between(1, 5), exclusive: prng.chance(0.4) };
      present.push(one);
      const lock = one.exclusive
        ? locks.lockExclusive(first, one.end - first)
        : locks.lockShared(first, one.end - first);
      if (lock === undefined) granted.add(id);
      else void lock.then(() => granted.add(id));
    } else {
      const holders = present.filter((one) => granted.has(one.id));
      if (holders.length === 0) continue;
      const one = prng.pick(holders);
      present = present.filter((other) => other !== one);
      granted.delete(one.id);
      modelled.delete(one.id);
      if (one.exclusive) locks.unlockExclusive(one.first, one.end - one.first);
      else locks.unlockShared(one.first, one.end - one.first);
    }
    modelled = grantedByModel(present, modelled);
    await rest();
    expect([...granted].sort(), `seed ${seed}, step ${id}`).toEqual([...modelled].sort());
    expect(locks.held).toBe(granted.size);
    expect(locks.waiting).toBe(present.length - granted.size);
  }
  while (present.length > 0) {
    const one = present.find((other) => granted.has(other.id));
    expect(one, "nobody holds, yet somebody waits").toBeDefined();
    present = present.filter((other) => other !== one);
    if (one!.exclusive) locks.unlockExclusive(one!.first, one!.end - one!.first);
    else locks.unlockShared(one!.first, one!.end - one!.first);
    await rest();
  }
  expect([locks.held, locks.waiting]).toEqual([0, 0]);
});

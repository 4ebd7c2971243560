import { describe, expect, it } from "vitest";
import { ManualClock } from "../base/clock.ts";
import { KiB, MiB } from "../base/units.ts";
import { rest } from "../block/testing/scheduler.ts";
import { RateLimit } from "./rate-limit.ts";

const CHUNK = 512 * KiB;

/** Uses chunks whenever the limit allows one, looking `everyMs`; tells how many bytes went by. */
function usedIn(ms: number, everyMs: number, limit: RateLimit, clock: ManualClock, chunk = CHUNK): number {
  let used = 0;
  for (let t = 0; t < ms; t += everyMs) {
    while (limit.delayMs() === 0) {
      limit.use(chunk);
      used += chunk;
    }
    clock.advance(everyMs);
  }
  return used;
}

describe("the rate", () => {
  it.each([
    [MiB, 1],
    [MiB, 250],
    [10 * MiB, 1],
    [64 * MiB, 10],
  ])("of %d bytes a second holds when it is looked at every %d ms", (speed, everyMs) => {
    const clock = new ManualClock();
    const limit = new RateLimit(clock);
    limit.setSpeed(speed);
    const used = usedIn(20_000, everyMs, limit, clock);
    expect(used).toBeGreaterThan(speed * 20 * 0.85);
    // One chunk, and one slice of a tenth of a second, may be drawn ahead; no more.
    expect(used).toBeLessThanOrEqual(speed * 20.1 + CHUNK);
  });

  it("holds when a drain wakes the job a thousand times a second", async () => {
    const clock = new ManualClock();
    const limit = new RateLimit(clock);
    limit.setSpeed(4 * MiB);
    let used = 0;
    let over = false;
    const job = (async () => {
      while (!over) {
        for (let delayMs = limit.delayMs(); delayMs > 0 && !over; delayMs = limit.delayMs()) {
          await limit.wait(delayMs);
        }
        limit.use(CHUNK);
        used += CHUNK;
        await Promise.resolve();
      }
    })();
    for (let ms = 0; ms < 10_000; ms++) {
      limit.wake();
      await rest();
      clock.advance(1);
    }
    over = true;
    limit.wake();
    await job;
    expect(used).toBeLessThanOrEqual(4 * MiB * 10.1 + 2 * CHUNK);
    expect(used).toBeGreaterThan(4 * MiB * 9);
  });

  it("holds when the same speed is set again all the time", () => {
    const clock = new ManualClock();
    const limit = new RateLimit(clock);
    let used = 0;
    for (let ms = 0; ms < 10_000; ms += 10) {
      limit.setSpeed(MiB);
      used += usedIn(10, 10, limit, clock);
    }
    expect(used).toBeLessThanOrEqual(MiB * 10.1 + CHUNK);
  });

  it("is no limit at 0", () => {
    const clock = new ManualClock();
    const limit = new RateLimit(clock);
    for (let i = 0; i < 1000; i++) {
      expect(limit.delayMs()).toBe(0);
      limit.use(MiB);
    }
    limit.setSpeed(1000);
    expect(limit.delayMs()).toBe(0);
  });
});

describe("a change of speed", () => {
  it("counts at once for who waits: what was used is paid at the new rate", async () => {
    const clock = new ManualClock();
    const limit = new RateLimit(clock);
    limit.setSpeed(1);
    limit.use(CHUNK);
    expect(limit.delayMs()).toBe(CHUNK * 1000);
    let woken = false;
    void limit.wait(limit.delayMs()).then(() => {
      woken = true;
    });
    limit.setSpeed(MiB);
    await rest();
    expect(woken).toBe(true);
    expect(limit.delayMs()).toBe(500);
    clock.advance(500);
    expect(limit.delayMs()).toBe(0);
  });

  it("to no limit forgets what was due", () => {
    const limit = new RateLimit(new ManualClock());
    limit.setSpeed(1);
    limit.use(CHUNK);
    limit.setSpeed(0);
    expect(limit.delayMs()).toBe(0);
    limit.setSpeed(1);
    expect(limit.delayMs()).toBe(0);
  });
});

describe("a wait", () => {
  it("ends when its time has passed, or at a wake, and only once", async () => {
    const clock = new ManualClock();
    const limit = new RateLimit(clock);
    const ended: string[] = [];
    void limit.wait(100).then(() => ended.push("time"));
    clock.advance(99);
    await rest();
    expect(ended).toEqual([]);
    clock.advance(1);
    await rest();
    expect(ended).toEqual(["time"]);
    void limit.wait(100).then(() => ended.push("wake"));
    limit.wake();
    limit.wake();
    await rest();
    expect(ended).toEqual(["time", "wake"]);
  });

  it("of many days does not end at once", () => {
    const delays: number[] = [];
    const after = (delayMs: number) => {
      delays.push(delayMs);
      return () => {};
    };
    const limit = new RateLimit({ nowMs: () => 0, after, turn: async () => {} });
    limit.setSpeed(1);
    limit.use(64 * MiB);
    void limit.wait(limit.delayMs());
    // A timer of the host holds 31 bits of milliseconds and would fire at once above.
    expect(delays).toEqual([2 ** 31 - 1]);
  });
});

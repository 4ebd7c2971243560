import { describe, expect, it, vi } from "vitest";
import { ManualClock, systemClock } from "./clock.ts";

describe("ManualClock", () => {
  it("runs what became due in order of its time, at its time", () => {
    const clock = new ManualClock();
    const seen: string[] = [];
    clock.after(20, () => seen.push(`b${clock.nowMs()}`));
    clock.after(10, () => {
      seen.push(`a${clock.nowMs()}`);
      clock.after(5, () => seen.push(`c${clock.nowMs()}`));
    });
    clock.after(31, () => seen.push("late"));
    clock.advance(30);
    expect(seen).toEqual(["a10", "c15", "b20"]);
    expect(clock.nowMs()).toBe(30);
  });

  it("forgets what was cancelled", () => {
    const clock = new ManualClock();
    const seen: number[] = [];
    const cancel = clock.after(10, () => seen.push(1));
    clock.after(5, cancel);
    clock.advance(100);
    expect(seen).toEqual([]);
  });
});

describe("systemClock", () => {
  it("never goes back, and lets the others have a turn", async () => {
    const before = systemClock.nowMs();
    let othersTurn = false;
    setImmediate(() => {
      othersTurn = true;
    });
    await systemClock.turn();
    expect(othersTurn).toBe(true);
    expect(systemClock.nowMs()).toBeGreaterThanOrEqual(before);
  });

  it("calls back once, or not at all when cancelled", async () => {
    let calls = 0;
    systemClock.after(0, () => calls++)();
    await new Promise<void>((resolve) => {
      systemClock.after(1, () => {
        calls++;
        resolve();
      });
      setTimeout(() => {}, 50);
    });
    expect(calls).toBe(1);
  });

  it("does not call back at once what is due in a thousand years", () => {
    vi.useFakeTimers();
    try {
      let called = false;
      systemClock.after(1000 * 365 * 86_400_000, () => {
        called = true;
      });
      vi.advanceTimersByTime(365 * 86_400_000);
      expect(called).toBe(false);
    } finally {
      vi.useRealTimers();
    }
  });
});

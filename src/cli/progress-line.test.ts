import { describe, expect, it } from "vitest";
import { MiB } from "../base/units.ts";
import {
  barProgress,
  formatDuration,
  percentOf,
  plainProgress,
  RateMeter,
  secondsLeft,
} from "./progress-line.ts";

const half = { label: "node-D", done: 64 * MiB, total: 128 * MiB, bytesPerSecond: 32 * MiB };

describe("progress line", () => {
  it("shows a bar, percent, bytes, speed and time left", () => {
    expect(barProgress(half, 75)).toBe(
      "node-D  [#########.........]   50%  64 MiB of 128 MiB  32 MiB/s  0:02 left",
    );
  });

  it("never gets wider than the terminal", () => {
    for (let columns = 1; columns < 200; columns++) {
      expect(barProgress(half, columns).length).toBeLessThan(Math.max(columns, 2));
    }
    expect(barProgress(half, 60)).toBe("node-D   50%  64 MiB of 128 MiB  32 MiB/s  0:02 left");
  });

  it("is plain words for a log", () => {
    expect(plainProgress(half)).toBe("node-D  50%  64 MiB of 128 MiB  32 MiB/s  0:02 left");
  });

  it("tells no time where there is no speed, and the state instead of both when the job stands still", () => {
    expect(plainProgress({ ...half, bytesPerSecond: 0 })).toBe("node-D  50%  64 MiB of 128 MiB");
    expect(plainProgress({ ...half, state: "paused" })).toBe("node-D  50%  64 MiB of 128 MiB  paused");
  });

  it("says so when there is nothing to do", () => {
    expect(plainProgress({ ...half, done: 0, total: 0 })).toBe("node-D  100%  nothing to copy");
  });

  it("says 100% only when all is done", () => {
    expect(percentOf({ done: 999_999, total: 1_000_000 })).toBe(99);
    expect(percentOf({ done: 1, total: 1 })).toBe(100);
    expect(percentOf({ done: 0, total: 0 })).toBe(100);
    expect(secondsLeft({ done: 5, total: 5, bytesPerSecond: 0 })).toBe(0);
    expect(secondsLeft({ done: 0, total: 5, bytesPerSecond: 0 })).toBeUndefined();
  });

  it("writes durations with hours only where there are some", () => {
    expect([0, 6.2, 59.5, 750, 3723].map(formatDuration)).toEqual([
      "0:00",
      "0:07",
      "1:00",
      "12:30",
      "1:02:03",
    ]);
  });
});

describe("rate meter", () => {
  it("knows nothing at first and looks back a few seconds only", () => {
    const meter = new RateMeter();
    expect(meter.sample(0, 0)).toBe(0);
    expect(meter.sample(1000, 100)).toBe(100);
    for (let second = 2; second <= 10; second++) meter.sample(second * 1000, 100);
    expect(meter.sample(11_000, 100)).toBe(0);
    expect(meter.sample(12_000, 400)).toBe(100);
  });

  it("never goes negative and begins anew after a reset", () => {
    const meter = new RateMeter();
    meter.sample(0, 100);
    expect(meter.sample(1000, 50)).toBe(0);
    meter.reset();
    expect(meter.sample(2000, 1000)).toBe(0);
  });
});

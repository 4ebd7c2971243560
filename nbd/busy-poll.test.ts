import { describe, expect, it } from "vitest";
import { ManualClock } from "../src/base/clock.ts";
import { BusyPoll } from "./busy-poll.ts";

/** A loop that turns when told to, every 10 us. */
function stage(cores = 2) {
  const clock = new ManualClock();
  let scheduled: (() => void) | undefined;
  const poll = new BusyPoll(
    clock,
    (callback) => {
      expect(scheduled).toBeUndefined();
      scheduled = callback;
    },
    cores,
  );
  const turn = () => {
    clock.advance(0.01);
    const callback = scheduled;
    scheduled = undefined;
    callback?.();
  };
  /** Turns without a request until the loop would sleep. */
  const untilAsleep = () => {
    let turns = 0;
    for (; scheduled !== undefined; turns++) turn();
    return turns;
  };
  return { poll, turn, untilAsleep, isLooking: () => scheduled !== undefined };
}

describe("the lookout for the next request", () => {
  it("ends after 50 us without one", () => {
    const { poll, untilAsleep } = stage();
    poll.served();
    expect(untilAsleep()).toBe(5);
  });

  it("begins anew with each request", () => {
    const { poll, turn, untilAsleep, isLooking } = stage();
    for (let request = 0; request < 1000; request++) {
      poll.served();
      for (let i = 0; i < 4; i++) turn();
      expect(isLooking()).toBe(true);
    }
    expect(untilAsleep()).toBeLessThanOrEqual(2);
  });

  it("is given up for a while when requests come too late for it", () => {
    const { poll, untilAsleep } = stage();
    let lookouts = 0;
    for (let request = 0; request < 10_000; request++) {
      poll.served();
      if (untilAsleep() > 0) lookouts++;
    }
    expect(lookouts).toBeGreaterThan(100);
    expect(lookouts).toBeLessThan(250);
  });

  it("comes back when requests come in time again", () => {
    const { poll, turn, untilAsleep, isLooking } = stage();
    for (let request = 0; request < 100; request++) {
      poll.served();
      untilAsleep();
    }
    for (let request = 0; request < 200; request++) {
      poll.served();
      turn();
    }
    expect(isLooking()).toBe(true);
  });

  it("is not made on a single core", () => {
    const { poll, isLooking } = stage(1);
    for (let request = 0; request < 1000; request++) {
      poll.served();
      expect(isLooking()).toBe(false);
    }
  });
});

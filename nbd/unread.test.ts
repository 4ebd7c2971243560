import { describe, expect, it } from "vitest";
import { ManualClock } from "../src/base/clock.ts";
import { Unread } from "./unread.ts";

class CountingClock extends ManualClock {
  timers = 0;

  override after(ms: number, act: () => void): () => void {
    this.timers++;
    return super.after(ms, act);
  }
}

function watched() {
  const clock = new CountingClock();
  const watch = {
    unread: 0,
    looks: 0,
    log: [] as string[],
    unreadBytes() {
      this.looks++;
      return this.unread;
    },
    socketClosed() {
      this.log.push("shut down");
    },
    close() {
      this.log.push("closed");
    },
  };
  const released: string[] = [];
  const loan = (name: string) => ({
    bytes: 0,
    moveTo: () => 0,
    take: () => {},
    release: () => {
      released.push(name);
    },
  });
  return { clock, watch, released, loan, unread: new Unread(watch, clock) };
}

describe("lent data that a client may not have read", () => {
  it("is let go of in order, as far as the client has surely read", () => {
    const { watch, released, loan, unread } = watched();
    unread.sent(100, loan("a"));
    unread.sent(50, undefined);
    unread.sent(200, loan("b"));
    for (const [left, expected] of [
      [900, []],
      [251, []],
      [250, ["a"]],
      [1, ["a"]],
      [0, ["a", "b"]],
    ] as const) {
      watch.unread = left;
      unread.look();
      expect(released).toEqual(expected);
    }
  });

  it("is looked at while the client is silent, less and less often, and not when there is none", () => {
    const { clock, watch, released, loan, unread } = watched();
    clock.advance(100_000);
    expect(watch.looks).toBe(0);
    watch.unread = 10;
    unread.sent(10, loan("a"));
    clock.advance(9);
    expect(watch.looks).toBe(0);
    clock.advance(1);
    expect(watch.looks).toBe(1);
    clock.advance(10_000);
    expect(watch.looks).toBeLessThan(20);
    watch.unread = 0;
    clock.advance(1000);
    expect(released).toEqual(["a"]);
    const { looks } = watch;
    clock.advance(100_000);
    expect(watch.looks).toBe(looks);
  });

  it("costs a client that reads at once no timer for each reply", () => {
    const { clock, released, loan, unread } = watched();
    for (let reply = 0; reply < 1000; reply++) {
      unread.sent(10, loan("a"));
      unread.look();
      if (reply % 100 === 99) clock.advance(1);
    }
    expect([released.length, clock.timers]).toEqual([1000, 1]);
  });

  it("is looked at soon again after a client that was slow once", () => {
    const { clock, watch, loan, unread } = watched();
    watch.unread = 10;
    unread.sent(10, loan("a"));
    clock.advance(3000);
    watch.unread = 0;
    unread.look();
    unread.sent(10, loan("b"));
    const { looks } = watch;
    clock.advance(10);
    expect(watch.looks).toBe(looks + 1);
  });

  it("is kept behind the end of the connection until the client has read, or is gone", () => {
    const { clock, watch, released, loan, unread } = watched();
    watch.unread = 10;
    unread.sent(10, loan("a"));
    unread.socketClosed();
    clock.advance(5000);
    expect([watch.log, released]).toEqual([["shut down"], []]);
    watch.unread = 0;
    clock.advance(1000);
    expect([watch.log, released]).toEqual([["shut down", "closed"], ["a"]]);
  });

  it("ends the watch once, whenever the connection ends", () => {
    for (const left of [0, 10]) {
      const { clock, watch, loan, unread } = watched();
      if (left > 0) unread.sent(left, loan("a"));
      unread.socketClosed();
      clock.advance(5000);
      expect(watch.log).toEqual(["shut down", "closed"]);
    }
  });
});

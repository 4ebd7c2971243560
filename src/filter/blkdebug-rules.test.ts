import { describe, expect, it } from "vitest";
import { BlkdebugRules } from "./blkdebug-rules.ts";

const write = (rules: BlkdebugRules, offset = 0, bytes = 512) => rules.failing("write", offset, bytes)?.errno;

describe("rules of blkdebug", () => {
  it("nothing fails before the event, everything after it, until another event's rules follow", () => {
    const rules = new BlkdebugRules(
      [
        { event: "write_aio", errno: 5 },
        { event: "l2_update", errno: 28, iotype: "flush" },
      ],
      [],
    );
    expect(write(rules)).toBeUndefined();
    rules.event("write_aio");
    rules.event("read_aio");
    expect([write(rules), write(rules), rules.failing("flush", 0, 0)?.errno]).toEqual([5, 5, 5]);
    rules.event("l2_update");
    expect([write(rules), rules.failing("flush", 0, 0)?.errno]).toEqual([undefined, 28]);
  });

  it("'once' fails once, for good", () => {
    const rules = new BlkdebugRules([{ event: "write_aio", errno: 5, once: true }], []);
    rules.event("write_aio");
    expect([write(rules), write(rules)]).toEqual([5, undefined]);
    rules.event("write_aio");
    expect(write(rules)).toBeUndefined();
  });

  it("two 'once' rules of one event fail two requests, in their order", () => {
    const rules = new BlkdebugRules(
      [
        { event: "pwritev", errno: 5, once: true },
        { event: "pwritev", errno: 28, once: true },
      ],
      [],
    );
    rules.event("pwritev");
    expect([write(rules), write(rules), write(rules)]).toEqual([5, 28, undefined]);
  });

  it.each([
    [3, 1024, 1024, true],
    [3, 0, 1536, false],
    [3, 0, 1537, true],
    [3, 1536, 512, true],
    [3, 2048, 512, false],
    [0, 0, 0, false],
  ])("sector %i and a request at %i of %i bytes: %s", (sector, offset, bytes, fails) => {
    const rules = new BlkdebugRules([{ event: "none", errno: 5, sector }], []);
    rules.event("none");
    expect(write(rules, offset, bytes)).toBe(fails ? 5 : undefined);
  });

  it("a rule counts in its state; what an event changes counts from the next one on", () => {
    const rules = new BlkdebugRules(
      [{ event: "write_aio", state: 2, errno: 5 }],
      [
        { event: "write_aio", state: 1, new_state: 2 },
        { event: "write_aio", new_state: 7 },
      ],
    );
    rules.event("write_aio");
    expect([write(rules), rules.state]).toEqual([undefined, 2]);
    rules.event("write_aio");
    expect([write(rules), rules.state]).toEqual([5, 7]);
  });

  it("without an iotype the mapping can be asked; with one only that type fails", () => {
    const all = new BlkdebugRules([{ event: "none", errno: 5 }], []);
    all.event("none");
    expect(all.failing("block-status", 0, 512)).toBeUndefined();
    expect(all.failing("discard", 0, 512)?.errno).toBe(5);
    const one = new BlkdebugRules([{ event: "none", errno: 5, iotype: "block-status" }], []);
    one.event("none");
    expect(one.failing("block-status", 0, 512)?.errno).toBe(5);
    expect(one.failing("read", 0, 512)).toBeUndefined();
  });

  it("errno 0 lets a request pass that a later rule would fail", () => {
    const rules = new BlkdebugRules(
      [
        { event: "none", errno: 0, sector: 1 },
        { event: "none", errno: 5 },
      ],
      [],
    );
    rules.event("none");
    expect([write(rules, 512), write(rules, 1024)]).toEqual([undefined, 5]);
  });
});

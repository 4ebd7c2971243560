import { describe, expect, it } from "vitest";
import { ManualClock } from "../src/base/clock.ts";
import { BlockError } from "../src/base/errors.ts";
import { FailureLog } from "./failure-log.ts";

function stage() {
  const told: string[] = [];
  const clock = new ManualClock();
  const logger = {
    debug() {},
    info() {},
    warn: (text: string) => told.push(`warn ${text}`),
    error: (text: string) => told.push(`error ${text}`),
  };
  return { log: new FailureLog(logger, clock), clock, told };
}

const EIO = new BlockError("EIO", "Could not read 'a.img': Input/output error");

describe("failed requests", () => {
  it("are told with the export, the request and the reason", () => {
    const { log, told } = stage();
    log.tell("disk", "READ", "READ of 4096 bytes at offset 512", EIO);
    expect(told).toEqual([
      "warn NBD export 'disk': READ of 4096 bytes at offset 512 failed: Could not read 'a.img': Input/output error",
    ]);
  });

  it("of one kind are told once in ten seconds, with the number of the others", () => {
    const { log, clock, told } = stage();
    for (let i = 0; i < 1000; i++) log.tell("disk", "READ", `READ ${i}`, EIO);
    log.tell("disk", "WRITE", "WRITE", EIO);
    log.tell("disk", "READ", "READ", new BlockError("ENOSPC", "full"));
    log.tell("other", "READ", "READ", EIO);
    expect(told.length).toBe(4);
    clock.advance(10_000);
    log.tell("disk", "READ", "READ", EIO);
    expect(told[4]).toMatch(/and 999 like it before/);
    clock.advance(10_000);
    log.tell("disk", "READ", "READ", EIO);
    expect(told[5]).not.toMatch(/like it/);
  });

  it("by a mistake of ours are errors, with the place", () => {
    const { log, told } = stage();
    log.tell("disk", "READ", "READ", new TypeError("x is undefined"));
    expect(told[0]).toMatch(
      /^error .*mistake of this program: TypeError: x is undefined\n.*failure-log.test/s,
    );
  });

  it("that are only not supported are not told", () => {
    const { log, told } = stage();
    log.tell("disk", "WRITE_ZEROES", "WRITE_ZEROES", new BlockError("ENOTSUP", "slow"));
    expect(told).toEqual([]);
  });
});

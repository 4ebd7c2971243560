import { describe, expect, it } from "vitest";
import { BlockError } from "../base/errors.ts";
import { contentOf } from "../block/testing/array-world.ts";
import { type Call, Faults, inOrder } from "../block/testing/interpose.ts";
import { rest } from "../block/testing/scheduler.ts";
import { streamedChain } from "./testing/stream-bench.ts";

describe("errors", () => {
  const failing = (call: Call) => call.operation === "copyUp";

  it("'report' ends the job at the first one, told once, and the chain stays", async () => {
    const { bench: it, world, named, guest, seen } = await streamedChain();
    world.driver("E").before = inOrder(() => rest(), new Faults(0, failing, "EIO", 100).before);
    const job = await it.run(named["E"]!, undefined);
    expect(job.error).toBe("Input/output error");
    expect(it.events.filter((event) => event.startsWith("BLOCK_JOB"))).toEqual([
      "BLOCK_JOB_ERROR job0 report",
      "BLOCK_JOB_COMPLETED job0",
    ]);
    expect(world.drawn(guest.node)).toBe("[A] <- [B] <- [C] <- [D] <- [E]");
    expect((await contentOf(guest.node)).equals(seen)).toBe(true);
    expect(world.leftovers()).toEqual([]);
  });

  it("'ignore' copies the rest, keeps the chain and says so", async () => {
    const { bench: it, world, named, guest, seen } = await streamedChain();
    world.driver("E").before = new Faults(0, failing, "EIO", 1).before;
    const job = await it.run(named["E"]!, undefined, { onError: "ignore" });
    expect(job.error).toBe("Input/output error");
    expect(it.events).toContain("BLOCK_JOB_ERROR job0 ignore");
    expect(world.driver("E").links).toEqual([]);
    expect(world.drawn(guest.node)).toBe("[A] <- [B] <- [C] <- [D] <- [E]");
    expect((await contentOf(guest.node)).equals(seen)).toBe(true);
    expect(world.leftovers()).toEqual([]);
  });

  it.each([
    ["stop", "EIO", "failed"],
    ["stop", "ENOSPC", "nospace"],
    ["enospc", "ENOSPC", "nospace"],
    ["enospc", "EDQUOT", "nospace"],
    ["auto", "ENOSPC", "nospace"],
  ] as const)("'%s' at %s stands still, and after a resume tries again", async (onError, code, ioStatus) => {
    const { bench: it, world, named, guest, seen } = await streamedChain();
    let full = true;
    const faults = new Faults(0, (call) => full && failing(call), code, 100);
    world.driver("E").before = inOrder(() => rest(), faults.before);
    const job = await it.start(named["E"]!, undefined, { onError });
    for (let tries = 1; tries <= 3; tries++) {
      while (job.status !== "paused") await rest();
      expect([job.paused, job.ioStatus]).toEqual([true, ioStatus]);
      expect(it.events.filter((event) => event === "BLOCK_JOB_ERROR job0 stop")).toHaveLength(tries);
      full = tries < 3;
      job.resume();
      expect(job.ioStatus).toBe("ok");
      await rest();
    }
    await job.concluded;
    expect(job.error).toBeUndefined();
    expect(job.offset).toBe(job.length);
    expect(world.drawn(guest.node)).toBe("[E]");
    expect((await contentOf(guest.node)).equals(seen)).toBe(true);
    expect(world.leftovers()).toEqual([]);
  });

  // Tables that cannot be read: nobody knows then what there is to copy.
  const lookingFails = (call: Call) => call.operation === "extents";

  it.each([
    [0, "stop"],
    [7, "stop"],
    [0, "enospc"],
    [7, "enospc"],
  ] as const)("of the look at what to copy, from the %i-th on: '%s' stands still", async (at, onError) => {
    const { bench: it, world, named, guest, seen } = await streamedChain();
    let failing = true;
    const faults = new Faults(at, (call) => failing && lookingFails(call), "ENOSPC", 100);
    for (const driver of world.drivers.values()) driver.before = inOrder(() => rest(), faults.before);
    const job = await it.start(named["E"]!, undefined, { onError });
    for (let tries = 1; tries <= 3; tries++) {
      while (job.status !== "paused" && job.status !== "concluded") await rest();
      expect([job.paused, job.ioStatus]).toEqual([true, "nospace"]);
      expect(it.events.filter((event) => event === "BLOCK_JOB_ERROR job0 stop")).toHaveLength(tries);
      failing = tries < 3;
      job.resume();
      await rest();
    }
    await job.concluded;
    expect(job.error).toBeUndefined();
    expect(job.offset).toBe(job.length);
    expect(world.drawn(guest.node)).toBe("[E]");
    expect((await contentOf(guest.node)).equals(seen)).toBe(true);
    expect(world.leftovers()).toEqual([]);
  });

  it.each([0, 7])(
    "of the look at what to copy, the %i-th: 'ignore' keeps the chain and says so",
    async (at) => {
      const { bench: it, world, named, guest, seen } = await streamedChain();
      const faults = new Faults(at, lookingFails);
      for (const driver of world.drivers.values()) driver.before = faults.before;
      const job = await it.run(named["E"]!, undefined, { onError: "ignore" });
      expect(faults.failed).toBe(1);
      expect(job.error).toBe("Input/output error");
      expect(it.events.filter((event) => event.startsWith("BLOCK_JOB"))).toEqual([
        "BLOCK_JOB_ERROR job0 ignore",
        "BLOCK_JOB_COMPLETED job0",
      ]);
      expect(world.drawn(guest.node)).toBe("[A] <- [B] <- [C] <- [D] <- [E]");
      expect((await contentOf(guest.node)).equals(seen)).toBe(true);
      expect(world.leftovers()).toEqual([]);
    },
  );

  it("of the link that may have reached the disk: the old one is written again", async () => {
    const { bench: it, world, named, guest } = await streamedChain();
    const driver = world.driver("E");
    const write = driver.changeBackingLink.bind(driver);
    let failures = 1;
    driver.changeBackingLink = async (file, format) => {
      await write(file, format);
      if (failures-- > 0) throw new BlockError("EIO", "the flush failed");
    };
    const job = await it.run(named["E"]!, named["A"]);
    expect(job.error).toBe("the flush failed");
    expect(driver.links.map((link) => link.file)).toEqual(["A.img", "D.img"]);
    expect(world.drawn(guest.node)).toBe("[A] <- [B] <- [C] <- [D] <- [E]");
    failures = 2;
    const again = await it.run(named["E"]!, named["A"], { id: "again" });
    expect(again.error).toContain("keep all images of the chain");
    expect(world.leftovers()).toEqual([]);
  });

  it("'enospc' reports what is no lack of space", async () => {
    const { bench: it, world, named } = await streamedChain();
    world.driver("E").before = new Faults(0, failing, "EIO").before;
    const job = await it.run(named["E"]!, undefined, { onError: "enospc" });
    expect(job.error).toBe("Input/output error");
  });

  it("'stop' can be cancelled where it stands", async () => {
    const { bench: it, world, named, guest } = await streamedChain();
    world.driver("E").before = new Faults(0, failing, "ENOSPC", 100).before;
    const job = await it.start(named["E"]!, undefined, { onError: "stop" });
    while (job.status !== "paused") await rest();
    job.cancel();
    await job.concluded;
    expect(it.events.slice(-3)).toEqual(["job0 aborting", "BLOCK_JOB_CANCELLED job0", "job0 concluded"]);
    expect(world.drawn(guest.node)).toBe("[A] <- [B] <- [C] <- [D] <- [E]");
    expect(world.leftovers()).toEqual([]);
  });

  it.each(["report", "ignore", "stop"] as const)(
    "at any one call, policy '%s': locks, claims and blockers are gone, the chain is the old or the new one",
    async (onError) => {
      for (let at = 0; ; at++) {
        const faults = new Faults(Number.POSITIVE_INFINITY);
        const {
          bench: it,
          world,
          named,
          guest,
          seen,
        } = await streamedChain("A B C D E", (call) => faults.before(call));
        const armed = new Faults(at);
        for (const driver of world.drivers.values()) driver.before = armed.before;
        const made = await it.start(named["D"]!, named["A"], { onError }).catch((error: Error) => error);
        if (!(made instanceof Error)) {
          for (let i = 0; made.status !== "concluded" && i < 10_000; i++) {
            if (made.status === "paused") made.resume();
            await rest();
          }
        }
        for (const driver of world.drivers.values()) driver.before = () => {};
        const where = `call ${at}`;
        expect(world.leftovers(), where).toEqual([]);
        const isNew = world.driver("D").details().backingFile === "A.img";
        expect(world.drawn(guest.node), where).toBe(
          isNew ? "[A] <- [D] <- [E]" : "[A] <- [B] <- [C] <- [D] <- [E]",
        );
        expect((await contentOf(guest.node)).equals(seen), where).toBe(true);
        for (const node of Object.values(named)) {
          expect(
            world.graph.usesOf(node).filter((use) => use.user.includes("stream job")),
            where,
          ).toEqual([]);
        }
        // The one error left may be that of reopening for reading.
        if (armed.failed === 0) {
          expect(made).not.toBeInstanceOf(Error);
          expect(named["D"]!.readOnly).toBe(true);
          expect(at).toBeGreaterThan(20);
          return;
        }
      }
    },
  );
});

import { describe, expect, it } from "vitest";
import { BlockError } from "../base/errors.ts";
import { Prng } from "../base/prng.ts";
import { Permission } from "../block/permissions.ts";
import { contentOf } from "../block/testing/array-world.ts";
import { type Call, Gate } from "../block/testing/interpose.ts";
import { rest, Scheduler } from "../block/testing/scheduler.ts";
import { MemoryHost } from "./testing/memory-host.ts";
import { STREAMED_BYTES, StreamBench, streamedChain } from "./testing/stream-bench.ts";

describe("the four examples of the design", () => {
  it.each([
    ["E", undefined, "[E]", [undefined, undefined], ["A", "B", "C", "D"]],
    ["E", "A", "[A] <- [E]", ["A.img", "array"], ["B", "C", "D"]],
    ["D", "B", "[A] <- [B] <- [D] <- [E]", ["B.img", "array"], ["C"]],
    ["D", "A", "[A] <- [D] <- [E]", ["A.img", "array"], ["B", "C"]],
  ])("block_stream %s %s leaves %s", async (top, base, drawn, [file, format], gone) => {
    const { bench: it, world, named, guest, seen } = await streamedChain();
    const job = await it.run(named[top]!, base === undefined ? undefined : named[base]);
    expect(job.error).toBeUndefined();
    expect(world.drawn(guest.node)).toBe(drawn);
    expect((await contentOf(guest.node)).equals(seen)).toBe(true);
    expect(world.driver(top).links).toEqual([{ file, format }]);
    expect([...world.drivers].filter(([, driver]) => driver.closed).map(([name]) => name)).toEqual(gone);
    expect(named["D"]!.readOnly).toBe(true);
    expect(world.leftovers()).toEqual([]);
    expect([job.offset, job.length]).toEqual([job.length, job.length]);
    expect(it.events).toEqual([
      "job0 created",
      "job0 running",
      "job0 waiting",
      "job0 pending",
      "BLOCK_JOB_COMPLETED job0",
      "job0 concluded",
    ]);
  });

  it("copies only what the layers between hold, in data bytes that it announced before", async () => {
    const { bench: it, world, named } = await streamedChain();
    const job = await it.run(named["D"]!, named["A"]);
    // B holds clusters 3 (4 is zero) 5 6 7, C 6 to 10; D has 9 and up itself.
    const copied = world.driver("D").clusters.map((cluster) => (cluster instanceof Buffer ? 1 : cluster));
    expect(copied).toEqual([...new Array(3), 1, "zero", ...new Array(9).fill(1), ...new Array(2)]);
    expect([job.offset, job.length]).toEqual([5 * 512, 5 * 512]);
  });
});

describe("a stream", () => {
  it("onto the backing image itself has nothing to do, nor one of an image without", async () => {
    const { bench: it, world, named, guest } = await streamedChain();
    expect((await it.run(named["E"]!, named["D"])).length).toBe(0);
    expect((await it.run(named["A"]!, undefined, { id: "job1" })).length).toBe(0);
    expect(world.drawn(guest.node)).toBe("[A] <- [B] <- [C] <- [D] <- [E]");
    expect(world.driver("E").links).toEqual([]);
    expect(named["A"]!.readOnly).toBe(true);
    expect(world.leftovers()).toEqual([]);
  });

  it.each([
    ["B", "D", "Node 'D' is not a backing image of 'B'"],
    ["E", "X", "Node 'X' is not a backing image of 'E'"],
    ["X", undefined, "cannot stream into node 'X': a flat image has no backing link"],
  ])("of %s onto %s is refused by name", async (top, base, words) => {
    const { bench: it, world, named } = await streamedChain();
    named["X"] = world.image("X", { size: STREAMED_BYTES, flat: true });
    await expect(it.start(named[top]!, base === undefined ? undefined : named[base])).rejects.toThrow(words);
    expect(world.leftovers()).toEqual([]);
    expect(it.events).toEqual([]);
  });

  it("is refused before it copies anything when its link could not be written", async () => {
    const { bench: it, world, named } = await streamedChain();
    Object.assign(world.driver("D"), {
      checkBackingLink: (file: string | undefined) => {
        throw new BlockError("ENOSPC", `the name '${file}' does not fit`);
      },
    });
    await expect(it.start(named["D"]!, named["A"])).rejects.toThrow("the name 'A.img' does not fit");
    expect(named["D"]!.readOnly).toBe(true);
    expect(world.leftovers()).toEqual([]);
    expect(it.events).toEqual([]);
  });

  it("that was let begin is not refused at its end for the mark of use that came meanwhile", async () => {
    const host = new MemoryHost();
    // As long as a header of 512 bytes has room for: 112 of fields, 16 of the format, 8 of END.
    const base = `/${"b".repeat(512 - 136 - 1)}`;
    const size = 16 * 512;
    host.createRaw(base, Buffer.alloc(size, 0xba));
    await host.createQcow2("/middle", { size, backingFile: base, backingFormat: "raw" });
    await host.createQcow2("/top", {
      size,
      clusterSize: 512,
      backingFile: "/middle",
      backingFormat: "qcow2",
    });
    const bench = new StreamBench();
    const { graph } = bench.world;
    const opener = host.opener(graph);
    const open = (filename: string) => opener.open({ driver: "qcow2", file: { driver: "file", filename } });
    const middle = await open("/middle");
    await middle.write(0, 512, Buffer.alloc(512, 0x11), 0);
    await opener.closeUnused(middle);
    const top = await open("/top");
    const guest = bench.world.guest(top);
    const job = await bench.run(top, top.backing!.backing);
    expect(job.error).toBeUndefined();
    expect(top.backing?.filename).toBe(base);
    await graph.release(guest);
    const again = await open("/top");
    expect(again.details()).toMatchObject({ backingFile: base, backingFormat: "raw" });
    expect((await contentOf(again)).equals(Buffer.alloc(size, 0xba).fill(0x11, 0, 512))).toBe(true);
    await opener.closeUnused(again);
    expect(host.open.size).toBe(0);
  });

  it("of an image onto itself is refused", async () => {
    const { bench: it, world, named } = await streamedChain();
    await expect(it.start(named["D"]!, named["D"])).rejects.toThrow("Node 'D' is not a backing image of 'D'");
    expect(world.leftovers()).toEqual([]);
  });

  it("of a whole chain takes no other name for a link that it does not write", async () => {
    const { bench: it, named } = await streamedChain();
    await expect(it.start(named["E"]!, undefined, { backingFile: "x" })).rejects.toThrow(
      "backing file specified, but streaming the entire chain",
    );
  });

  it("with nothing to copy rewrites the link where it is told to, also of an intermediate image", async () => {
    const { bench: it, world, named, guest } = await streamedChain();
    const job = await it.run(named["D"]!, named["C"], { backingFile: "moved/C.img" });
    expect([job.error, job.length]).toEqual([undefined, 0]);
    expect(world.driver("D").links).toEqual([{ file: "moved/C.img", format: "array" }]);
    expect(world.drawn(guest.node)).toBe("[A] <- [B] <- [C] <- [D] <- [E]");
    expect(named["D"]!.readOnly).toBe(true);
    expect(world.leftovers()).toEqual([]);
  });

  it("writes the link that it is told to", async () => {
    const { bench: it, world, named } = await streamedChain();
    await it.run(named["E"]!, named["A"], { backingFile: "../elsewhere/A.img" });
    expect(world.driver("E").links).toEqual([{ file: "../elsewhere/A.img", format: "array" }]);
  });

  it("links a file that has no format below it as raw: it could not be opened again otherwise", async () => {
    const { bench: it, world, named } = await streamedChain("A B C");
    Object.defineProperty(world.driver("A"), "driverName", { value: "file" });
    Object.defineProperty(world.driver("A"), "growable", { value: true });
    await it.run(named["C"]!, named["A"]);
    expect(world.driver("C").links).toEqual([{ file: "A.img", format: "raw" }]);
  });

  it("knows before the copy that a base without a name cannot be linked", async () => {
    const { bench: it, world, named } = await streamedChain("A B C");
    Object.defineProperty(named["A"], "filename", { value: "" });
    await expect(it.start(named["C"]!, named["A"])).rejects.toThrow("state one with 'backing-file'");
    expect(world.leftovers()).toEqual([]);
    await it.run(named["C"]!, named["A"], { backingFile: "A.img" });
    expect(world.driver("C").links).toEqual([{ file: "A.img", format: "array" }]);
  });

  it("past the end of a short middle layer brings zeros, not what lies deeper", async () => {
    for (const base of ["base", undefined]) {
      const it = new StreamBench();
      const { world } = it;
      const bottom = world.image("base", { size: 8 * 512, readOnly: true });
      const middle = world.image("middle", { size: 4 * 512 + 100, backing: bottom, readOnly: true });
      const top = world.image("top", { size: 8 * 512 + 300, backing: middle });
      const guest = world.guest(top);
      world.fill("base", 0, 8);
      const seen = await contentOf(top);
      await it.run(top, base === undefined ? undefined : bottom);
      expect((await contentOf(guest.node)).equals(seen)).toBe(true);
      expect(seen.subarray(4 * 512 + 100).every((byte) => byte === 0)).toBe(true);
      expect(world.leftovers()).toEqual([]);
    }
  });

  it.each([1, 511, 512, 513, 1023])("ends at a size of n clusters and %d bytes", async (rest) => {
    const it = new StreamBench();
    const { world } = it;
    const size = 20 * 1024 + rest;
    const { guest } = world.chain("A B C", { size, clusterSize: 1024 });
    world.fill("A", 0, 21);
    world.fill("B", 20, 1);
    const seen = await contentOf(guest.node);
    const job = await it.run(guest.node, undefined);
    expect(job.offset).toBe(size);
    expect((await contentOf(guest.node)).equals(seen)).toBe(true);
    expect(world.drawn(guest.node)).toBe("[C]");
  });

  it("leaves a merged image open for those who use it, with its own chain", async () => {
    const { bench: it, world, named, guest } = await streamedChain();
    const reader = world.guest(named["C"]!, { needs: Permission.CONSISTENT_READ });
    const seen = await contentOf(named["C"]!);
    await it.run(named["E"]!, undefined);
    expect(world.drawn(guest.node)).toBe("[E]");
    expect(world.drawn(named["C"]!)).toBe("[A] <- [B] <- [C]");
    expect((await contentOf(reader.node)).equals(seen)).toBe(true);
    await world.graph.release(reader);
    expect([...world.graph.nodes].map((node) => node.name)).toEqual(["E"]);
    expect(world.leftovers()).toEqual([]);
  });

  it("keeps an intermediate top writable when a guest took it over meanwhile", async () => {
    const { bench: it, world, named, guest } = await streamedChain("A B C D");
    const job = await it.start(named["C"]!, named["A"], { autoFinalize: false });
    await rest();
    // D goes away; C is the active image now.
    const second = world.graph.use(named["C"]!, {
      user: "the monitor",
      role: "",
      needs: 0,
      shares: 15,
      staysAtNode: true,
    });
    await world.graph.release(guest);
    const next = world.guest(named["C"]!);
    await rest();
    job.finalize();
    await job.concluded;
    expect([named["C"]!.readOnly, world.drawn(next.node)]).toEqual([false, "[A] <- [C]"]);
    await next.node.write(0, 1, Buffer.alloc(1), 0);
    await world.graph.release(second);
  });
});

describe("who holds a part of a chain", () => {
  it.each([
    ["D", "B", "D"],
    ["D", undefined, "D"],
    ["E", "B", "D"],
    ["E", "A", "D"],
    ["C", "A", "C"],
    ["C", undefined, "C"],
  ])("refuses a second stream of %s onto %s, and is named", async (top, base, busy) => {
    const { bench: it, world, named } = await streamedChain();
    const first = await it.start(named["D"]!, named["B"], { id: "first", autoFinalize: false });
    await rest();
    const second = it.start(named[top]!, base === undefined ? undefined : named[base], { id: "second" });
    await expect(second).rejects.toThrow(
      `Node '${busy}' is busy: block device is in use by block job: stream`,
    );
    await expect(second).rejects.toThrow("first");
    first.finalize();
    await first.concluded;
    expect(world.drawn(named["E"]!)).toBe("[A] <- [B] <- [D] <- [E]");
    expect(world.leftovers()).toEqual([]);
  });

  it("refuses a snapshot of its nodes, but not of others", async () => {
    const { bench: it, world, named, guest } = await streamedChain();
    const job = await it.start(named["D"]!, named["B"], { autoFinalize: false });
    await rest();
    for (const name of ["C", "D"]) {
      const overlay = world.image(`over-${name}`, { size: STREAMED_BYTES });
      await expect(world.graph.append(named[name]!, overlay)).rejects.toThrow(`Node '${name}' is busy`);
    }
    await world.graph.append(named["E"]!, world.image("S", { size: STREAMED_BYTES }));
    job.finalize();
    await job.concluded;
    expect(world.drawn(guest.node)).toBe("[A] <- [B] <- [D] <- [E] <- [S]");
    expect(world.leftovers()).toEqual([]);
  });

  it("waits for a snapshot that is just making its top read-only, and opens it again", async () => {
    const { bench: it, world, named, guest, seen } = await streamedChain();
    const gate = new Gate((call) => call.operation === "setReadOnly");
    world.driver("E").before = gate.before;
    const appended = world.graph.append(named["E"]!, world.image("S", { size: STREAMED_BYTES }));
    await gate.arrival();
    const starting = it.start(named["E"]!, named["A"]);
    gate.open();
    const [job] = await Promise.all([starting, appended]);
    await job.concluded;
    expect(job.error).toBeUndefined();
    expect(world.drawn(guest.node)).toBe("[A] <- [E] <- [S]");
    expect((await contentOf(guest.node)).equals(seen)).toBe(true);
    expect(named["E"]!.readOnly).toBe(true);
    expect(world.leftovers()).toEqual([]);
  });

  it("holds its top while it is opened for writing: the last one to leave does not close it", async () => {
    const { bench: it, world, named, guest } = await streamedChain();
    const gate = new Gate((call) => call.operation === "setWritable");
    world.driver("D").before = gate.before;
    const starting = it.start(named["D"]!, named["A"], { autoFinalize: false });
    await gate.arrival();
    await world.graph.release(guest);
    expect(["D", "E"].map((name) => world.driver(name).closed)).toEqual([false, true]);
    gate.open();
    const job = await starting;
    expect(world.graph.usesOf(named["D"]!).map(({ needs }) => needs)).toEqual([
      Permission.CONSISTENT_READ | Permission.WRITE_UNCHANGED,
    ]);
    while (job.status !== "pending") await rest();
    job.finalize();
    await job.concluded;
    expect(job.error).toBeUndefined();
    expect(world.driver("D").links).toEqual([{ file: "A.img", format: "array" }]);
    expect([...world.graph.nodes]).toEqual([]);
    expect(world.leftovers()).toEqual([]);
  });

  it.each(["setWritable", "use"])("gives everything back when its top's %s fails", async (what) => {
    const { bench: it, world, named, guest } = await streamedChain();
    const { before } = world.driver("D");
    world.driver("D").before = (call) => {
      if (call.operation !== "setWritable") return before(call);
      if (what === "setWritable") throw new BlockError("EIO", "no writing today");
      // Somebody who lets nobody write comes in the middle.
      const needs = Permission.CONSISTENT_READ;
      world.guest(named["D"]!, { user: "rival", needs, shares: needs });
    };
    await expect(it.start(named["D"]!, named["A"])).rejects.toThrow(
      what === "use" ? "unshared by rival" : "no writing today",
    );
    expect(named["D"]!.readOnly).toBe(true);
    expect(world.graph.usesOf(named["D"]!).map(({ user }) => user)).not.toContain("stream job 'job0'");
    await world.graph.release(guest);
    expect(world.graph.find("C")?.claims.size).toBe(what === "use" ? 1 : undefined);
    expect(world.leftovers()).toEqual([]);
  });

  it("gives everything back when its id was taken while it was being made", async () => {
    const { bench: it, world, named } = await streamedChain();
    const [first, second] = [it.start(named["E"]!, named["D"]), it.start(named["C"]!, named["A"])];
    await expect(Promise.all([first, second])).rejects.toThrow("Job ID 'job0' already in use");
    await (await first).concluded;
    await rest();
    expect(world.leftovers()).toEqual([]);
    expect(named["C"]!.readOnly).toBe(true);
  });

  it("lets no other job begin before its own top is read-only again", async () => {
    const { bench: it, world, named } = await streamedChain();
    const gate = new Gate((call) => call.operation === "setReadOnly");
    world.driver("D").before = gate.before;
    const job = await it.start(named["D"]!, named["B"]);
    await gate.arrival();
    const next = it.start(named["D"]!, named["A"], { id: "next" });
    await expect(next).rejects.toThrow("Node 'D' is busy");
    gate.open();
    await job.concluded;
    await it.run(named["D"]!, named["A"], { id: "later" });
    expect(world.drawn(named["E"]!)).toBe("[A] <- [D] <- [E]");
    expect(world.leftovers()).toEqual([]);
  });
});

describe("the guest wins", () => {
  const K = 7;
  it.each([
    ["writes all of it", 0, 512, "write"],
    ["writes its head", 0, 100, "write"],
    ["writes its tail", 400, 112, "write"],
    ["writes its middle", 100, 300, "write"],
    ["discards it", 0, 512, "discard"],
    ["zeroes it", 0, 512, "writeZeroes"],
    ["zeroes a part of it", 10, 20, "writeZeroes"],
  ] as const)("over a cluster whose copy-up is held: %s", async (_what, from, bytes, operation) => {
    for (const when of ["before its copy", "while it is read"]) {
      const { bench: it, world, named, guest, seen } = await streamedChain();
      const gate = new Gate((call) =>
        when === "before its copy"
          ? call.operation === "copyUp"
          : call.operation === "read" && call.offset === K * 512,
      );
      world.driver(when === "before its copy" ? "E" : "D").before = gate.before;
      const job = await it.start(named["E"]!, undefined);
      await gate.arrival();
      const expected = Buffer.from(seen);
      const at = K * 512 + from;
      const content = Buffer.alloc(bytes, "g");
      if (operation === "write") content.copy(expected, at);
      else expected.fill(0, at, at + bytes);
      const done =
        operation === "write" ? guest.node.write(at, bytes, content, 0) : guest.node[operation](at, bytes);
      await rest();
      gate.open();
      await Promise.all([done, job.concluded]);
      expect(job.error).toBeUndefined();
      expect(world.drawn(guest.node)).toBe("[E]");
      expect((await contentOf(guest.node)).equals(expected), when).toBe(true);
      expect(world.leftovers()).toEqual([]);
    }
  });
});

describe("pause, speed and cancel", () => {
  it("stands still in the middle, with nothing in flight, and goes on where it was", async () => {
    const { bench: it, world, named, guest, seen } = await streamedChain();
    const gate = new Gate((call) => call.operation === "copyUp");
    world.driver("E").before = gate.before;
    const job = await it.start(named["E"]!, undefined);
    await gate.arrival();
    job.pause();
    await rest();
    expect(job.status).toBe("running");
    gate.open();
    while (job.status !== "paused") await rest();
    expect(named["E"]!.inFlight).toBe(0);
    job.resume();
    await job.concluded;
    expect((await contentOf(guest.node)).equals(seen)).toBe(true);
    expect(world.drawn(guest.node)).toBe("[E]");
  });

  it("can be cancelled at every step of the scheduler; the chain stays, or was finished before", async () => {
    for (let step = 0; ; step++) {
      const scheduler = new Scheduler(new Prng(step), { waitChance: 1 });
      const it = new StreamBench(scheduler.clock);
      const before = (call: Call) => scheduler.step(call.operation);
      const { nodes, guest } = it.world.chain("A B C D", { size: 4 * 512 });
      it.world.fill("A", 0, 2);
      it.world.fill("B", 1, 2);
      const seen = await contentOf(guest.node);
      for (const driver of it.world.drivers.values()) driver.before = before;
      const job = await scheduler.until(it.start(nodes[2]!, nodes[0]!, { autoDismiss: false }));
      await scheduler.run(step);
      const late = job.status === "concluded";
      const cancelled = !late && job.status !== "pending";
      if (!late) job.cancel();
      await scheduler.until(job.concluded);
      for (const driver of it.world.drivers.values()) driver.before = () => {};
      const drawn = it.world.drawn(guest.node);
      expect(drawn, `step ${step}`).toBe(cancelled ? "[A] <- [B] <- [C] <- [D]" : "[A] <- [C] <- [D]");
      expect((await contentOf(guest.node)).equals(seen)).toBe(true);
      expect(it.world.leftovers(), `step ${step}`).toEqual([]);
      expect(nodes[2]!.readOnly).toBe(true);
      if (late) return;
    }
  });

  it("keeps to its speed", async () => {
    const clusters = 64;
    const scheduler = new Scheduler(new Prng(1));
    const it = new StreamBench(scheduler.clock);
    const { nodes } = it.world.chain("A B", { size: clusters * 65536, clusterSize: 65536 });
    it.world.fill("A", 0, clusters);
    const startMs = scheduler.clock.nowMs();
    const job = await it.start(nodes[1]!, undefined, { speed: 1024 * 1024 });
    await scheduler.until(job.concluded);
    // 4 MiB at 1 MiB a second; one chunk of 512 KiB goes first, a tenth of a second may be drawn ahead.
    expect(scheduler.clock.nowMs() - startMs).toBeGreaterThanOrEqual(3300);
    expect(job.offset).toBe(clusters * 65536);
  });
});

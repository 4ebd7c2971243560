// Filters in a chain: a merge looks through them, and what they show counts.

import { describe, expect, it } from "vitest";
import { Prng } from "../base/prng.ts";
import { chainOf, imageOf } from "../block/chain.ts";
import type { BlockNode } from "../block/node.ts";
import { contentOf } from "../block/testing/array-world.ts";
import type { FilterDriver } from "../block/testing/filter-driver.ts";
import { type Call, Faults } from "../block/testing/interpose.ts";
import { Scheduler } from "../block/testing/scheduler.ts";
import { StreamBench } from "./testing/stream-bench.ts";

const SIZE = 8 * 512;

/**
 * "A fA B": A, a filter over it, B; the last one is open for writing. What each image holds shows in part.
 */
async function chain(names: string, bench = new StreamBench()) {
  const { world } = bench;
  let top: BlockNode | undefined;
  const all = names.split(" ");
  const writable = all.findLastIndex((name) => !name.startsWith("f"));
  for (const [at, name] of all.entries()) {
    const readOnly = at < writable;
    if (name.startsWith("f")) top = world.filter(name, top!, readOnly);
    else {
      top = world.image(name, { size: SIZE, readOnly, ...(top && { backing: top }) });
      world.fill(name, at % 5, 3);
    }
  }
  const guest = world.guest(top!);
  const named = (name: string) => world.graph.get(name);
  return { bench, world, top: top!, guest, named, seen: await contentOf(top!) };
}

describe("a merge with filters in the chain", () => {
  it.each([
    ["A B fB C", "C", undefined, "[C]", [undefined]],
    ["A B fB C", "C", "A", "[A] <- [C]", ["A.img"]],
    ["A B fB C", "C", "fB", "[A] <- [B] <- [fB] <- [C]", []],
    ["A B fB C", "C", "B", "[A] <- [B] <- [C]", ["/images/B.img"]],
    ["A B fB ffB C", "C", "fB", "[A] <- [B] <- [fB] <- [C]", ["/images/B.img"]],
    ["A fA B C", "C", "fA", "[A] <- [fA] <- [C]", ["A.img"]],
    ["A fA B C", "C", "A", "[A] <- [C]", ["A.img"]],
    ["A B fB C D", "B", undefined, "[B] <- [fB] <- [C] <- [D]", [undefined]],
    ["A B C fC", "fC", "A", "[A] <- [C] <- [fC]", ["A.img"]],
    ["A B C fC fD", "fD", undefined, "[C] <- [fC] <- [fD]", [undefined]],
  ] as const)("%s, %s onto %s", async (names, into, base, drawn, links) => {
    const { bench, world, guest, named, seen } = await chain(names);
    const image = imageOf(named(into)).name;
    const job = await bench.run(named(into), base && named(base));
    expect(job.error).toBeUndefined();
    expect(world.drawn(guest.node)).toBe(drawn);
    const written = world.driver(image).links.map(({ file }) => file);
    expect(written.map((file) => file?.split("/").at(-1))).toEqual(
      links.map((link) => link?.split("/").at(-1)),
    );
    expect(world.driver(image).links.every(({ format }) => format !== "filter")).toBe(true);
    expect((await contentOf(guest.node)).equals(seen)).toBe(true);
    expect(world.leftovers()).toEqual([]);
  });

  it("any top onto any base, with guests writing through a filter: the guest wins, seeds", async () => {
    for (let seed = 0; seed < 60; seed++) {
      const prng = new Prng(seed);
      const scheduler = new Scheduler(prng, { waitChance: prng.pick([0.3, 1]) });
      const names = ["A", "B", "C", "D", "E"].flatMap((name) =>
        [name, `f${name}`, `ff${name}`].slice(0, prng.between(1, 3)),
      );
      const { world, guest, bench, top, seen } = await chain(
        names.join(" "),
        new StreamBench(scheduler.clock),
      );
      for (const node of world.graph.nodes) {
        const driver = node.driver as FilterDriver;
        driver.before = (call: Call) => scheduler.step(call.operation);
      }
      const nodes = chainOf(top);
      const into = prng.pick([top, ...nodes.filter((node) => node.filtered === undefined)]);
      const below = chainOf(into).filter((node) => imageOf(node) !== imageOf(into));
      const base = prng.pick([undefined, ...below]);
      const wanted = nodes.filter(
        (node) =>
          chainOf(node).includes(imageOf(into)) || (base !== undefined && chainOf(base).includes(node)),
      );
      const job = await scheduler.until(bench.start(into, base));
      const client = (async () => {
        for (let i = 0; i < 12; i++) {
          const at = prng.below(SIZE - 700);
          const written = Buffer.alloc(prng.between(1, 700), prng.between(1, 255));
          written.copy(seen, at);
          await guest.node.write(at, written.length, written, 0);
        }
      })();
      await scheduler.until(Promise.all([job.concluded, client]));
      for (const node of world.graph.nodes) (node.driver as FilterDriver).before = () => {};
      const where = `seed ${seed}: ${names.join(" ")}, ${into.name} onto ${base?.name}`;
      expect(job.error, where).toBeUndefined();
      expect(chainOf(top), where).toEqual(wanted);
      expect((await contentOf(guest.node)).equals(seen), where).toBe(true);
      expect(world.leftovers(), where).toEqual([]);
    }
  });

  it("what a filter in the middle refuses to read is an error of the copy, and the chain stays", async () => {
    const { bench, world, guest, named, seen } = await chain("A B fB C");
    const faults = new Faults(0, ({ operation }) => operation === "read", "ENOSPC");
    (named("fB").driver as FilterDriver).before = faults.before;
    const job = await bench.run(named("C"), named("A"), { onError: "report" });
    expect(job.error).toBe("No space left on device");
    expect(world.drawn(guest.node)).toBe("[A] <- [B] <- [fB] <- [C]");
    expect((await contentOf(guest.node)).equals(seen)).toBe(true);
    expect(world.leftovers()).toEqual([]);
  });

  it("a filter on top is asked before each copy into its image", async () => {
    const { bench, world, guest, named } = await chain("A B fB");
    const faults = new Faults(0, ({ operation }) => operation === "copyUp");
    (named("fB").driver as FilterDriver).before = faults.before;
    const job = await bench.run(named("fB"), undefined);
    expect([job.error, faults.failed]).toEqual(["Input/output error", 1]);
    expect(world.drawn(guest.node)).toBe("[A] <- [B] <- [fB]");
  });

  it.each(["stop", "ignore", "report"] as const)(
    "'%s' also when only what is there is asked",
    async (onError) => {
      const { bench, world, guest, named, seen } = await chain("A B fB C");
      const faults = new Faults(0, ({ operation }) => operation === "extents");
      (named("fB").driver as FilterDriver).before = faults.before;
      const job = await bench.start(named("C"), undefined, { onError });
      if (onError === "stop") {
        while (job.status !== "paused") await new Promise((resolve) => setImmediate(resolve));
        expect(job.ioStatus).toBe("failed");
        job.resume();
      }
      await job.concluded;
      expect(bench.events).toContain(`BLOCK_JOB_ERROR job0 ${onError}`);
      expect(job.error).toBe(onError === "stop" ? undefined : "Input/output error");
      expect(world.drawn(guest.node)).toBe(onError === "stop" ? "[C]" : "[A] <- [B] <- [fB] <- [C]");
      expect((await contentOf(guest.node)).equals(seen)).toBe(true);
      expect(world.leftovers()).toEqual([]);
    },
  );

  it("refuses what is no merge, and a filter that is read-only", async () => {
    const { bench, named } = await chain("A B fB C");
    await expect(bench.start(named("fB"), named("B"))).rejects.toThrow(
      "'B' is not in the backing chain of 'fB'",
    );
    await expect(bench.start(named("fB"), named("fB"))).rejects.toThrow("Node 'fB' is not a backing image");
    await expect(bench.start(named("fB"), named("A"))).rejects.toThrow("stream into 'B', which it shows");
    expect(named("B").blockers.size).toBe(0);
  });
});

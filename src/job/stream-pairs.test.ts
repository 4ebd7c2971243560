import { describe, expect, it } from "vitest";
import { Prng } from "../base/prng.ts";
import { contentOf } from "../block/testing/array-world.ts";
import { type Call, inOrder } from "../block/testing/interpose.ts";
import { rest, Scheduler } from "../block/testing/scheduler.ts";
import type { Job } from "./job.ts";
import type { StreamSettings } from "./stream.ts";
import { StreamBench } from "./testing/stream-bench.ts";

const UNDER_WAY = ["running", "paused"];

describe("two jobs on disjoint parts", () => {
  const NAMES = "A B C D E F G";

  async function both(scheduler: Scheduler, settings: Partial<StreamSettings> = {}) {
    const it = new StreamBench(scheduler.clock);
    const { world } = it;
    const { nodes, guest } = world.chain(NAMES, { size: 8 * 512 });
    NAMES.split(" ").forEach((name, at) => {
      world.fill(name, at, 2);
    });
    const seen = await contentOf(guest.node);
    for (const driver of world.drivers.values()) driver.before = (call) => scheduler.step(call.operation);
    const [a, d, g] = [nodes[0]!, nodes[3]!, nodes[6]!];
    // G onto D merges E and F; D onto A merges B and C. D is base of the one and top of the other.
    const upper = await scheduler.until(it.start(g, d, { id: "upper", ...settings }));
    const lower = await scheduler.until(it.start(d, a, { id: "lower", ...settings }));
    return { it, world, guest, seen, upper, lower };
  }

  async function judge(made: Awaited<ReturnType<typeof both>>, where: string) {
    const { world, guest, seen, upper, lower } = made;
    for (const driver of world.drivers.values()) driver.before = () => {};
    expect([upper.error, lower.error], where).toEqual([undefined, undefined]);
    expect(world.drawn(guest.node), where).toBe("[A] <- [D] <- [G]");
    expect(world.driver("G").links, where).toEqual([{ file: "D.img", format: "array" }]);
    expect(world.driver("D").links, where).toEqual([{ file: "A.img", format: "array" }]);
    expect((await contentOf(guest.node)).equals(seen), where).toBe(true);
    expect(world.leftovers(), where).toEqual([]);
    expect([...world.graph.nodes].map((node) => [node.name, node.readOnly])).toEqual([
      ["A", true],
      ["D", true],
      ["G", false],
    ]);
  }

  it.each([0, 1, 2, 3])(
    "end in each other's completion windows, with guest requests between; batch %d",
    async (batch) => {
      for (let seed = batch * 25; seed < batch * 25 + 25; seed++) {
        const prng = new Prng(seed);
        const scheduler = new Scheduler(prng, { waitChance: prng.pick([0.2, 0.6, 1]) });
        const made = await both(scheduler);
        const client = (async () => {
          for (let i = 0; i < 20; i++) {
            const cluster = prng.below(8);
            const written = Buffer.alloc(prng.between(1, 512), prng.between(1, 255));
            written.copy(made.seen, cluster * 512);
            await made.guest.node.write(cluster * 512, written.length, written, 0);
            const read = Buffer.alloc(512 * 8);
            await made.guest.node.read(0, read.length, read, 0);
            expect(read.equals(made.seen), `seed ${seed}`).toBe(true);
          }
        })();
        await scheduler.until(Promise.all([made.upper.concluded, made.lower.concluded, client]));
        await judge(made, `seed ${seed}`);
      }
    },
  );

  it.each(["upper", "lower"] as const)("with a pause of the %s one at every step", async (who) => {
    for (let step = 0; ; step++) {
      const scheduler = new Scheduler(new Prng(7), { waitChance: 1 });
      const made = await both(scheduler);
      await scheduler.run(step);
      const job: Job = made[who];
      const over = job.status === "concluded";
      const pausable = job.status === "running";
      if (pausable) job.pause();
      await scheduler.until(made[who === "upper" ? "lower" : "upper"].concluded);
      await rest();
      if (job.paused && UNDER_WAY.includes(job.status)) job.resume();
      await scheduler.until(job.concluded);
      await judge(made, `step ${step}`);
      if (over) return;
    }
  });

  it("with the longest delay at every one call", async () => {
    for (let at = 0; ; at++) {
      const scheduler = new Scheduler(new Prng(3), { waitChance: 0.5 });
      const made = await both(scheduler);
      let calls = 0;
      const slow = (call: Call) => (calls++ === at ? scheduler.last(call.operation) : undefined);
      for (const driver of made.world.drivers.values()) driver.before = inOrder(slow, driver.before);
      await scheduler.until(Promise.all([made.upper.concluded, made.lower.concluded]));
      await judge(made, `call ${at}`);
      if (calls <= at) return;
    }
  });
});

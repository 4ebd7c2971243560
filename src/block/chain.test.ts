import { describe, expect, it } from "vitest";
import { Prng } from "../base/prng.ts";
import {
  CHAIN_LENGTH_MAX,
  chainOf,
  composedExtents,
  imageOf,
  isInChain,
  layersAbove,
  nodeBelow,
} from "./chain.ts";
import { ExtentKind, ExtentList } from "./extent.ts";
import type { BlockNode } from "./node.ts";
import { ArrayWorld } from "./testing/array-world.ts";
import type { FilterDriver } from "./testing/filter-driver.ts";
import { Faults, Gate, inOrder } from "./testing/interpose.ts";
import { Scheduler } from "./testing/scheduler.ts";

const { UNALLOCATED, ZERO, DATA } = ExtentKind;

describe("walks", () => {
  const { nodes } = new ArrayWorld().chain("A B C D", { size: 4096 });
  const [a, b, c, d] = nodes as [BlockNode, BlockNode, BlockNode, BlockNode];

  it("go from the top down", () => {
    expect(chainOf(d)).toEqual([d, c, b, a]);
    expect(layersAbove(d, a)).toEqual([d, c, b]);
    expect(layersAbove(d, undefined)).toEqual([d, c, b, a]);
    expect(layersAbove(d, d)).toEqual([]);
    expect(isInChain(d, a)).toBe(true);
    expect(isInChain(a, d)).toBe(false);
  });

  it("go through filters", () => {
    const world = new ArrayWorld();
    const base = world.image("base", { size: 4096, readOnly: true });
    const inner = world.filter("inner", base);
    const outer = world.filter("outer", inner);
    const top = world.image("top", { size: 4096, backing: outer });
    expect(chainOf(top)).toEqual([top, outer, inner, base]);
    expect(layersAbove(top, base)).toEqual([top, outer, inner]);
    expect([top, outer, inner, base].map(imageOf)).toEqual([top, base, base, base]);
    expect([top, outer, inner, base].map(nodeBelow)).toEqual([outer, inner, base, undefined]);
  });

  it("refuse a base above the top, by both names", () => {
    expect(() => layersAbove(b, d)).toThrow("Node 'D' is not a backing image of 'B'");
  });

  it("end at a limit, which is counted in images", () => {
    const world = new ArrayWorld();
    const names = Array.from({ length: CHAIN_LENGTH_MAX }, (_, i) => `n${i}`).join(" ");
    const { nodes: long, guest } = world.chain(names, { size: 512 });
    const top = long[long.length - 1]!;
    guest.needs = 0;
    expect(chainOf(top)).toHaveLength(CHAIN_LENGTH_MAX);
    expect(() => world.image("more", { size: 512, backing: top })).toThrow("more than 256 images");
    expect(chainOf(top)).toHaveLength(CHAIN_LENGTH_MAX);
  });
});

describe("ExtentList", () => {
  it("merges what continues, and keeps apart what does not", () => {
    const list = new ExtentList(100);
    list.push(10, DATA, 0, false);
    list.push(10, DATA, 10, false);
    list.push(10, DATA, 50, false);
    list.push(10, DATA, -1, true);
    list.push(10, DATA, -1, true);
    list.push(0, ZERO, -1, false);
    list.push(10, ZERO, -1, false);
    list.push(10, ZERO, -1, false, 1);
    const short = list.extents.map((one) => [one.offset, one.bytes, one.kind, one.hostOffset, one.depth]);
    expect(short).toEqual([
      [100, 20, DATA, 0, 0],
      [120, 10, DATA, 50, 0],
      [130, 20, DATA, -1, 0],
      [150, 10, ZERO, -1, 0],
      [160, 10, ZERO, -1, 1],
    ]);
    expect(list.end).toBe(170);
  });

  it("takes what continues its last extent though it is full", () => {
    const list = new ExtentList(0, 1);
    expect(list.push(10, ZERO, -1, false)).toBe(true);
    expect(list.push(10, ZERO, -1, false)).toBe(true);
    expect(list.push(10, DATA, 0, false)).toBe(false);
    expect([list.end, list.extents.length]).toEqual([20, 1]);
  });
});

/** What each byte is by a walk that a child would write: [kind, depth]. */
function naive(world: ArrayWorld, top: BlockNode, base: BlockNode | undefined, offset: number) {
  let depth = 0;
  for (let node: BlockNode | undefined = top; node !== undefined && node !== base; node = nodeBelow(node)) {
    if (node.filtered !== undefined) {
      depth++;
      continue;
    }
    if (offset >= node.size) return [ZERO, depth];
    const driver = world.driver(node.name);
    const cluster = driver.clusters[Math.floor(offset / driver.clusterSize)];
    if (cluster === "zero") return [ZERO, depth];
    if (cluster !== undefined) return [DATA, depth];
    depth++;
  }
  return [UNALLOCATED, depth];
}

describe("what a chain says together", () => {
  it.each([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])(
    "agrees with a naive walk for every byte, seed %d",
    async (seed) => {
      const prng = new Prng(seed);
      const world = new ArrayWorld();
      const scheduler = new Scheduler(prng, { waitChance: prng.pick([0, 0.3, 1]) });
      const before = () => scheduler.step("extents");
      let top: BlockNode | undefined;
      for (const name of ["A", "B", "C", "D"]) {
        const clusterSize = prng.pick([512, 1024, 4096]);
        const size = prng.between(1, 40) * 512 + prng.pick([0, 1, 511]);
        top = world.image(name, { size, clusterSize, before, ...(top && { backing: top }) });
        world.scatter(name, prng);
        for (const filter of ["f", "g"].slice(prng.below(3))) top = world.filter(filter + name, top, true);
      }
      const shown = chainOf(top!).map((node) => node.filtered);
      const base = prng.pick([undefined, ...chainOf(top!).filter((node) => !shown.includes(node))]);
      for (let i = 0; i < 10; i++) {
        const offset = prng.below(top!.size);
        const bytes = prng.between(1, top!.size - offset);
        const list = new ExtentList(offset);
        const told = async () => composedExtents(top!, base, offset, bytes, list);
        await scheduler.until(told());
        expect(list.end, `seed ${seed}`).toBe(offset + bytes);
        for (const extent of list.extents) {
          for (const at of [extent.offset, extent.offset + extent.bytes - 1]) {
            expect([extent.kind, extent.depth], `seed ${seed}, byte ${at}`).toEqual(
              naive(world, top!, base, at),
            );
          }
        }
        // Nothing is merged away: wherever the naive walk changes, an extent begins.
        const begins = new Set(list.extents.map((extent) => extent.offset));
        for (let at = offset + 1; at < offset + bytes; at++) {
          const changes = naive(world, top!, base, at).join() !== naive(world, top!, base, at - 1).join();
          if (changes) expect(begins.has(at), `seed ${seed}, byte ${at}`).toBe(true);
        }
      }
      expect(world.leftovers()).toEqual([]);
    },
  );

  it("is told by a layer of many small extents, in parts", () => {
    const world = new ArrayWorld();
    const top = world.image("A", { size: 512 * 1000 });
    for (let index = 0; index < 1000; index += 2) world.driver("A").clusters[index] = "zero";
    const list = new ExtentList(0);
    expect(composedExtents(top, undefined, 0, top.size, list)).toBeUndefined();
    expect(list.extents).toHaveLength(1000);
  });

  it("hides what lies deeper than a short middle layer", () => {
    const world = new ArrayWorld();
    const base = world.image("base", { size: 8 * 512 });
    const middle = world.image("middle", { size: 4 * 512, backing: base });
    const top = world.image("top", { size: 8 * 512, backing: middle });
    world.fill("base", 0, 8);
    const above = new ExtentList(0);
    composedExtents(top, base, 0, top.size, above);
    expect(above.extents.map(({ bytes, kind, depth }) => [bytes, kind, depth])).toEqual([
      [2048, UNALLOCATED, 2],
      [2048, ZERO, 1],
    ]);
    const all = new ExtentList(0);
    composedExtents(top, undefined, 0, top.size, all);
    expect(all.extents.map(({ bytes, kind, depth }) => [bytes, kind, depth])).toEqual([
      [2048, DATA, 2],
      [2048, ZERO, 1],
    ]);
  });

  it("stops when no more is wanted", () => {
    const world = new ArrayWorld();
    const { nodes } = world.chain("A B", { size: 4096 });
    world.driver("B").clusters[1] = "zero";
    const seen: number[] = [];
    composedExtents(nodes[1]!, undefined, 0, 4096, { push: (bytes) => seen.push(bytes) < 2 });
    expect(seen).toEqual([512, 512]);
  });

  it("does not fall through a layer whose backing link changes meanwhile", async () => {
    // [A] <- [B] <- [C] <- [D]: C tells that it lacks a cluster; before B is asked, C gets the cluster and
    // loses B.
    const world = new ArrayWorld();
    const { nodes } = world.chain("A B C D", { size: 512 });
    const [a, , c, d] = nodes as [BlockNode, BlockNode, BlockNode, BlockNode];
    expect(world.drawn(d)).toBe("[A] <- [B] <- [C] <- [D]");
    world.fill("B", 0, 1);
    const gate = new Gate((call) => call.operation === "extents");
    world.driver("B").before = inOrder(gate.before);
    const list = new ExtentList(0);
    const telling = composedExtents(d, undefined, 0, 512, list);
    await gate.arrival();
    let changed = false;
    const changing = (async () => {
      await c.quiesce();
      world.fill("C", 0, 1);
      world.graph.linkBacking(c, a);
      changed = true;
      c.resume();
    })();
    await new Promise((resolve) => setImmediate(resolve));
    expect(changed).toBe(false);
    gate.open();
    await Promise.all([telling, changing]);
    expect(list.extents.map(({ kind, depth }) => [kind, depth])).toEqual([[DATA, 2]]);
  });

  it("fails when a filter does, which is asked before its image", async () => {
    const world = new ArrayWorld();
    const image = world.image("image", { size: 4096, readOnly: true });
    const filter = world.filter("filter", image);
    const top = world.image("top", { size: 4096, backing: filter });
    const asked: string[] = [];
    world.driver("image").before = ({ node }) => void asked.push(node);
    const failing = new Faults(0, ({ operation }) => operation === "extents");
    (filter.driver as FilterDriver).before = failing.before;
    const tell = async () => composedExtents(top, undefined, 0, 4096, new ExtentList(0));
    await expect(tell()).rejects.toThrow("injected fault: extents of 'filter' at 0");
    expect(asked).toEqual([]);
    await tell();
    expect(asked).toEqual(["image", "image"]);
    expect([filter.inFlight, image.inFlight]).toEqual([0, 0]);
  });

  it("fails when a layer does, and nothing stays in flight", async () => {
    for (const later of [false, true]) {
      const world = new ArrayWorld();
      const { nodes } = world.chain("A B C", { size: 4096 });
      world.driver("A").before = () => {
        if (!later) throw new Error("no table");
        return Promise.reject(new Error("no table"));
      };
      const telling = async () => composedExtents(nodes[2]!, undefined, 0, 4096, new ExtentList(0));
      await expect(telling()).rejects.toThrow("no table");
      expect(world.leftovers()).toEqual([]);
    }
  });
});

import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { describe, expect, it } from "vitest";
import { Prng } from "../base/prng.ts";
import type { BlockNode } from "./node.ts";
import { OwnerIndex } from "./owner-index.ts";
import { ArrayWorld } from "./testing/array-world.ts";
import { Gate } from "./testing/interpose.ts";

const CLUSTER = 512;
const CLUSTERS = 24;
const SIZE = CLUSTERS * CLUSTER;

async function read(index: OwnerIndex, node: BlockNode, offset = 0, bytes = SIZE): Promise<Buffer> {
  const buffer = Buffer.alloc(bytes, 0xee);
  await index.read(node, offset, bytes, buffer, 0);
  return buffer;
}

async function plain(node: BlockNode, offset = 0, bytes = SIZE): Promise<Buffer> {
  const buffer = Buffer.alloc(bytes);
  const inside = Math.max(0, Math.min(bytes, node.size - offset));
  if (inside > 0) await node.read(offset, inside, buffer, 0);
  return buffer;
}

function deepChain(world: ArrayWorld, names = "A B C D E"): { backing: BlockNode; nodes: BlockNode[] } {
  const { nodes } = world.chain(names, { size: SIZE });
  return { backing: nodes[nodes.length - 2]!, nodes };
}

describe("the owner of a unit", () => {
  it("is read at once, without asking the layers above it", async () => {
    const world = new ArrayWorld();
    const { backing, nodes } = deepChain(world);
    world.fill("A", 0, CLUSTERS);
    world.fill("C", 3, 1);
    const index = new OwnerIndex(CLUSTER);
    expect((await read(index, backing))[3 * CLUSTER]).toBe("C".charCodeAt(0));
    const [a, b, c, d] = nodes.map((node) => node.counters.reads);
    expect([a, b, c, d]).toEqual([2, 0, 1, 0]);
    expect(await read(index, backing, 3 * CLUSTER + 10, 20)).toEqual(Buffer.alloc(20, "C"));
    expect(nodes.map((node) => node.counters.reads)).toEqual([2, 0, 2, 0, 0]);
  });

  it("is looked for again when a table had to be loaded first", async () => {
    const world = new ArrayWorld();
    const { backing, nodes } = deepChain(world);
    world.fill("A", 0, CLUSTERS);
    world.driver("C").unknownOnce = true;
    const index = new OwnerIndex(CLUSTER);
    const expected = Buffer.alloc(CLUSTER, "A");
    expect(await read(index, backing, 0, CLUSTER)).toEqual(expected);
    expect(nodes[2]!.counters.reads).toBe(1);
    expect(await read(index, backing, 0, CLUSTER)).toEqual(expected);
    expect(nodes[2]!.counters.reads).toBe(1);
  });

  it("is never deeper than an image that somebody may write to", async () => {
    const world = new ArrayWorld();
    const { backing, nodes } = deepChain(world);
    world.fill("A", 0, CLUSTERS);
    const index = new OwnerIndex(CLUSTER);
    await read(index, backing);
    await nodes[2]!.setWritable(true);
    expect(await read(index, backing, 0, CLUSTER)).toEqual(Buffer.alloc(CLUSTER, "A"));
    await nodes[2]!.write(0, CLUSTER, Buffer.alloc(CLUSTER, "x"), 0);
    expect(await read(index, backing, 0, CLUSTER)).toEqual(Buffer.alloc(CLUSTER, "x"));
    await nodes[2]!.setWritable(false);
    expect(await read(index, backing, 0, CLUSTER)).toEqual(Buffer.alloc(CLUSTER, "x"));
  });

  it("follows the backing links as they change", async () => {
    const world = new ArrayWorld();
    const { backing, nodes } = deepChain(world);
    world.fill("A", 0, CLUSTERS);
    world.fill("B", 1, 1);
    const index = new OwnerIndex(CLUSTER);
    await read(index, backing);
    const other = world.image("O", { size: SIZE, readOnly: true });
    world.fill("O", 0, CLUSTERS);
    await nodes[2]!.quiesce();
    nodes[2]!.setBacking(other);
    nodes[2]!.resume();
    expect(await read(index, backing)).toEqual(Buffer.alloc(SIZE, "O"));
  });

  it("waits at the door of an image that is held back, and passes over none of them", async () => {
    const world = new ArrayWorld();
    const { backing, nodes } = deepChain(world);
    world.fill("A", 0, CLUSTERS);
    const index = new OwnerIndex(CLUSTER);
    await read(index, backing);
    await nodes[2]!.quiesce();
    let isDone = false;
    const reading = read(index, backing, 0, CLUSTER).then(() => {
      isDone = true;
    });
    for (let i = 0; i < 20; i++) await Promise.resolve();
    expect(isDone).toBe(false);
    nodes[2]!.resume();
    await reading;
  });

  it("gives zeros past the end of a short image, never what lies deeper", async () => {
    const world = new ArrayWorld();
    const a = world.image("A", { size: SIZE, readOnly: true });
    world.fill("A", 0, CLUSTERS);
    const b = world.image("B", { size: 3 * CLUSTER + 100, backing: a, readOnly: true });
    const c = world.image("C", { size: SIZE, backing: b, readOnly: true });
    const index = new OwnerIndex(CLUSTER);
    const content = await read(index, c);
    const expected = Buffer.alloc(SIZE);
    expected.fill("A", 0, 3 * CLUSTER + 100);
    expect(content.equals(expected)).toBe(true);
    expect(content.equals(await plain(c))).toBe(true);
  });

  it("keeps no image alive that has left its chain, though nobody reads through it again", async () => {
    const index = new OwnerIndex(CLUSTER);
    // In a function of its own, so that nothing here refers to the image either.
    const use = async () => {
      const world = new ArrayWorld();
      const { backing, nodes } = deepChain(world);
      world.fill("A", 0, CLUSTERS);
      await read(index, backing);
      nodes[2]!.setBacking(nodes[0]!);
      return new WeakRef(nodes[1]!);
    };
    const left = await use();
    setFlagsFromString("--expose-gc");
    const collectGarbage = runInNewContext("gc") as () => void;
    // A WeakRef keeps its target until the turn of the loop has ended.
    await new Promise((resolve) => setImmediate(resolve));
    collectGarbage();
    expect(left.deref()).toBeUndefined();
    expect(index).toBeInstanceOf(OwnerIndex);
  });

  it("hands up an error when all other parts have settled", async () => {
    const world = new ArrayWorld();
    const { backing } = deepChain(world);
    world.fill("A", 0, CLUSTERS);
    world.fill("B", 1, 1);
    const gate = new Gate(() => true);
    world.driver("A").before = gate.before;
    world.driver("B").before = () => {
      throw new Error("B is broken");
    };
    const index = new OwnerIndex(CLUSTER);
    let failure: string | undefined;
    const reading = read(index, backing, 0, 3 * CLUSTER).catch((error: Error) => {
      failure = error.message;
    });
    for (let i = 0; i < 20; i++) await Promise.resolve();
    expect(failure).toBeUndefined();
    gate.open();
    await reading;
    expect(failure).toBe("B is broken");
  });
});

const seeds = Number(process.env["STRATA_RUNS"] ?? 60);

describe("random chains", () => {
  for (let seed = 1; seed <= seeds; seed++) {
    it(`read alike with and without the index: seed ${seed}`, async () => {
      const prng = new Prng(seed);
      const world = new ArrayWorld();
      const layers: BlockNode[] = [];
      for (let i = 0; i < prng.between(2, 8); i++) {
        const backing = layers[layers.length - 1];
        const size = prng.below(4) === 0 ? prng.between(1, CLUSTERS) * CLUSTER - prng.below(300) : SIZE;
        const clusterSize = CLUSTER << prng.below(3);
        const more = backing === undefined ? {} : { backing };
        layers.push(world.image(`n${i}`, { size, clusterSize, readOnly: prng.below(8) > 0, ...more }));
        world.scatter(`n${i}`, prng);
      }
      const top = layers[layers.length - 1]!;
      const index = new OwnerIndex(CLUSTER << prng.below(3));
      for (let step = 0; step < 40; step++) {
        await change(prng, world, layers);
        const offset = prng.below(SIZE);
        const bytes = prng.between(1, SIZE - offset);
        const [fast, slow] = [await read(index, top, offset, bytes), await plain(top, offset, bytes)];
        expect(fast.equals(slow)).toBe(true);
      }
    });
  }
});

/** Now and then somebody writes, or gives or takes the right to. */
async function change(prng: Prng, world: ArrayWorld, layers: readonly BlockNode[]): Promise<void> {
  const node = layers[prng.below(layers.length)]!;
  const driver = world.driver(node.name);
  if (prng.below(4) === 0) driver.unknownOnce = true;
  if (prng.below(5) === 0) await node.setWritable(node.readOnly);
  if (node.readOnly || prng.below(2) === 0) return;
  const bytes = prng.between(1, Math.min(node.size, 3 * CLUSTER));
  const data = Buffer.alloc(bytes, prng.between(1, 255));
  await node.write(prng.below(node.size - bytes + 1), bytes, data, 0);
}

// Reads that go straight to the file of a deep layer (owner-index.ts, `placeOf`): right in every kind of
// cluster, and void as soon as somebody may write there.

import { describe, expect, it } from "vitest";
import { Prng } from "../../base/prng.ts";
import { newMemoryImage, type OpenImage, openImage, readAll, writeAll } from "./testing/nodes.ts";

const CLUSTER = 512;
const CLUSTERS = 64;
const SIZE = CLUSTERS * CLUSTER;

interface Layer {
  readonly clusterSize?: number;
  readonly size?: number;
}

/** A chain, base first; `fill` writes each layer, which is for reading only from then on, except the last. */
async function chainOf(layers: readonly Layer[], fill: (image: OpenImage, index: number) => Promise<void>) {
  const chain: OpenImage[] = [];
  for (const [index, { clusterSize = CLUSTER, size = SIZE }] of layers.entries()) {
    const backing = chain[index - 1]?.node;
    const link = backing === undefined ? {} : { backing: { file: "below", format: "qcow2" } };
    const host = await newMemoryImage({ size, clusterSize, ...link });
    const image = await openImage(host, backing === undefined ? {} : { backing });
    await fill(image, index);
    if (index < layers.length - 1) await image.node.setWritable(false);
    chain.push(image);
  }
  return chain;
}

describe("a read of data in a deep layer", () => {
  it("meets neither the tables of that layer nor its driver once the place is known", async () => {
    const chain = await chainOf([{}, {}, {}], async ({ node }, index) => {
      if (index === 0) await writeAll(node, 0, Buffer.alloc(SIZE, "b"));
    });
    const [base, , top] = chain as [OpenImage, OpenImage, OpenImage];
    expect(await readAll(top.node, 0, 100)).toEqual(Buffer.alloc(100, "b"));
    base.driver.image.l2.clear();
    const { loads } = base.driver.image.l2.counters;
    const { reads, readBytes } = base.node.counters;
    expect(await readAll(top.node, 50, 200)).toEqual(Buffer.alloc(200, "b"));
    expect(base.driver.image.l2.counters.loads).toBe(loads);
    expect(base.node.counters).toMatchObject({ reads: reads + 1, readBytes: readBytes + 200 });
  });

  it("sees what is written there when the layer is opened for writing", async () => {
    const [base, , top] = (await chainOf([{}, {}, {}], async ({ node }, index) => {
      if (index === 0) await writeAll(node, 0, Buffer.alloc(SIZE, "b"));
    })) as [OpenImage, OpenImage, OpenImage];
    await readAll(top.node);
    await base.node.setWritable(true);
    await base.node.writeZeroes(0, CLUSTER, 0);
    await base.node.discard(CLUSTER, CLUSTER);
    expect(await readAll(top.node, 0, 2 * CLUSTER)).toEqual(Buffer.alloc(2 * CLUSTER));
    await writeAll(base.node, 0, Buffer.alloc(CLUSTER, "n"));
    await base.node.setWritable(false);
    expect(await readAll(top.node, 0, CLUSTER)).toEqual(Buffer.alloc(CLUSTER, "n"));
  });

  it("is counted while it waits: the layer is not idle before", async () => {
    const [base, , top] = (await chainOf([{}, {}, {}], async ({ node }, index) => {
      if (index === 0) await writeAll(node, 0, Buffer.alloc(SIZE, "b"));
    })) as [OpenImage, OpenImage, OpenImage];
    await readAll(top.node, 0, 10);
    let release: () => void = () => {};
    const plain = base.host.read.bind(base.host);
    base.host.read = (offset, bytes, buffer, at) =>
      new Promise<void>((resolve) => {
        release = resolve;
      }).then(() => plain(offset, bytes, buffer, at));
    const reading = readAll(top.node, 0, 10);
    expect(base.node.inFlight).toBe(1);
    let isIdle = false;
    const idle = Promise.resolve(base.node.quiesce()).then(() => {
      isIdle = true;
    });
    for (let i = 0; i < 20; i++) await Promise.resolve();
    expect(isIdle).toBe(false);
    release();
    expect(await reading).toEqual(Buffer.alloc(10, "b"));
    await idle;
    base.node.resume();
  });

  it("gives what the layers give, whatever their clusters are and however large", async () => {
    for (const seed of [1, 2, 3, 4]) {
      const prng = new Prng(seed);
      const layers = [512, 4096, 1024, 512].map((clusterSize, index) => ({
        clusterSize,
        size: index === 1 ? SIZE - 3 * CLUSTER : SIZE,
      }));
      const chain = await chainOf(layers, async ({ node }, index) => {
        for (let i = 0; i < 6 && index < 3; i++) {
          const offset = prng.below(node.size / CLUSTER) * CLUSTER;
          const bytes = Math.min((1 + prng.below(12)) * CLUSTER, node.size - offset);
          if (prng.below(4) === 0) await node.writeZeroes(offset, bytes, prng.below(2) * 2);
          else await writeAll(node, offset, Buffer.alloc(bytes, 1 + prng.below(255)));
        }
      });
      const expected = await readAll(chain[3]!.node);
      for (let i = 0; i < 300; i++) {
        const offset = prng.below(SIZE - 1);
        const bytes = Math.min(1 + prng.below(700), SIZE - offset);
        const found = await readAll(chain[3]!.node, offset, bytes);
        expect(found.equals(expected.subarray(offset, offset + bytes)), `seed ${seed}, ${offset}`).toBe(true);
      }
    }
  });
});

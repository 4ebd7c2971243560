import { describe, expect, it } from "vitest";
import { Prng } from "../../base/prng.ts";
import { KiB, MiB } from "../../base/units.ts";
import type { BlockNode } from "../../block/node.ts";
import { FaultFile, RandomDelays } from "../../sys/fault-file.ts";
import { MemoryFile } from "../../sys/memory-file.ts";
import { checkImage } from "./check.ts";
import { hostImageFile } from "./image-file.ts";
import { fileNode, newMemoryImage, openImage, readAll, soilBufferPool, writeAll } from "./testing/nodes.ts";

const SIZE = 4 * MiB;
const CLUSTER = 64 * KiB;

interface Chain {
  readonly base: BlockNode;
  readonly middle: BlockNode;
  readonly top: BlockNode;
  readonly topHost: FaultFile;
  readonly model: Buffer;
}

/** raw <- qcow2 <- qcow2, the first two with `fill`. */
async function chain(fill: (node: BlockNode, model: Buffer) => Promise<void>): Promise<Chain> {
  const model = Buffer.alloc(SIZE);
  const base = fileNode(new MemoryFile({ size: SIZE }), { growable: false });
  await fill(base, model);
  const options = { size: SIZE, clusterSize: CLUSTER };
  const middle = (await openImage(new FaultFile(await newMemoryImage(options)), { backing: base })).node;
  await fill(middle, model);
  const topHost = new FaultFile(await newMemoryImage(options));
  const top = (await openImage(topHost, { backing: middle })).node;
  return { base, middle, top, topHost, model };
}

async function put(node: BlockNode, model: Buffer, offset: number, content: Buffer): Promise<void> {
  await writeAll(node, offset, content);
  content.copy(model, offset);
}

/** How the bytes came to the file of `top`: copies inside the host as against writes. */
function watchCopies(host: FaultFile): { bytes: number } {
  const seen = { bytes: 0 };
  const { copyFrom } = host;
  host.copyFrom = async (source, sourceOffset, offset, bytes) => {
    const copied = await copyFrom.call(host, source, sourceOffset, offset, bytes);
    if (copied) seen.bytes += bytes;
    return copied;
  };
  return seen;
}

async function clean(host: MemoryFile | FaultFile): Promise<void> {
  const result = await checkImage(hostImageFile(host));
  expect({ errors: result.corruptions, leaks: result.leaks }).toEqual({ errors: 0, leaks: 0 });
}

describe("a merge that the host copies", () => {
  it("takes whole runs of data without a buffer", async () => {
    const prng = new Prng(1);
    const { top, topHost, model } = await chain(async (node, into) => {
      if (node.driverName === "raw") await put(node, into, 0, prng.fill(Buffer.alloc(SIZE)));
    });
    const copies = watchCopies(topHost);
    expect(await top.copyUp(0, SIZE, undefined)).toBe(SIZE);
    expect(copies.bytes).toBe(SIZE);
    top.setBacking(undefined);
    expect((await readAll(top)).equals(model)).toBe(true);
  });

  it("reads what begins with zeros, and writes zeros as such", async () => {
    const prng = new Prng(2);
    const { top, topHost, model } = await chain(async (node, into) => {
      if (node.driverName !== "raw") return;
      const content = prng.fill(Buffer.alloc(SIZE));
      // One cluster of zeros, and one that only begins with them.
      content.fill(0, 8 * CLUSTER, 9 * CLUSTER);
      content.fill(0, 20 * CLUSTER, 20 * CLUSTER + 100);
      await put(node, into, 0, content);
    });
    const copies = watchCopies(topHost);
    expect(await top.copyUp(0, SIZE, undefined)).toBe(SIZE - CLUSTER);
    expect(copies.bytes).toBeGreaterThan(SIZE / 2);
    expect(copies.bytes).toBeLessThan(SIZE - CLUSTER);
    top.setBacking(undefined);
    expect((await readAll(top)).equals(model)).toBe(true);
  });

  it("goes through a buffer where the host refuses, and tells the host's error", async () => {
    const prng = new Prng(3);
    const { top, topHost, model } = await chain(async (node, into) => {
      if (node.driverName === "raw") await put(node, into, 0, prng.fill(Buffer.alloc(SIZE)));
    });
    topHost.fail({ kind: "write", errno: "EIO", nth: 1, times: 2 });
    await expect(top.copyUp(0, MiB, undefined)).rejects.toMatchObject({ code: "EIO" });
    topHost.clearFaults();
    topHost.copyFrom = async () => false;
    soilBufferPool();
    expect(await top.copyUp(0, SIZE, undefined)).toBe(SIZE);
    top.setBacking(undefined);
    expect((await readAll(top)).equals(model)).toBe(true);
  });

  it("tells of a layer whose file is too short, and copies no zeros for it", async () => {
    const prng = new Prng(4);
    const options = { size: SIZE, clusterSize: CLUSTER };
    const host = await newMemoryImage(options);
    const lower = (await openImage(host)).node;
    await writeAll(lower, 0, prng.fill(Buffer.alloc(SIZE)));
    await lower.flush();
    const top = (await openImage(await newMemoryImage(options), { backing: lower })).node;
    host.truncate(host.size - MiB);
    await expect(top.copyUp(0, SIZE, undefined)).rejects.toMatchObject({ code: "EIO" });
  });

  const runs = Number(process.env["STRATA_MODEL_RUNS"] ?? 60);
  it(`shows the guest the same as before, whatever it does meanwhile; ${runs} seeds`, async () => {
    let copied = 0;
    for (let seed = 1; seed <= runs; seed++) copied += await mergeWithGuest(seed);
    expect(copied).toBeGreaterThan(runs * MiB);
  });
});

/**
 * Merges in random stretches while a guest writes, with delays and refused copies. Returns bytes that the
 * host copied.
 */
async function mergeWithGuest(seed: number): Promise<number> {
  const prng = new Prng(seed);
  const { base, top, topHost, model } = await chain(async (node, into) => {
    for (let i = 0; i < 6; i++) {
      const bytes = prng.below(MiB) + 1;
      const content = prng.chance(0.2) ? Buffer.alloc(bytes) : prng.fill(Buffer.alloc(bytes));
      await put(node, into, prng.below(SIZE - bytes), content);
    }
  });
  const copies = watchCopies(topHost);
  if (prng.chance(0.5)) topHost.delays = new RandomDelays(new Prng(seed + 1), 0.3);
  if (prng.chance(0.3)) topHost.fail({ kind: "write", errno: "EIO", nth: prng.below(4) + 1 });
  const ontoBase = prng.chance(0.5);
  const guest = async () => {
    for (let i = 0; i < 12; i++) {
      const content = prng.fill(Buffer.alloc(prng.below(200 * KiB) + 1));
      const offset = prng.below(SIZE - content.length);
      try {
        await put(top, model, offset, content);
      } catch {
        // It may have been written in part.
        await put(top, model, offset, content);
      }
    }
  };
  const merge = async () => {
    for (let offset = 0; offset < SIZE; ) {
      const bytes = Math.min(SIZE - offset, CLUSTER * (1 + prng.below(16)));
      try {
        await top.copyUp(offset, bytes, ontoBase ? base : undefined);
        offset += bytes;
      } catch {
        // The injected error: once more.
      }
    }
  };
  await Promise.all([guest(), merge()]);
  topHost.delays = undefined;
  topHost.clearFaults();
  await top.flush();
  top.setBacking(ontoBase ? base : undefined);
  expect((await readAll(top)).equals(model), `seed ${seed}`).toBe(true);
  await clean(topHost);
  return copies.bytes;
}

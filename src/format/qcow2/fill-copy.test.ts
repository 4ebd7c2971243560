// What stands around the payload of a first write, copied inside the host: where it may be, and what happens
// where it may not or does not go well.

import { describe, expect, it } from "vitest";
import { Prng } from "../../base/prng.ts";
import { KiB } from "../../base/units.ts";
import { BlockNode } from "../../block/node.ts";
import { FilterDriver } from "../../block/testing/filter-driver.ts";
import { FaultFile, HeldCalls } from "../../sys/fault-file.ts";
import { MemoryFile } from "../../sys/memory-file.ts";
import { RawDriver } from "../raw/raw-driver.ts";
import { checkImage } from "./check.ts";
import { hostImageFile } from "./image-file.ts";
import { fileNode, newMemoryImage, openImage, readAll, soilBufferPool, writeAll } from "./testing/nodes.ts";

const CLUSTER = 64 * KiB;
const CLUSTERS = 8;
const SIZE = CLUSTER * CLUSTERS;
/** The write: the second of these clusters, 24 KiB before it and 36 behind. */
const AT = CLUSTER + 24 * KiB;
const PAYLOAD = Buffer.alloc(4 * KiB, 0x77);

interface World {
  readonly base: BlockNode;
  readonly baseHost: FaultFile;
  readonly top: BlockNode;
  readonly topHost: FaultFile;
  readonly model: Buffer;
  /** Bytes that were copied inside the host. */
  readonly copied: () => number;
}

interface WorldOptions {
  readonly baseFormat?: "qcow2" | "raw";
  readonly topSize?: number;
  readonly writableBase?: boolean;
  /** What the top has as its backing, over the base. */
  readonly over?: (base: BlockNode) => BlockNode;
  readonly change?: (content: Buffer) => void;
}

async function world(options: WorldOptions = {}): Promise<World> {
  const { baseFormat = "qcow2", topSize = SIZE, over = (node) => node } = options;
  const content = new Prng(3).fill(Buffer.alloc(SIZE));
  options.change?.(content);
  const raw = baseFormat === "raw";
  const baseHost = new FaultFile(raw ? MemoryFile.of(content) : await newMemoryImage({ size: SIZE }));
  const base = raw ? rawNode(baseHost) : (await openImage(baseHost)).node;
  if (!raw) await writeAll(base, 0, content);
  if (options.writableBase !== true) await base.setWritable(false);
  const topHost = new FaultFile(await newMemoryImage({ size: topSize, clusterSize: CLUSTER }));
  const { node: top } = await openImage(topHost, { backing: over(base) });
  const model = Buffer.alloc(topSize);
  content.copy(model);
  let copied = 0;
  const plain = topHost.copyAtOnce.bind(topHost);
  topHost.copyAtOnce = (source, sourceOffset, offset, bytes) => {
    const done = plain(source, sourceOffset, offset, bytes);
    if (done) copied += bytes;
    return done;
  };
  soilBufferPool();
  return { base, baseHost, top, topHost, model, copied: () => copied };
}

function rawNode(host: FaultFile): BlockNode {
  const node = new BlockNode({ name: "raw", filename: host.path }, fileNode(host), false);
  node.install(new RawDriver(node));
  return node;
}

/** The disk and the image are as they should be. */
async function judge({ top, topHost, model }: World): Promise<void> {
  await top.flush();
  expect((await readAll(top)).equals(model)).toBe(true);
  expect(await checkImage(hostImageFile(topHost))).toMatchObject({ corruptions: 0, checkErrors: 0 });
}

async function write(w: World, offset: number, payload: Buffer): Promise<void> {
  await writeAll(w.top, offset, payload);
  payload.copy(w.model, offset);
}

describe("head and tail of a first write", () => {
  it.each(["qcow2", "raw"] as const)("are copied inside the host over a base of %s", async (baseFormat) => {
    const w = await world({ baseFormat });
    const before = { reads: w.base.counters.readBytes, writes: w.top.file!.counters.writeBytes };
    await write(w, AT, PAYLOAD);
    expect(w.copied()).toBe(CLUSTER - PAYLOAD.length);
    // Counted as what they are: reads of the base, writes of the file.
    expect(w.base.counters.readBytes - before.reads).toBe(CLUSTER - PAYLOAD.length);
    expect(w.top.file!.counters.writeBytes - before.writes).toBeGreaterThanOrEqual(CLUSTER);
    // The first one only: what is allocated is written in place.
    await write(w, AT + 100, PAYLOAD);
    expect(w.copied()).toBe(CLUSTER - PAYLOAD.length);
    await judge(w);
  });

  it("are copied at both ends of a write of several clusters", async () => {
    const w = await world();
    await write(w, AT, Buffer.alloc(3 * CLUSTER, 0x55));
    expect(w.copied()).toBe(CLUSTER);
    await judge(w);
  });

  it("are copied from the layer that holds them", async () => {
    const w = await world();
    const middle = await openImage(await newMemoryImage({ size: SIZE }), { backing: w.base });
    await middle.node.setWritable(false);
    w.top.setBacking(middle.node);
    await write(w, AT, PAYLOAD);
    expect(w.copied()).toBe(CLUSTER - PAYLOAD.length);
    await judge(w);
  });

  it("are read where they are small", async () => {
    const w = await world();
    await write(w, CLUSTER + 16 * KiB - 1, Buffer.alloc(32 * KiB + 2, 0x11));
    expect(w.copied()).toBe(0);
    await judge(w);
  });

  it("take no space where they are zeros", async () => {
    const w = await world({ change: (content) => content.fill(0, CLUSTER, 2 * CLUSTER) });
    // The tables are there from then on.
    await write(w, 0, Buffer.alloc(CLUSTER, 0x22));
    const before = w.topHost.allocatedBytes();
    await write(w, AT, PAYLOAD);
    expect(w.copied()).toBe(0);
    expect(w.topHost.allocatedBytes() - before).toBe(PAYLOAD.length);
    await judge(w);
  });

  it("are read where the larger one begins with zeros, copied where the smaller one does", async () => {
    const tailAt = AT + PAYLOAD.length;
    const w = await world({
      change: (content) => content.fill(0, CLUSTER, AT).fill(0, tailAt + CLUSTER, tailAt + CLUSTER + 100),
    });
    await write(w, AT, PAYLOAD);
    expect(w.copied()).toBe(CLUSTER - PAYLOAD.length);
    await write(w, AT + CLUSTER, PAYLOAD);
    expect(w.copied()).toBe(CLUSTER - PAYLOAD.length);
    await judge(w);
  });

  it("are zeros behind the end of a short base, and end with the disk", async () => {
    const w = await world({ topSize: SIZE + CLUSTER + 20 * KiB });
    await write(w, SIZE + 17 * KiB, PAYLOAD);
    await write(w, SIZE + CLUSTER + 17 * KiB, Buffer.alloc(100, 0x33));
    expect(w.copied()).toBe(0);
    await judge(w);
  });

  it("are read from a layer that somebody may write to", async () => {
    const w = await world({ writableBase: true });
    await write(w, AT, PAYLOAD);
    expect(w.copied()).toBe(0);
    await judge(w);
  });

  it("are read through a filter", async () => {
    const seen: number[] = [];
    const w = await world({
      over: (base) => {
        const node = new BlockNode({ name: "filter", filename: "" }, base, true);
        node.install(new FilterDriver(node));
        const plain = node.read.bind(node);
        node.read = (offset, bytes, buffer, at) => {
          seen.push(bytes);
          return plain(offset, bytes, buffer, at);
        };
        return node;
      },
    });
    await write(w, AT, PAYLOAD);
    expect(w.copied()).toBe(0);
    expect(seen).toEqual([24 * KiB, 36 * KiB]);
    await judge(w);
  });

  it("are read where a look would have to wait, and where the copy would", async () => {
    for (const kind of ["read", "write"] as const) {
      const w = await world();
      const held = new HeldCalls(kind);
      (kind === "read" ? w.baseHost : w.topHost).delays = held;
      const writing = write(w, AT, PAYLOAD);
      await new Promise((resolve) => setImmediate(resolve));
      expect(held.held).toBeGreaterThan(0);
      held.release();
      await writing;
      expect(w.copied()).toBe(0);
      await judge(w);
    }
  });

  it("are read and written where the host refuses or stops half way", async () => {
    const w = await world();
    const plain = w.topHost.copyAtOnce;
    w.topHost.copyAtOnce = () => false;
    await write(w, AT, PAYLOAD);
    w.topHost.copyAtOnce = (source, sourceOffset, offset, bytes) => {
      expect(plain(source, sourceOffset, offset, bytes >> 1)).toBe(true);
      return false;
    };
    await write(w, AT + CLUSTER, PAYLOAD);
    await judge(w);
  });

  it("bring the error of the host to the guest, and cost nothing else", async () => {
    for (const [host, kind] of [
      ["topHost", "write"],
      ["baseHost", "read"],
    ] as const) {
      const w = await world();
      // The looks at what begins there are reads too.
      w[host].fail({ kind, errno: "EIO", times: 3 });
      await expect(async () => writeAll(w.top, AT, PAYLOAD)).rejects.toMatchObject({ code: "EIO" });
      w[host].clearFaults();
      await judge(w);
      await write(w, AT, PAYLOAD);
      expect(w.copied()).toBeGreaterThan(0);
      await judge(w);
    }
  });

  it("show nothing as long as the payload is not written", async () => {
    const w = await world();
    await write(w, 0, Buffer.alloc(CLUSTER, 0x22));
    const payloadAt = w.topHost.size + (AT % CLUSTER);
    w.topHost.fail({ kind: "write", errno: "ENOSPC", range: { offset: payloadAt, bytes: PAYLOAD.length } });
    await expect(async () => writeAll(w.top, AT, PAYLOAD)).rejects.toMatchObject({ code: "ENOSPC" });
    expect(w.copied()).toBe(CLUSTER - PAYLOAD.length);
    await judge(w);
    expect(await checkImage(hostImageFile(w.topHost))).toMatchObject({ leaks: 0 });
  });
});

import { describe, expect, it } from "vitest";
import { BlockError, NbdErrno } from "../base/errors.ts";
import { MiB } from "../base/units.ts";
import type { BlockNode } from "../block/node.ts";
import { ArrayWorld } from "../block/testing/array-world.ts";
import { type Call, Gate } from "../block/testing/interpose.ts";
import { ALLOCATION_DEPTH, BASE_ALLOCATION, NbdExport } from "./nbd-export.ts";

const SIZE = 8 * 512;
const DATA = 0;
const HOLE = 3;
const ZERO = 2;

function served(node: (world: ArrayWorld) => BlockNode, settings: Partial<{ writable: boolean }> = {}) {
  const world = new ArrayWorld();
  const top = node(world);
  const disk = new NbdExport(world.graph, top, { writable: true, allocationDepth: true, ...settings });
  return { world, top, disk };
}

const one = (world: ArrayWorld) => world.image("A", { size: SIZE });

function statusOf(disk: NbdExport, context: string, offset = 0, bytes = SIZE, limit = 100) {
  const told: [number, number][] = [];
  disk.status(context, offset, bytes, (length, flags) => {
    told.push([length, flags]);
    return told.length < limit;
  });
  return told;
}

describe("an export", () => {
  it("holds its node until it is released", async () => {
    const { world, disk } = served(one);
    expect(world.graph.usesOf(disk.node).map((use) => [use.user, use.role])).toEqual([
      ["an unnamed block device", "root"],
    ]);
    await disk.release();
    expect(world.driver("A").closed).toBe(true);
  });

  it("of a read-only node must be read-only", () => {
    const readOnly = (world: ArrayWorld) => world.image("A", { size: SIZE, readOnly: true });
    expect(() => served(readOnly)).toThrow("Block node is read-only");
    expect(served(readOnly, { writable: false }).disk.readOnly).toBe(true);
  });

  it("may stand beside another one on the same node", () => {
    const { world, top, disk } = served(one);
    const second = new NbdExport(world.graph, top, { writable: true, allocationDepth: false });
    expect([disk.contexts, second.contexts]).toEqual([[ALLOCATION_DEPTH], []]);
    second.write(0, 3, Buffer.from("abc"), 0, false);
    const content = Buffer.alloc(3);
    disk.read(0, 3, content, 0);
    expect(content.toString()).toBe("abc");
  });

  it.each([
    [512, 4096],
    [65536, 65536],
    [2 * MiB, 2 * MiB],
  ])("of clusters of %d bytes prefers %d", (clusterSize, preferred) => {
    const { disk } = served((world) => world.image("A", { size: 4 * MiB, clusterSize }));
    expect(disk.blockSize).toEqual({ minimum: 1, preferred, maximum: 32 * MiB });
  });

  it("hands each request to the door with its flags", () => {
    const { world, disk } = served(one);
    const calls: string[] = [];
    world.driver("A").before = (call: Call) => void calls.push(call.operation);
    disk.write(0, 1, Buffer.alloc(1), 0, true);
    disk.writeZeroes(0, 512, { fua: true, mayUnmap: true, fastOnly: true });
    disk.trim(0, 512, true);
    disk.trim(0, 512, false);
    disk.flush();
    expect(disk.cache(0, SIZE)).toBeUndefined();
    expect(calls).toEqual(["write", "flush", "writeZeroes", "flush", "discard", "flush", "discard", "flush"]);
  });

  it("counts every request that moves or drops data, so that background work sees its guests", () => {
    const { world, disk } = served(one);
    disk.read(0, 512, Buffer.alloc(512), 0);
    disk.write(0, 512, Buffer.alloc(512), 0, false);
    disk.writeZeroes(0, 512, { fua: false, mayUnmap: true, fastOnly: false });
    disk.trim(0, 512, false);
    expect(world.graph.guestRequests).toBe(4);
  });

  it("tells errors as the protocol's errno", () => {
    const { disk } = served(one);
    expect(disk.errno(new BlockError("EDQUOT", "x"))).toBe(NbdErrno.ENOSPC);
    expect(disk.errno(new TypeError("ours"))).toBe(NbdErrno.EIO);
  });

  it("follows a live snapshot with every request, also with those under way", async () => {
    const { world, top, disk } = served(one);
    const gate = new Gate((call) => call.operation === "flush");
    world.driver("A").before = gate.before;
    const overlay = world.image("S", { size: SIZE });
    const appending = world.graph.append(top, overlay);
    await gate.arrival();
    const writing = disk.write(0, 3, Buffer.from("new"), 0, false);
    gate.open();
    await Promise.all([appending, writing]);
    expect(disk.node).toBe(overlay);
    expect(world.driver("A").clusters[0]).toBeUndefined();
    const content = Buffer.alloc(3);
    disk.read(0, 3, content, 0);
    expect(content.toString()).toBe("new");
  });
});

describe("block status", () => {
  // A has clusters 0 to 3, B 2 and zeros in 4; B is longer than A by two clusters.
  const chain = (world: ArrayWorld) => {
    const base = world.image("A", { size: 6 * 512 });
    const top = world.image("B", { size: SIZE, backing: base });
    world.fill("A", 0, 4);
    world.fill("B", 2, 1);
    world.driver("B").clusters[4] = "zero";
    return top;
  };

  it("is composed over the chain, and neighbours that are alike are one", () => {
    const { disk } = served(chain);
    expect(statusOf(disk, BASE_ALLOCATION)).toEqual([
      [4 * 512, DATA],
      [4 * 512, HOLE],
    ]);
  });

  it("tells the depth: 1 is the active image, 0 nobody", () => {
    const { disk } = served(chain);
    expect(statusOf(disk, ALLOCATION_DEPTH)).toEqual([
      [2 * 512, 2],
      [512, 1],
      [512, 2],
      [512, 1],
      [512, 0],
      [2 * 512, 2],
    ]);
  });

  it("of a part begins and ends where it was asked", () => {
    const { disk } = served(chain);
    expect(statusOf(disk, BASE_ALLOCATION, 1000, 2000)).toEqual([
      [4 * 512 - 1000, DATA],
      [3000 - 4 * 512, HOLE],
    ]);
    expect(statusOf(disk, ALLOCATION_DEPTH, 1, 1)).toEqual([[1, 2]]);
  });

  it("stops when the client wants no more", () => {
    const { disk } = served(chain);
    expect(statusOf(disk, ALLOCATION_DEPTH, 0, SIZE, 2)).toHaveLength(2);
    expect(statusOf(disk, ALLOCATION_DEPTH, 0, SIZE, 1)).toEqual([[1024, 2]]);
  });

  it("calls zeros that keep their space no hole", () => {
    const { world, disk } = served(one);
    const driver = world.driver("A");
    driver.extents = (_offset, bytes, out) => {
      out.push(512, 1, 4096, false);
      out.push(bytes - 512, 1, -1, false);
    };
    expect(statusOf(disk, BASE_ALLOCATION)).toEqual([
      [512, ZERO],
      [SIZE - 512, HOLE],
    ]);
  });

  it("is the same where a layer makes us wait, and an error reaches the client", async () => {
    const { world, disk } = served(chain);
    world.driver("A").before = () => Promise.resolve();
    const told: [number, number][] = [];
    await disk.status(BASE_ALLOCATION, 0, SIZE, (bytes, flags) => told.push([bytes, flags]) > 0);
    expect(told).toEqual([
      [4 * 512, DATA],
      [4 * 512, HOLE],
    ]);
    world.driver("A").before = () => Promise.reject(new BlockError("EIO", "no table"));
    await expect(disk.status(BASE_ALLOCATION, 0, SIZE, () => true)).rejects.toThrow("no table");
    expect(world.leftovers()).toEqual([]);
  });
});

// The guest against the copy of the same cluster, in every order that matters. No sleeping: host calls are
// held and let go. (Elsewhere: QEMU 205736f488, 353ab96973; nbdkit 539246ea.)

import { describe, expect, it } from "vitest";
import { KiB } from "../../base/units.ts";
import { WriteFlags } from "../../block/driver.ts";
import type { BlockNode } from "../../block/node.ts";
import { FaultFile, HeldCalls } from "../../sys/fault-file.ts";
import { MemoryFile } from "../../sys/memory-file.ts";
import { checkImage } from "./check.ts";
import type { CreateOptions } from "./create.ts";
import { Incompatible, parseHeader } from "./header.ts";
import { hostImageFile } from "./image-file.ts";
import { fileNode, newMemoryImage, type OpenImage, openImage, readAll } from "./testing/nodes.ts";

const CLUSTER = 32 * KiB;
const CLUSTERS = 8;
const SIZE = CLUSTER * CLUSTERS;
/** The cluster that is fought over. */
const K = 3;
const AT = K * CLUSTER;

interface Race extends OpenImage {
  readonly base: BlockNode;
  readonly held: HeldCalls;
  readonly memory: MemoryFile;
}

async function race(options: Partial<CreateOptions> = {}): Promise<Race> {
  const memory = await newMemoryImage({
    size: SIZE,
    clusterSize: CLUSTER,
    backingFile: "base.raw",
    backingFormat: "raw",
    ...options,
  });
  const baseFile = new FaultFile(MemoryFile.of(Buffer.alloc(SIZE, 0xba)));
  const base = fileNode(baseFile, { growable: false });
  const image = await openImage(memory, { backing: base });
  const held = new HeldCalls("read");
  baseFile.delays = held;
  return { ...image, base, held, memory };
}

async function turns(): Promise<void> {
  for (let i = 0; i < 10; i++) await new Promise((resolve) => setImmediate(resolve));
}

/** Ends the race: everything settles, the disk is as wanted, the image is clean, no lock is left. */
async function finish({ node, driver, held, memory }: Race, wanted: Buffer): Promise<void> {
  held.release();
  const seen = await readAll(node);
  expect(firstDifference(seen, wanted)).toBe(-1);
  await driver.close();
  expect(driver.image.locks.held + driver.image.locks.waiting).toBe(0);
  expect(await checkImage(hostImageFile(memory))).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 });
}

function firstDifference(a: Buffer, b: Buffer): number {
  if (a.equals(b)) return -1;
  return a.findIndex((byte, i) => byte !== b[i]);
}

/** What the guest does to cluster K, and what it leaves of a cluster full of `before`. */
const GUEST: readonly {
  readonly name: string;
  run(node: BlockNode): Promise<void>;
  after(cluster: Buffer): void;
}[] = [
  {
    name: "writes all of it",
    run: async (node) => node.write(AT, CLUSTER, Buffer.alloc(CLUSTER, 1), 0),
    after: (cluster) => cluster.fill(1),
  },
  {
    name: "writes its head",
    run: async (node) => node.write(AT, 700, Buffer.alloc(700, 2), 0),
    after: (cluster) => cluster.fill(2, 0, 700),
  },
  {
    name: "writes its tail",
    run: async (node) => node.write(AT + CLUSTER - 700, 700, Buffer.alloc(700, 3), 0),
    after: (cluster) => cluster.fill(3, CLUSTER - 700),
  },
  {
    name: "writes its middle",
    run: async (node) => node.write(AT + 5000, 5000, Buffer.alloc(5000, 4), 0),
    after: (cluster) => cluster.fill(4, 5000, 10_000),
  },
  {
    name: "discards it",
    run: async (node) => node.discard(AT, CLUSTER),
    after: (cluster) => cluster.fill(0),
  },
  {
    name: "zeroes it",
    run: async (node) => node.writeZeroes(AT, CLUSTER, WriteFlags.MAY_UNMAP),
    after: (cluster) => cluster.fill(0),
  },
  {
    name: "zeroes a part of it",
    run: async (node) => node.writeZeroes(AT + 1000, 10_000, 0),
    after: (cluster) => cluster.fill(0, 1000, 11_000),
  },
];

/** The disk after the guest; version 2 cannot discard over a backing image. */
function wantedAfter(guest: (typeof GUEST)[number], version: number): Buffer {
  const disk = Buffer.alloc(SIZE, 0xba);
  if (guest.name === "discards it" && version === 2) return disk;
  guest.after(disk.subarray(AT, AT + CLUSTER));
  return disk;
}

const IMAGES: readonly [string, Partial<CreateOptions>][] = [
  ["version 3", { version: 3 }],
  ["version 2", { version: 2 }],
  ["subclusters", { version: 3, extendedL2: true }],
];

describe.each(IMAGES)("copy-up of a cluster in an image of %s", (_, options) => {
  for (const guest of GUEST) {
    const version = options.version ?? 3;
    it(`holds the read of the backing while the guest ${guest.name}: the guest wins`, async () => {
      const r = await race(options);
      const copying = r.node.copyUp(AT, CLUSTER, undefined);
      await turns();
      expect(r.held.held).toBe(1);
      const writing = guest.run(r.node);
      await turns();
      r.held.release();
      expect(await copying).toBe(CLUSTER);
      await writing;
      await finish(r, wantedAfter(guest, version));
    });

    it(`comes after the guest ${guest.name}: what it left stays`, async () => {
      const r = await race(options);
      const writing = guest.run(r.node);
      await turns();
      const copying = r.node.copyUp(0, SIZE, undefined);
      await turns();
      r.held.release();
      await writing;
      await copying;
      await finish(r, wantedAfter(guest, version));
      // Nothing of the backing is needed any more.
      r.node.setBacking(undefined);
    });
  }
});

describe("guest requests on one cluster", () => {
  it("a write that waits for the backing does not lose a smaller one that came later", async () => {
    const r = await race();
    const first = r.node.write(AT + 512, 512, Buffer.alloc(512, 1), 0);
    const second = r.node.write(AT + 2048, 512, Buffer.alloc(512, 2), 0);
    const third = r.node.write(AT, CLUSTER, Buffer.alloc(CLUSTER, 3), 0);
    const fourth = r.node.write(AT + 4096, 512, Buffer.alloc(512, 4), 0);
    await turns();
    r.held.release();
    await Promise.all([first, second, third, fourth]);
    const wanted = Buffer.alloc(SIZE, 0xba);
    wanted.fill(3, AT, AT + CLUSTER).fill(4, AT + 4096, AT + 4608);
    await finish(r, wanted);
  });

  it("writes to other clusters do not wait", async () => {
    const r = await race();
    const slow = r.node.write(AT + 512, 512, Buffer.alloc(512, 1), 0);
    await turns();
    expect(r.node.write(AT + CLUSTER, CLUSTER, Buffer.alloc(CLUSTER, 2), 0)).toBeUndefined();
    r.held.release();
    await slow;
    const wanted = Buffer.alloc(SIZE, 0xba);
    wanted.fill(1, AT + 512, AT + 1024).fill(2, AT + CLUSTER, AT + 2 * CLUSTER);
    await finish(r, wanted);
  });

  it("a failed read of the backing fails the write, and nothing else", async () => {
    const memory = await newMemoryImage({
      size: SIZE,
      clusterSize: CLUSTER,
      backingFile: "b",
      backingFormat: "raw",
    });
    const baseFile = new FaultFile(MemoryFile.of(Buffer.alloc(SIZE, 0xba)));
    const { node, driver } = await openImage(memory, { backing: fileNode(baseFile, { growable: false }) });
    for (const nth of [1, 2]) {
      baseFile.fail({ kind: "read", errno: "EIO", nth });
      await expect((async () => node.write(AT + 512, 512, Buffer.alloc(512, 1), 0))()).rejects.toThrow(
        "Injected",
      );
      baseFile.clearFaults();
    }
    expect((await readAll(node)).equals(Buffer.alloc(SIZE, 0xba))).toBe(true);
    await driver.close();
    expect(await checkImage(hostImageFile(memory))).toMatchObject({ corruptions: 0, leaks: 0 });
  });
});

describe("copy-up", () => {
  it("takes zeros past the end of a short layer, never what lies deeper", async () => {
    // base 8 clusters, middle 4, top 8 (QEMU 7e7e510077).
    const base = fileNode(MemoryFile.of(Buffer.alloc(SIZE, 0xba)), { growable: false });
    const middle = await openImage(await newMemoryImage({ size: SIZE / 2, clusterSize: CLUSTER }), {
      backing: base,
    });
    for (const [target, version] of [
      [undefined, 3],
      [base, 3],
      [undefined, 2],
      [base, 2],
    ] as const) {
      const memory = await newMemoryImage({
        size: SIZE,
        clusterSize: CLUSTER,
        version,
        backingFile: "m",
        backingFormat: "qcow2",
      });
      const top = await openImage(memory, { backing: middle.node });
      const wanted = Buffer.concat([Buffer.alloc(SIZE / 2, 0xba), Buffer.alloc(SIZE / 2)]);
      expect((await readAll(top.node)).equals(wanted)).toBe(true);
      await top.node.copyUp(0, SIZE, target);
      top.node.setBacking(target);
      expect((await readAll(top.node)).equals(wanted)).toBe(true);
      await top.driver.close();
    }
  });

  it("fills units that layers hold in part with what the guest sees", async () => {
    const base = fileNode(MemoryFile.of(Buffer.alloc(SIZE, 0xba)), { growable: false });
    const middleFile = await newMemoryImage({
      size: SIZE,
      clusterSize: 512,
      backingFile: "b",
      backingFormat: "raw",
    });
    const middle = await openImage(middleFile, { backing: base });
    await middle.node.write(AT + 1024, 512, Buffer.alloc(512, 7), 0);
    await middle.node.writeZeroes(5 * CLUSTER + 512, 512, 0);
    const memory = await newMemoryImage({
      size: SIZE,
      clusterSize: CLUSTER,
      backingFile: "m",
      backingFormat: "qcow2",
    });
    const top = await openImage(memory, { backing: middle.node });
    expect(await top.node.copyUp(0, SIZE, base)).toBe(2 * CLUSTER);
    top.node.setBacking(base);
    const wanted = Buffer.alloc(SIZE, 0xba);
    wanted.fill(7, AT + 1024, AT + 1536).fill(0, 5 * CLUSTER + 512, 5 * CLUSTER + 1024);
    expect((await readAll(top.node)).equals(wanted)).toBe(true);
    // A second time there is nothing to copy.
    expect(await top.node.copyUp(0, SIZE, base)).toBe(0);
  });
});

describe("damage met while a backing link is written", () => {
  it.each([8, 1000])("stays marked, at whatever moment: a name of %i bytes", async (bytes) => {
    const link = "n".repeat(bytes);
    const outcomes: string[] = [];
    for (let moment = 1; ; moment++) {
      const old = { backingFile: "old.raw", backingFormat: "raw" };
      const memory = await newMemoryImage({ size: SIZE, clusterSize: CLUSTER, ...old });
      const file = new FaultFile(memory);
      const { driver } = await openImage(memory, { file: fileNode(file) });
      const held = new HeldCalls("sync");
      file.delays = held;
      const changing = driver.changeBackingLink(link, "raw").then(
        () => "changed",
        () => "refused",
      );
      await turns();
      for (let passed = 1; passed < moment && held.releaseOne(); passed++) await turns();
      if (held.held === 0) break;
      driver.image.damaged("an entry that cannot be");
      await turns();
      held.release();
      const outcome = await changing;
      outcomes.push(outcome);
      const header = parseHeader(memory.content(0, CLUSTER), memory.size);
      expect(header.incompatible & Incompatible.CORRUPT, `moment ${moment}`).not.toBe(0);
      expect(header.backingFile, `moment ${moment}`).toBe(outcome === "changed" ? link : "old.raw");
    }
    expect(outcomes).toEqual(["refused", "refused", "changed", "changed"]);
  });
});

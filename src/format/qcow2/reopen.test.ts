// From writing to reading only and back, on a host that fails: what is told is so, and a failed attempt
// leaves the image as it was.

import { describe, expect, it } from "vitest";
import { ManualClock } from "../../base/clock.ts";
import { KiB, MiB } from "../../base/units.ts";
import { FaultFile } from "../../sys/fault-file.ts";
import { MemoryFile } from "../../sys/memory-file.ts";
import { checkImage } from "./check.ts";
import { FEATURES_OFFSET, Incompatible, parseHeader, serializeFeatures } from "./header.ts";
import { hostImageFile } from "./image-file.ts";
import { newMemoryImage, openImage, readAll, writeAll } from "./testing/nodes.ts";
import { isMarkedInUse } from "./use-marker.ts";

const CLUSTER = 4 * KiB;
const FEATURES = { offset: FEATURES_OFFSET, bytes: 24 };
const CLEAN = { corruptions: 0, leaks: 0, checkErrors: 0 };

function headerOf(host: MemoryFile) {
  return parseHeader(host.content(0, CLUSTER), host.size);
}

async function newImage(clock = new ManualClock()) {
  const memory = await newMemoryImage({ size: 4 * MiB, clusterSize: CLUSTER });
  const file = new FaultFile(memory);
  return { ...(await openImage(file, { clock })), file, memory, clock };
}

type Opened = Awaited<ReturnType<typeof newImage>>;

/** Where cluster `index` of the disk stands in the file. */
function placeOf({ driver }: Opened, index: number): number {
  const mapping = driver.image.newMapping();
  mapping.lookup(index * CLUSTER, CLUSTER);
  return mapping.hostOffset;
}

async function turns(): Promise<void> {
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
}

function calls({ counts }: FaultFile): number {
  return Object.values(counts).reduce((sum, count) => sum + count, 0);
}

describe("an image that cannot be closed for writing", () => {
  it("stays open for it, whatever call fails: flushes reach the file, and the next attempt does all", async () => {
    let failures = 0;
    for (let nth = 1; ; nth++) {
      const { node, driver, file, memory } = await newImage();
      await writeAll(node, 0, Buffer.alloc(64 * KiB, 1));
      await node.flush();
      await writeAll(node, MiB, Buffer.alloc(64 * KiB, 2));
      await node.discard(0, 64 * KiB);
      const before = calls(file);
      file.fail({ kind: "any", errno: "ENOSPC", nth });
      const failed = await node.setWritable(false).then(
        () => false,
        () => true,
      );
      const made = calls(file) - before;
      file.clearFaults();
      expect([node.readOnly, driver.image.writable], `call ${nth}`).toEqual([!failed, failed]);
      if (failed) {
        failures++;
        await writeAll(node, 2 * MiB, Buffer.alloc(64 * KiB, 3));
        await node.flush();
        const killed = MemoryFile.of(memory.content());
        expect(isMarkedInUse(headerOf(killed)), `call ${nth}`).toBe(true);
        const { node: left } = await openImage(killed, { readOnly: true });
        for (const [at, value] of [
          [MiB, 2],
          [2 * MiB, 3],
        ] as const) {
          const found = await readAll(left, at, 64 * KiB);
          expect(found.equals(Buffer.alloc(64 * KiB, value)), `call ${nth}, ${at}`).toBe(true);
        }
        await node.setWritable(false);
      }
      expect(isMarkedInUse(headerOf(memory)), `call ${nth}`).toBe(false);
      expect(await checkImage(hostImageFile(memory)), `call ${nth}`).toMatchObject(CLEAN);
      if (made < nth) break;
    }
    expect(failures).toBeGreaterThan(8);
  });

  it("takes no write that no flush would bring to the file, once it is closed", async () => {
    const { node, driver } = await newImage();
    await driver.setWritable(false);
    const closed = { code: "EIO" };
    await expect((async () => node.write(0, 512, Buffer.alloc(512, 1), 0))()).rejects.toMatchObject(closed);
    await expect((async () => node.discard(0, CLUSTER))()).rejects.toMatchObject(closed);
    await expect(node.copyUp(0, MiB, undefined)).rejects.toMatchObject(closed);
  });
});

describe("an image that cannot be opened for writing", () => {
  it.each(["write", "sync"] as const)(
    "is asked again for all that is to be done: a failed %s",
    async (kind) => {
      const memory = await newMemoryImage({ size: MiB, clusterSize: CLUSTER });
      const header = headerOf(memory);
      header.autoclear = 1n << 40n;
      const features = serializeFeatures(header);
      memory.write(FEATURES_OFFSET, features.length, features, 0);
      const file = new FaultFile(memory);
      const { driver } = await openImage(file, { readOnly: true });
      file.fail({ kind, errno: "EIO" });
      await expect(driver.setWritable(true)).rejects.toThrow("Injected");
      file.recording = true;
      await driver.setWritable(true);
      expect(file.recorded.map((call) => call.kind)).toEqual(["write", "sync"]);
      expect(headerOf(memory).autoclear).toBe(0n);
    },
  );
});

describe("an image whose refcounts are repaired when it is opened for writing", () => {
  /** Left by a writer with lazy refcounts: entries are there, refcounts are not. */
  async function dirtyImage() {
    const options = { size: 256 * KiB, clusterSize: CLUSTER, lazyRefcounts: true };
    const memory = await newMemoryImage(options);
    const { node, driver } = await openImage(memory);
    await writeAll(node, 0, Buffer.alloc(64 * KiB, 1));
    await driver.close();
    memory.write(driver.image.refcounts.blockOffset(0) + 8, 64, Buffer.alloc(64), 0);
    const header = headerOf(memory);
    header.incompatible |= Incompatible.DIRTY;
    const features = serializeFeatures(header);
    memory.write(FEATURES_OFFSET, features.length, features, 0);
    const file = new FaultFile(memory);
    return { ...(await openImage(file, { readOnly: true })), file, memory };
  }

  it("has the new ones in memory too, or is not open: the last of them cannot be read at first", async () => {
    const whole = await dirtyImage();
    const before = whole.file.counts.read;
    await whole.driver.setWritable(true);
    const nth = whole.file.counts.read - before;
    const { driver, file, memory } = await dirtyImage();
    file.fail({ kind: "read", errno: "EIO", nth });
    await expect(driver.setWritable(true)).rejects.toThrow("Injected");
    await driver.setWritable(true);
    await driver.write(128 * KiB, 64 * KiB, Buffer.alloc(64 * KiB, 2), 0);
    await driver.close();
    expect(await checkImage(hostImageFile(memory))).toMatchObject(CLEAN);
    const { node } = await openImage(memory, { readOnly: true });
    expect((await readAll(node, 0, 64 * KiB)).equals(Buffer.alloc(64 * KiB, 1))).toBe(true);
    expect((await readAll(node, 128 * KiB, 64 * KiB)).equals(Buffer.alloc(64 * KiB, 2))).toBe(true);
  });
});

describe("the mark of damage", () => {
  it("is written when the image is closed, where that failed before", async () => {
    const { driver, file, memory } = await newImage();
    file.fail({ kind: "write", errno: "EIO", range: FEATURES });
    driver.image.damaged("an entry that cannot be");
    await turns();
    expect(headerOf(memory).incompatible & Incompatible.CORRUPT).toBe(0);
    await driver.close();
    expect(headerOf(memory).incompatible & Incompatible.CORRUPT).not.toBe(0);
  });
});

describe("leaks that are freed when an image is opened for writing", () => {
  it("are not clusters that a client has yet to read", async () => {
    const opened = await newImage();
    const { node, driver, memory, clock } = opened;
    await writeAll(node, 0, Buffer.alloc(CLUSTER, 7));
    await node.flush();
    const lent = { offset: placeOf(opened, 0), bytes: CLUSTER };
    driver.image.lentRanges.lent(lent);
    await node.discard(0, CLUSTER);
    const closing = node.setWritable(false);
    for (let i = 0; i < 3; i++) {
      await turns();
      clock.advance(5000);
    }
    await closing;
    await node.setWritable(true);
    await writeAll(node, MiB, Buffer.alloc(64 * KiB, 8));
    await node.flush();
    expect(memory.content(lent.offset, lent.bytes).equals(Buffer.alloc(CLUSTER, 7))).toBe(true);
    // Once that client has read, the next one to open the image frees them.
    driver.image.lentRanges.returned(lent);
    await node.setWritable(false);
    await node.setWritable(true);
    await node.setWritable(false);
    expect(await checkImage(hostImageFile(memory))).toMatchObject(CLEAN);
    expect(isMarkedInUse(headerOf(memory))).toBe(false);
  });

  it("are none where the image is damaged: what a broken entry has lost looks the same", async () => {
    const { node, driver, memory } = await newImage();
    await writeAll(node, 0, Buffer.alloc(MiB, 7));
    await node.flush();
    const killed = MemoryFile.of(memory.content());
    const at = driver.image.l1.offset;
    const right = killed.content(at, 8);
    const wrong = Buffer.from(right);
    wrong[6]! ^= 2;
    killed.write(at, 8, wrong, 0);
    const next = await openImage(killed);
    await writeAll(next.node, 3 * MiB, Buffer.alloc(512 * KiB, 8));
    await next.driver.close();
    killed.write(at, 8, right, 0);
    const { node: mended } = await openImage(killed, { readOnly: true });
    expect((await readAll(mended, 0, MiB)).equals(Buffer.alloc(MiB, 7))).toBe(true);
  });
});

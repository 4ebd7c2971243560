// The L1 table moves to a larger place, and the guest goes on. No sleeping: host calls are held and let go.

import { describe, expect, it } from "vitest";
import { KiB, MiB, TiB } from "../../base/units.ts";
import { FaultFile, HeldCalls } from "../../sys/fault-file.ts";
import { MemoryFile } from "../../sys/memory-file.ts";
import { checkImage } from "./check.ts";
import { hostImageFile } from "./image-file.ts";
import { newMemoryImage, openImage, readAll, writeAll } from "./testing/nodes.ts";

const SIZE = 4 * MiB;
const CLEAN = { corruptions: 0, leaks: 0, checkErrors: 0 };

async function newImage(clusterSize: number) {
  const memory = await newMemoryImage({ size: SIZE, clusterSize });
  const file = new FaultFile(memory);
  return { ...(await openImage(file)), file, memory };
}

async function turns(): Promise<void> {
  for (let i = 0; i < 10; i++) await new Promise((resolve) => setImmediate(resolve));
}

/** Lets `moment - 1` of the calls that are held go on; whether there was one more. */
async function reach(held: HeldCalls, moment: number): Promise<boolean> {
  await turns();
  for (let passed = 1; passed < moment && held.releaseOne(); passed++) await turns();
  return held.held > 0;
}

describe("while the L1 table moves", () => {
  it.each(["sync", "write"] as const)("first writes are kept, at whatever %s they come", async (kind) => {
    for (let moment = 1; ; moment++) {
      const { node, driver, file, memory } = await newImage(4 * KiB);
      const held = new HeldCalls(kind);
      file.delays = held;
      const growing = node.truncate(64 * MiB);
      await turns();
      const first = node.write(0, 64 * KiB, Buffer.alloc(64 * KiB, 6), 0);
      const isThere = await reach(held, moment);
      const second = node.write(2 * MiB, 64 * KiB, Buffer.alloc(64 * KiB, 7), 0);
      await turns();
      do {
        const killed = hostImageFile(MemoryFile.of(memory.content()));
        expect((await checkImage(killed)).corruptions, `moment ${moment}`).toBe(0);
        await turns();
      } while (held.releaseOne());
      await Promise.all([growing, first, second]);
      held.release();
      await node.flush();
      const killed = await openImage(MemoryFile.of(memory.content()), { readOnly: true });
      for (const [at, value] of [
        [0, 6],
        [2 * MiB, 7],
      ] as const) {
        const found = await readAll(killed.node, at, 64 * KiB);
        expect(found.equals(Buffer.alloc(64 * KiB, value)), `moment ${moment}, ${at}`).toBe(true);
      }
      await driver.close();
      expect(await checkImage(hostImageFile(memory)), `moment ${moment}`).toMatchObject(CLEAN);
      if (isThere) continue;
      expect(moment).toBeGreaterThan(4);
      return;
    }
  });

  it("and a failed move leaves what was written meanwhile to the next flush", async () => {
    const { node, driver, file, memory } = await newImage(4 * KiB);
    const held = new HeldCalls("sync");
    file.delays = held;
    const growing = node.truncate(64 * MiB);
    await reach(held, 2);
    await writeAll(node, 2 * MiB, Buffer.alloc(64 * KiB, 7));
    file.fail({ kind: "write", errno: "EIO", range: { offset: 0, bytes: 512 } });
    const failed = expect(growing).rejects.toThrow("Injected");
    held.release();
    await failed;
    await node.flush();
    await driver.close();
    expect(await checkImage(hostImageFile(memory))).toMatchObject(CLEAN);
    const { node: again } = await openImage(memory, { readOnly: true });
    expect((await readAll(again, 2 * MiB, 64 * KiB)).equals(Buffer.alloc(64 * KiB, 7))).toBe(true);
  });

  it("and it is not known which one is in force, a flush that waits for it fails", async () => {
    const { node, file } = await newImage(4 * KiB);
    const held = new HeldCalls("sync");
    file.delays = held;
    const growing = node.truncate(64 * MiB);
    await reach(held, 2);
    await writeAll(node, 2 * MiB, Buffer.alloc(64 * KiB, 7));
    const flushing = node.flush();
    file.fail({ kind: "write", errno: "EIO", times: 2, range: { offset: 0, bytes: 72 } });
    const failed = [growing, flushing].map((each) => expect(each).rejects.toMatchObject({ code: "EIO" }));
    held.release();
    await Promise.all(failed);
  });

  it("a crash leaves no leaks that nobody looks for", async () => {
    for (let moment = 1; ; moment++) {
      const { node, file, memory } = await newImage(512);
      const held = new HeldCalls("sync");
      file.delays = held;
      const growing = node.truncate(256 * SIZE);
      const isThere = await reach(held, moment);
      const killed = MemoryFile.of(memory.content());
      held.release();
      await growing;
      if (!isThere) break;
      const next = await openImage(killed);
      await next.driver.close();
      // What is leaked behind the end of the file shows when that grows.
      killed.truncate(killed.size + MiB);
      expect(await checkImage(hostImageFile(killed)), `moment ${moment}`).toMatchObject(CLEAN);
    }
  });
});

describe("a place for a larger L1 table", () => {
  it("is given back whole when the refcounts of its second half cannot be read", async () => {
    const { node, driver, file, memory } = await (async () => {
      const empty = await newMemoryImage({ size: SIZE, clusterSize: 64 * KiB });
      // A slice of refcounts is 2048 clusters: the place begins in the last one of the first.
      empty.truncate(2047 * 64 * KiB);
      const faults = new FaultFile(empty);
      return { ...(await openImage(faults)), file: faults, memory: empty };
    })();
    const { refcounts } = driver.image;
    file.fail({ kind: "read", errno: "EIO", range: { offset: refcounts.sliceOffset(1), bytes: 512 } });
    await expect(node.truncate(8 * TiB)).rejects.toThrow("Injected");
    await driver.close();
    memory.truncate(memory.size + MiB);
    expect(await checkImage(hostImageFile(memory))).toMatchObject(CLEAN);
  });
});

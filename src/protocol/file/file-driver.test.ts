import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Prng } from "../../base/prng.ts";
import { MiB, TiB } from "../../base/units.ts";
import { WriteFlags } from "../../block/driver.ts";
import { ExtentKind, ExtentList } from "../../block/extent.ts";
import { BlockNode } from "../../block/node.ts";
import { FaultFile, RandomDelays } from "../../sys/fault-file.ts";
import { MemoryFile } from "../../sys/memory-file.ts";
import { LIBC, temporaryDirectory } from "../../sys/testing/places.ts";
import { FileDriver, openFileDriver } from "./file-driver.ts";

const directory = temporaryDirectory();
afterAll(() => directory.remove());

function nodeOver(driver: FileDriver, readOnly = false): BlockNode {
  const node = new BlockNode({ name: "file0", filename: "memory" }, undefined, readOnly);
  node.install(driver);
  return node;
}

function extentsOf(driver: FileDriver, offset: number, bytes: number) {
  const list = new ExtentList(offset);
  driver.extents(offset, bytes, list);
  return list.extents.map(({ offset, bytes, kind, hostOffset }) => ({ offset, bytes, kind, hostOffset }));
}

describe("the file driver", () => {
  it("grows when it is written past its end, and reads zeros there", async () => {
    const node = nodeOver(new FileDriver(new MemoryFile()));
    await node.write(2 * TiB, 3, Buffer.from("abc"), 0);
    expect(node.size).toBe(2 * TiB + 3);
    const buffer = Buffer.alloc(8, 1);
    await node.read(2 * TiB, 8, buffer, 0);
    expect(buffer.toString()).toBe("abc\0\0\0\0\0");
  });

  it("tells data and holes at their own offsets, to the end of what was asked", () => {
    const memory = new MemoryFile({ size: 1 * MiB });
    memory.write(8192, 4096, Buffer.alloc(4096, 1), 0);
    const driver = new FileDriver(memory);
    expect(extentsOf(driver, 4096, 1 * MiB)).toEqual([
      { offset: 4096, bytes: 4096, kind: ExtentKind.ZERO, hostOffset: 4096 },
      { offset: 8192, bytes: 4096, kind: ExtentKind.DATA, hostOffset: 8192 },
      { offset: 12288, bytes: 1 * MiB - 8192, kind: ExtentKind.ZERO, hostOffset: 12288 },
    ]);
    const one = new ExtentList(0, 1);
    driver.extents(0, 1 * MiB, one);
    expect(one.end).toBe(8192);
  });

  it("hands on what a write of zeros may do", () => {
    const asked: unknown[] = [];
    class Asked extends MemoryFile {
      override writeZeroes(
        offset: number,
        bytes: number,
        options: { unmap: boolean; cheapOnly: boolean },
      ): void {
        asked.push(options);
        super.writeZeroes(offset, bytes, options);
      }
    }
    const driver = new FileDriver(new Asked());
    driver.writeZeroes(0, 1, WriteFlags.NONE);
    driver.writeZeroes(0, 1, WriteFlags.MAY_UNMAP);
    driver.writeZeroes(0, 1, WriteFlags.NO_FALLBACK);
    expect(asked).toEqual([
      { unmap: false, cheapOnly: false },
      { unmap: true, cheapOnly: false },
      { unmap: false, cheapOnly: true },
    ]);
  });

  it("flushes and closes the file, and closes it also when the flush fails", async () => {
    const memory = new MemoryFile();
    const file = new FaultFile(memory);
    file.fail({ kind: "sync", errno: "EIO" });
    await expect(new FileDriver(file).close()).rejects.toMatchObject({ code: "EIO" });
    expect(memory.closed).toBe(true);
    const readOnly = new FaultFile(new MemoryFile({ writable: false }));
    await new FileDriver(readOnly).close();
    expect(readOnly.counts.sync).toBe(0);
  });

  it("is the same for callers whether the host is at once or late", async () => {
    const prng = new Prng(77);
    const memory = new MemoryFile();
    const node = nodeOver(new FileDriver(new FaultFile(memory, new RandomDelays(prng))));
    const model = Buffer.alloc(20_000);
    for (let step = 0; step < 300; step++) {
      const offset = prng.below(19_000);
      const content = prng.fill(Buffer.alloc(prng.below(1000)));
      await node.write(offset, content.length, content, 0);
      content.copy(model, offset);
    }
    expect(memory.content(0, 20_000).equals(model)).toBe(true);
  });
});

describe("opening a file as a leaf", () => {
  it("opens, locks, goes to read-only and back, and counts", async () => {
    const path = join(directory.path, "leaf");
    writeFileSync(path, "content");
    const driver = await openFileDriver(path, { writable: true });
    const node = nodeOver(driver);
    expect([driver.driverName, driver.size, driver.growable]).toEqual(["file", 7, true]);
    await node.setWritable(false);
    expect(() => node.write(0, 1, Buffer.from("C"), 0)).toThrow(expect.objectContaining({ code: "EPERM" }));
    await node.setWritable(true);
    await node.write(0, 1, Buffer.from("C"), 0);
    expect(driver.counters()).toMatchObject({ inlineWrites: 1 });
    await driver.close();
  });

  it.skipIf(LIBC === undefined)("lets go of a file that another one holds", async () => {
    const path = join(directory.path, "held");
    writeFileSync(path, "content");
    const driver = await openFileDriver(path, { writable: true });
    await expect(openFileDriver(path, { writable: false })).rejects.toMatchObject({ code: "IMAGE_LOCKED" });
    const unlocked = await openFileDriver(path, { writable: true, locking: false });
    await unlocked.close();
    await driver.close();
    const shared = await openFileDriver(path, { writable: true, shareWrite: true });
    const other = await openFileDriver(path, { writable: true, shareWrite: true });
    await other.close();
    await shared.close();
  });
});

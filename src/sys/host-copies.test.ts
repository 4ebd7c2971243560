import { mkdtempSync, readFileSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Prng } from "../base/prng.ts";
import { FileSystemType } from "./file-systems.ts";
import { HostCopies } from "./host-copies.ts";
import { MemoryFile } from "./memory-file.ts";
import { openHostFile } from "./open-host-file.ts";
import { portableCalls } from "./portable-calls.ts";
import type { SystemCalls } from "./system-calls.ts";
import { LIBC } from "./testing/places.ts";

const folder = mkdtempSync(join(tmpdir(), "strata-copies-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const isKnown = (Object.values(FileSystemType) as number[]).includes(statfsSync(folder).type);

/** Calls whose copies take what `takes` says. */
function calls(takes: (bytes: number) => number): { calls: SystemCalls; asked: number[] } {
  const asked: number[] = [];
  const copyRange = async (_sourceFd: number, _from: number, _fd: number, _to: number, bytes: number) => {
    asked.push(bytes);
    return takes(bytes);
  };
  return { calls: { ...portableCalls, copyRange }, asked };
}

const TMPFS = { type: FileSystemType.TMPFS, device: 1 };

describe("copies inside the host", () => {
  it("go on after a short one, and end after one that took nothing", async () => {
    const short = calls((bytes) => Math.min(bytes, 400));
    expect(await new HostCopies(short.calls, TMPFS).copy(3, 0, 4, 0, 1000)).toBe(true);
    expect(short.asked).toEqual([1000, 600, 200]);
    for (const result of [0, -1]) {
      const none = calls(() => result);
      expect(await new HostCopies(none.calls, TMPFS).copy(3, 0, 4, 0, 1000)).toBe(false);
      expect(none.asked).toEqual([1000]);
    }
  });

  it("are not tried for a while after one that failed, then again", async () => {
    const failing = calls(() => -1);
    const copies = new HostCopies(failing.calls, TMPFS);
    for (let i = 0; i < 130; i++) await copies.copy(3, 0, 4, 0, 1);
    expect(failing.asked.length).toBe(2);
  });

  it("are made only within one file system, and only on those that are known", () => {
    const { calls: some } = calls((bytes) => bytes);
    const beside = (a: { type: number; device: number }, b: { type: number; device: number }) =>
      new HostCopies(some, a).isBeside(new HostCopies(some, b));
    expect(beside(TMPFS, TMPFS)).toBe(true);
    expect(beside(TMPFS, { ...TMPFS, device: 2 })).toBe(false);
    expect(beside({ type: 0x6969, device: 1 }, { type: 0x6969, device: 1 })).toBe(false);
    const shares = (type: number) => new HostCopies(some, { type, device: 1 }).sharesSpace;
    expect([shares(FileSystemType.XFS), shares(FileSystemType.BTRFS)]).toEqual([true, true]);
    expect([shares(FileSystemType.EXT), shares(FileSystemType.TMPFS)]).toEqual([false, false]);
  });

  it.skipIf(LIBC === undefined || !isKnown)("move the bytes, at any offsets, and grow the file", async () => {
    const prng = new Prng(5);
    const content = prng.fill(Buffer.alloc(3_000_000));
    writeFileSync(join(folder, "source"), content);
    const source = openHostFile(join(folder, "source"), { writable: false });
    const target = openHostFile(join(folder, "target"), { writable: true, create: true });
    const model = Buffer.alloc(4_000_000);
    for (let i = 0; i < 50; i++) {
      const bytes = 1 + prng.below(1_000_000);
      const from = prng.below(content.length - bytes);
      const to = prng.below(model.length - bytes);
      expect(await target.copyFrom(source, from, to, bytes)).toBe(true);
      content.copy(model, to, from, from + bytes);
      expect(target.size).toBe(readFileSync(join(folder, "target")).length);
    }
    expect(readFileSync(join(folder, "target")).equals(model.subarray(0, target.size))).toBe(true);
    expect(await target.copyFrom(source, content.length - 10, 0, 11)).toBe(false);
    expect(await target.copyFrom(new MemoryFile({ size: 100 }), 0, 0, 10)).toBe(false);
    await target.close();
    await source.close();
  });

  it.skipIf(LIBC === undefined)("answer false, not true, when the host refuses", async () => {
    writeFileSync(join(folder, "from"), "content");
    writeFileSync(join(folder, "locked"), "");
    const source = openHostFile(join(folder, "from"), { writable: false });
    const readOnly = openHostFile(join(folder, "locked"), { writable: false });
    expect(await readOnly.copyFrom(source, 0, 0, 7)).toBe(false);
    expect(readFileSync(join(folder, "locked")).length).toBe(0);
    await readOnly.close();
    await source.close();
  });
});

import {
  mkdtempSync,
  readFileSync,
  rmSync,
  statfsSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { ManualClock } from "../base/clock.ts";
import { Prng } from "../base/prng.ts";
import { KiB, TiB } from "../base/units.ts";
import { FileSystemType } from "./file-systems.ts";
import { HostCopies } from "./host-copies.ts";
import { MemoryFile } from "./memory-file.ts";
import { openHostFile } from "./open-host-file.ts";
import { portableCalls } from "./portable-calls.ts";
import type { SystemCalls } from "./system-calls.ts";
import { LIBC, MEMORY_PLACE, temporaryDirectory } from "./testing/places.ts";

const folder = mkdtempSync(join(tmpdir(), "strata-copies-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const isKnown = (Object.values(FileSystemType) as number[]).includes(statfsSync(folder).type);

/** Calls whose copies take what `takes` says. */
function calls(takes: (bytes: number) => number): { calls: SystemCalls; asked: number[] } {
  const asked: number[] = [];
  const copyRangeAtOnce = (_sourceFd: number, _from: number, _fd: number, _to: number, bytes: number) => {
    asked.push(bytes);
    return takes(bytes);
  };
  const copyRange = async (...range: [number, number, number, number, number]) => copyRangeAtOnce(...range);
  return { calls: { ...portableCalls, copyRange, copyRangeAtOnce }, asked };
}

const CLOCK = new ManualClock();
const TMPFS = { type: FileSystemType.TMPFS, device: 1 };

describe("copies inside the host", () => {
  it("go on after a short one, and end after one that took nothing", async () => {
    const short = calls((bytes) => Math.min(bytes, 400));
    expect(await new HostCopies(short.calls, TMPFS, CLOCK).copy(3, 0, 4, 0, 1000)).toBe(true);
    expect(short.asked).toEqual([1000, 600, 200]);
    for (const result of [0, -1]) {
      const none = calls(() => result);
      expect(await new HostCopies(none.calls, TMPFS, CLOCK).copy(3, 0, 4, 0, 1000)).toBe(false);
      expect(none.asked).toEqual([1000]);
    }
  });

  it("are not tried for a while after one that failed, then again", async () => {
    const failing = calls(() => -1);
    const copies = new HostCopies(failing.calls, TMPFS, CLOCK);
    for (let i = 0; i < 130; i++) await copies.copy(3, 0, 4, 0, 1);
    expect(failing.asked.length).toBe(2);
  });

  it("go the same way at once", () => {
    const short = calls((bytes) => Math.min(bytes, 400));
    expect(new HostCopies(short.calls, TMPFS, CLOCK).copyAtOnce(3, 0, 4, 0, 1000)).toBe(true);
    expect(short.asked).toEqual([1000, 600, 200]);
    const none = calls((bytes) => (bytes === 1000 ? 400 : 0));
    expect(new HostCopies(none.calls, TMPFS, CLOCK).copyAtOnce(3, 0, 4, 0, 1000)).toBe(false);
    expect(none.asked).toEqual([1000, 600]);
    const failing = calls(() => -1);
    const copies = new HostCopies(failing.calls, TMPFS, CLOCK);
    for (let i = 0; i < 130; i++) copies.copyAtOnce(3, 0, 4, 0, 1);
    expect(failing.asked.length).toBe(2);
  });

  it("are made in pieces, one in each turn of the loop, whoever else copies so", async () => {
    class Turns extends ManualClock {
      readonly next: (() => void)[] = [];

      override turn(): Promise<void> {
        return new Promise((resolve) => this.next.push(resolve));
      }
    }
    const clock = new Turns();
    const some = calls((bytes) => bytes);
    const copies = new HostCopies(some.calls, TMPFS, clock);
    const copying = [copies.copyInTurns(3, 0, 4, 0, 300 * KiB), copies.copyInTurns(3, 0, 4, 0, 1000)];
    const asked: number[] = [];
    for (let turn = 0; turn < 4; turn++) {
      for (let i = 0; i < 20; i++) await Promise.resolve();
      expect(clock.next.length).toBe(1);
      asked.push(...some.asked.splice(0));
      expect(asked.length).toBe(turn + 1);
      clock.next.pop()!();
    }
    expect(await Promise.all(copying)).toEqual([true, true]);
    expect(asked).toEqual([128 * KiB, 128 * KiB, 44 * KiB, 1000]);
  });

  it("end a copy in turns where one piece fails, and the next one begins", async () => {
    let left = 1;
    const some = calls((bytes) => (left-- > 0 ? bytes : -1));
    const copies = new HostCopies(some.calls, TMPFS, CLOCK);
    expect(await copies.copyInTurns(3, 0, 4, 0, 300 * KiB)).toBe(false);
    // Not tried for a while, as after any other failure.
    expect(await copies.copyInTurns(3, 0, 4, 0, 1000)).toBe(false);
    expect(some.asked).toEqual([128 * KiB, 128 * KiB]);
  });

  it("are made at once in memory file systems only, and where there is such a call", () => {
    const { calls: some } = calls((bytes) => bytes);
    const quick = (calls: SystemCalls, type: number) =>
      new HostCopies(calls, { type, device: 1 }, CLOCK).areQuick;
    const { TMPFS, EXT, XFS, BTRFS } = FileSystemType;
    expect([TMPFS, EXT, XFS, BTRFS].map((type) => quick(some, type))).toEqual([true, false, false, false]);
    expect(quick(portableCalls, TMPFS)).toBe(false);
  });

  it("are made only within one file system, and only on those that are known", () => {
    const { calls: some } = calls((bytes) => bytes);
    const beside = (a: { type: number; device: number }, b: { type: number; device: number }) =>
      new HostCopies(some, a, CLOCK).isBeside(new HostCopies(some, b, CLOCK));
    expect(beside(TMPFS, TMPFS)).toBe(true);
    expect(beside(TMPFS, { ...TMPFS, device: 2 })).toBe(false);
    expect(beside({ type: 0x6969, device: 1 }, { type: 0x6969, device: 1 })).toBe(false);
    const shares = (type: number) => new HostCopies(some, { type, device: 1 }, CLOCK).sharesSpace;
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
      expect(await target.copyFrom(source, from, to, bytes, i % 2 === 0)).toBe(true);
      content.copy(model, to, from, from + bytes);
      expect(target.size).toBe(readFileSync(join(folder, "target")).length);
    }
    expect(readFileSync(join(folder, "target")).equals(model.subarray(0, target.size))).toBe(true);
    expect(await target.copyFrom(source, content.length - 10, 0, 11, false)).toBe(false);
    expect(await target.copyFrom(new MemoryFile({ size: 100 }), 0, 0, 10, false)).toBe(false);
    await target.close();
    await source.close();
  });

  it.skipIf(LIBC === undefined || MEMORY_PLACE === undefined)(
    "move the bytes at once in memory, far inside of a long file too",
    async () => {
      const memory = temporaryDirectory(MEMORY_PLACE);
      const prng = new Prng(6);
      const content = prng.fill(Buffer.alloc(300_000));
      const far = 5 * TiB + 12_345;
      const source = openHostFile(join(memory.path, "source"), { writable: true, create: true });
      const target = openHostFile(join(memory.path, "target"), { writable: true, create: true });
      await source.write(far, content.length, content, 0);
      expect(target.copiesAtOnce).toBe(true);
      const end = 3 * TiB + 70_000;
      expect(target.copyAtOnce(source, far + 1000, 3 * TiB, 70_000)).toBe(true);
      expect(target.size).toBe(end);
      expect(statSync(target.path).size).toBe(end);
      const seen = Buffer.alloc(70_000);
      await target.read(3 * TiB, seen.length, seen, 0);
      expect(seen.equals(content.subarray(1000, 71_000))).toBe(true);
      // What the source lacks, what would take long, what is no file of the host.
      expect(target.copyAtOnce(source, far, 0, content.length + 1)).toBe(false);
      expect(target.copyAtOnce(source, far, 0, content.length)).toBe(false);
      expect(target.copyAtOnce(new MemoryFile({ size: 100 }), 0, 0, 10)).toBe(false);
      // Nor what another process took away.
      truncateSync(source.path, far + 10);
      expect(target.copyAtOnce(source, far + 10, 0, 1000)).toBe(false);
      await target.close();
      await source.close();
      memory.remove();
    },
  );

  it.skipIf(LIBC === undefined)("answer false, not true, when the host refuses", async () => {
    writeFileSync(join(folder, "from"), "content");
    writeFileSync(join(folder, "locked"), "");
    const source = openHostFile(join(folder, "from"), { writable: false });
    const readOnly = openHostFile(join(folder, "locked"), { writable: false });
    expect(await readOnly.copyFrom(source, 0, 0, 7, false)).toBe(false);
    expect(readFileSync(join(folder, "locked")).length).toBe(0);
    await readOnly.close();
    await source.close();
  });
});

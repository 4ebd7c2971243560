// The real ring. Where the machine refuses io_uring these tests show the way without it instead.

import {
  closeSync,
  fdatasyncSync,
  ftruncateSync,
  openSync,
  readFileSync,
  readSync,
  statfsSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { type Clock, systemClock } from "../base/clock.ts";
import type { Logger } from "../base/logger.ts";
import { Prng } from "../base/prng.ts";
import { KiB, MiB, TiB } from "../base/units.ts";
import { hostRing } from "./choose-ring.ts";
import type { DiskFile } from "./disk-file.ts";
import { isInMemory } from "./file-systems.ts";
import { Errno } from "./host-error.ts";
import { type ForeignFunction, loadKoffi } from "./load-koffi.ts";
import { type OpenOptions, openHostFile } from "./open-host-file.ts";
import { portableCalls } from "./portable-calls.ts";
import type { RingOperations } from "./ring-operations.ts";
import type { SystemCalls } from "./system-calls.ts";
import { LIBC, OUTSIDE_OF_100, temporaryDirectory } from "./testing/places.ts";

const directory = temporaryDirectory();
afterAll(() => directory.remove());

function recordingLogger(): { logger: Logger; lines: string[] } {
  const lines: string[] = [];
  const record = (text: string) => void lines.push(text);
  return { logger: { debug: record, info: record, warn: record, error: record }, lines };
}

async function untilReady(ring: RingOperations): Promise<RingOperations> {
  while (!ring.ready) await setImmediate();
  return ring;
}

/** Throws the clean pages of a file out of the page cache. */
function dropCache(fd: number): void {
  fdatasyncSync(fd);
  const koffi = loadKoffi();
  if (typeof koffi === "string") return;
  const advise: ForeignFunction = koffi
    .load(null)
    .func("posix_fadvise", "int", ["int", "int64", "int64", "int"]);
  expect(advise(fd, 0, 0, 4)).toBe(0);
}

const found = recordingLogger();
const ring = hostRing(found.logger);

it("says in one line of the log that there is no ring, and nothing when there is one", () => {
  hostRing(found.logger);
  expect(found.lines).toEqual(ring === undefined ? [expect.stringMatching(/^no io_uring \(.+\): /)] : []);
});

describe("without a ring", () => {
  beforeEach(() => void vi.resetModules());
  afterEach(() => void vi.unstubAllEnvs());

  it.each([
    ["STRATA_NO_IO_URING", "STRATA_NO_IO_URING=1 is set"],
    ["STRATA_NO_FFI", "STRATA_NO_FFI=1 is set"],
  ])("by %s the log says why, once", async (name, reason) => {
    vi.stubEnv(name, "1");
    const fresh = await import("./choose-ring.ts");
    const { logger, lines } = recordingLogger();
    expect([fresh.hostRing(logger), fresh.hostRing(logger)]).toEqual([undefined, undefined]);
    expect(lines).toEqual([`no io_uring (${reason}): what waits for a disk takes the thread pool`]);
  });
});

describe.skipIf(ring === undefined)("a ring", () => {
  const fd = openSync(join(directory.path, "ring"), "w+");
  afterAll(() => closeSync(fd));

  it("tells the end of the file, a short read and errors as pread does", async () => {
    const reads = await untilReady(ring!);
    writeSync(fd, "0123456789", 2 ** 32 + 5);
    const buffer = Buffer.alloc(20, 0xee);
    expect(await reads.read(fd, 2 ** 32 + 8, 16, buffer, 2)).toBe(7);
    expect(buffer.toString("latin1")).toBe(`\xee\xee3456789${"\xee".repeat(11)}`);
    expect(await reads.read(fd, 2 ** 40, 16, buffer, 2)).toBe(0);
    expect(await reads.read(12345, 0, 16, buffer, 2)).toBe(-Errno.EBADF);
    const folder = openSync(directory.path, "r");
    expect(await reads.read(folder, 0, 16, buffer, 2)).toBe(-Errno.EISDIR);
    closeSync(folder);
  });

  it("never hands the kernel memory outside of a buffer", async () => {
    const reads = await untilReady(ring!);
    for (const [at, bytes] of OUTSIDE_OF_100) {
      await expect(reads.read(fd, 0, bytes, Buffer.alloc(100), at)).rejects.toThrow(/outside of its buffer/);
    }
    expect(reads.inFlight).toBe(0);
  });

  it("takes more reads than it has places, and is no reason to live when they are done", async () => {
    const reads = await untilReady(ring!);
    ftruncateSync(fd, 0);
    ftruncateSync(fd, 4 * MiB);
    const handles = () => process.getActiveResourcesInfo().filter((name) => name === "PipeWrap").length;
    const before = handles();
    const buffers = Array.from({ length: 1000 }, () => Buffer.alloc(4 * KiB, 0xee));
    const all = buffers.map((buffer, i) => reads.read(fd, i * 4 * KiB, 4 * KiB, buffer, 0));
    expect([reads.inFlight, handles()]).toEqual([256, before + 1]);
    expect(new Set(await Promise.all(all))).toEqual(new Set([4 * KiB]));
    expect(buffers.every((buffer) => buffer.equals(Buffer.alloc(4 * KiB)))).toBe(true);
    expect([reads.inFlight, handles()]).toEqual([0, before]);
  });
});

describe("a host file on a disk", () => {
  const seed = 20_261_122;
  const size = 2 * MiB;

  /** Reads of random ranges in batches, while the upper half is written; what the lower half holds stays. */
  async function agrees(file: DiskFile, path: string, cold: boolean): Promise<void> {
    const prng = new Prng(seed);
    const fd = openSync(path, "r");
    for (let round = 0; round < 5; round++) {
      if (cold) dropCache(fd);
      const reads = Array.from({ length: 60 }, () => {
        const offset = prng.below(size / 2);
        const bytes = Math.min(
          prng.chance(0.2) ? 1 + prng.below(300 * KiB) : 1 + prng.below(8 * KiB),
          size / 2 - offset,
        );
        return { offset, bytes, buffer: Buffer.alloc(bytes + 8, 0xee) };
      });
      const all = reads.map(async ({ offset, bytes, buffer }) => file.read(offset, bytes, buffer, 4));
      for (let i = 0; i < 8; i++) {
        const data = prng.fill(Buffer.alloc(1 + prng.below(9000)));
        await file.write(size / 2 + prng.below(size / 2 - 9000), data.length, data, 0);
      }
      await Promise.all(all);
      for (const { offset, bytes, buffer } of reads) {
        const expected = Buffer.alloc(bytes + 8, 0xee);
        readSync(fd, expected, 4, bytes, offset);
        expect(buffer.equals(expected), `seed ${seed}, round ${round}, ${bytes} at ${offset}`).toBe(true);
      }
    }
    closeSync(fd);
  }

  const lost: SystemCalls = { ...portableCalls, preadNoWait: () => -Errno.EAGAIN };
  it.each([
    ["by the ring, or where there is none by the pool", {}],
    ["by the ring, when the page cache never has anything", { calls: lost }],
    ["with aio=threads", { threads: true }],
  ])("reads what stands there, cold and warm, %s", async (name, options: Partial<OpenOptions>) => {
    if (ring !== undefined) await untilReady(ring);
    const path = join(directory.path, name);
    const content = new Prng(seed).fill(Buffer.alloc(size));
    // With holes.
    content.fill(0, 100 * KiB, 200 * KiB);
    const file = openHostFile(path, { writable: true, create: true, ...options });
    await file.write(0, 100 * KiB, content, 0);
    await file.write(200 * KiB, size - 200 * KiB, content, 200 * KiB);
    await agrees(file, path, true);
    await agrees(file, path, false);
    const { ringReads: byRing, pooledReads: byPool } = file.counters;
    if (!isInMemory(statfsSync(path).type)) {
      // The pool has those that are too large for the loop in any case.
      expect(byPool).toBeGreaterThan(0);
      if (options.threads === true || ring === undefined) expect(byRing).toBe(0);
      else if (options.calls === lost) expect(byRing).toBeGreaterThan(400);
    }
    await file.close();
  });

  it("has what was written, large and small, many at a time and slowly", async () => {
    if (ring !== undefined) await untilReady(ring);
    const path = join(directory.path, "written");
    // Each look at the clock shows later: every write on the loop looks slow.
    let nowMs = 0;
    const clock: Clock = { ...systemClock, nowMs: () => (nowMs += 0.1) };
    const file = openHostFile(path, { writable: true, create: true, clock });
    const prng = new Prng(seed);
    const model = Buffer.alloc(size);
    for (let round = 0; round < 40; round++) {
      const all: Promise<void>[] = [];
      // One behind the other, with gaps: what overlaps may come in any order.
      for (let at = prng.below(9000); at < size; at += prng.below(60 * KiB)) {
        const bytes = prng.chance(0.05) ? 300 * KiB + prng.below(400 * KiB) : 1 + prng.below(9000);
        if (at + bytes > size) break;
        const data = prng.fill(Buffer.alloc(bytes + 7));
        data.copy(model, at, 7);
        all.push((async (offset: number) => file.write(offset, bytes, data, 7))(at));
        at += bytes;
      }
      await Promise.all(all);
    }
    const content = readFileSync(path);
    expect(content.equals(model.subarray(0, content.length)), `seed ${seed}`).toBe(true);
    expect([file.size, model.subarray(content.length).every((byte) => byte === 0)]).toEqual([
      content.length,
      true,
    ]);
    const { ringWrites, pooledWrites, inlineWrites } = file.counters;
    expect(inlineWrites).toBeGreaterThan(0);
    if (ring === undefined) expect([ringWrites, pooledWrites > 0]).toEqual([0, true]);
    else if (isInMemory(statfsSync(path).type)) expect(ringWrites).toBeGreaterThan(10);
    else expect(ringWrites).toBeGreaterThan(500);
    await file.close();
  });

  it("far from its beginning, and past its end", async () => {
    if (ring !== undefined) await untilReady(ring);
    const path = join(directory.path, "sparse");
    const file = openHostFile(path, { writable: true, create: true, calls: lost });
    await file.write(TiB + 5, 4, Buffer.from("here"), 0);
    const buffer = Buffer.alloc(20, 0xee);
    await file.read(TiB + 4, 10, buffer, 3);
    expect(buffer.toString("latin1")).toBe(`\xee\xee\xee\0here\0\0\0\0\0${"\xee".repeat(7)}`);
    await file.close();
  });

  it.skipIf(LIBC === undefined)("closes when the reads under way have ended", async () => {
    if (ring !== undefined) await untilReady(ring);
    const path = join(directory.path, "closing");
    const file = openHostFile(path, { writable: true, create: true });
    const content = new Prng(seed).fill(Buffer.alloc(1 * MiB));
    await file.write(0, 1 * MiB, content, 0);
    const fd = openSync(path, "r");
    dropCache(fd);
    closeSync(fd);
    const buffers = Array.from({ length: 300 }, () => Buffer.alloc(3 * KiB));
    const all = buffers.map(async (buffer, i) => file.read(i * 3 * KiB, 3 * KiB, buffer, 0));
    await file.close();
    await Promise.all(all);
    expect(Buffer.concat(buffers).equals(content.subarray(0, 900 * KiB))).toBe(true);
  });
});

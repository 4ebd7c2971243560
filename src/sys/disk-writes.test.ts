import { openSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { afterAll, describe, expect, it } from "vitest";
import { ManualClock } from "../base/clock.ts";
import { Prng } from "../base/prng.ts";
import { KiB, MiB } from "../base/units.ts";
import { Descriptor } from "./descriptor.ts";
import { DiskWrites, newCounters } from "./disk-writes.ts";
import { EndsInFlight } from "./ends-in-flight.ts";
import { Errno } from "./host-error.ts";
import { portableCalls } from "./portable-calls.ts";
import { NOT_TAKEN } from "./ring-operations.ts";
import { RingShare } from "./ring-share.ts";
import { temporaryDirectory } from "./testing/places.ts";
import { StingyRing } from "./testing/stingy-ring.ts";

const directory = temporaryDirectory();
afterAll(() => directory.remove());
let count = 0;

interface Place {
  inMemory?: boolean;
  cachesWrites?: boolean;
  /** What a write on the loop takes. */
  tookMs?: number;
}

function opened(ring: StingyRing | undefined, place: Place = {}) {
  const path = join(directory.path, `file-${count++}`);
  writeFileSync(path, "");
  const descriptor = new Descriptor(openSync(path, "r+"));
  const counters = newCounters();
  const clock = new ManualClock();
  const told = { end: 0, failures: 0 };
  const writes = new DiskWrites({
    path,
    descriptor,
    inMemory: place.inMemory ?? false,
    cachesWrites: place.cachesWrites ?? true,
    calls: {
      ...portableCalls,
      pwrite: (fd, offset, bytes, buffer, at) => {
        clock.advance(place.tookMs ?? 0);
        return portableCalls.pwrite(fd, offset, bytes, buffer, at);
      },
    },
    ring: new RingShare(() => ring),
    clock,
    counters,
    inFlight: new EndsInFlight(),
    written: (end) => {
      told.end = Math.max(told.end, end);
    },
    failed: () => {
      told.failures++;
    },
  });
  const large = new Prng(1).fill(Buffer.alloc(MiB + 20));
  /** 1 MiB at offset 5. */
  const writeLarge = async () => writes.write(5, MiB, large, 10);
  const content = () => readFileSync(path);
  const holdsLarge = () =>
    content()
      .subarray(5)
      .equals(large.subarray(10, MiB + 10));
  const writeSmall = async (text: string, offset: number) =>
    writes.write(offset, text.length, Buffer.from(text), 0);
  return {
    writes,
    descriptor,
    counters,
    clock,
    large,
    told,
    writeLarge,
    writeSmall,
    holdsLarge,
    content,
    path,
  };
}

describe("a large write", () => {
  it.each([[true], [false]])(
    "goes to the ring, in as many steps as it takes; in memory: %s",
    async (inMemory) => {
      const ring = new StingyRing(300 * KiB);
      const { descriptor, counters, told, writeLarge, holdsLarge, path } = opened(ring, { inMemory });
      await writeLarge();
      expect(holdsLarge()).toBe(true);
      expect(ring.asked).toEqual([0, 300, 600, 900].map((done) => [5 + done * KiB, MiB - done * KiB]));
      expect(counters).toMatchObject({ inlineWrites: 0, ringWrites: 1, pooledWrites: 0 });
      expect(told).toEqual({ end: MiB + 5, failures: 0 });
      await descriptor.close(path);
    },
  );

  it.each([
    NOT_TAKEN,
    -Errno.EINTR,
    -Errno.EAGAIN,
    -Errno.ENOMEM,
    -Errno.EINVAL,
    -Errno.EPERM,
    -Errno.ENOSPC,
    0,
  ])("is written on by the pool when the ring answers %d", async (answer) => {
    const ring = new StingyRing(300 * KiB, [300 * KiB, answer]);
    const { descriptor, counters, large, writeLarge, writeSmall, content, path } = opened(ring);
    // What the first answer says was written was not: the pool must leave it alone.
    await writeSmall("before", 5);
    await writeLarge();
    expect(content().subarray(5, 11).toString()).toBe("before");
    expect(
      content()
        .subarray(5 + 300 * KiB)
        .equals(large.subarray(10 + 300 * KiB, 10 + MiB)),
    ).toBe(true);
    expect(counters).toMatchObject({ inlineWrites: 1, ringWrites: 1, pooledWrites: 1 });
    await descriptor.close(path);
  });

  it("fails when the ring tells an error of the disk, and the pool is not asked", async () => {
    const { descriptor, counters, told, writeLarge, path } = opened(new StingyRing(MiB, [-Errno.EIO]));
    await expect(writeLarge()).rejects.toThrow(
      `Could not write 1048576 bytes at offset 5 of '${path}': Input/output error`,
    );
    expect([counters.pooledWrites, told]).toEqual([0, { end: 0, failures: 1 }]);
    for (let i = 0; i < 64; i++) await writeLarge();
    expect(counters).toMatchObject({ ringWrites: 65, pooledWrites: 0 });
    await descriptor.close(path);
  });

  it.each([
    ["there is no ring", undefined, {}],
    ["the ring is not ready", Object.assign(new StingyRing(MiB), { ready: false }), {}],
    ["the file system may keep its callers waiting", new StingyRing(MiB), { cachesWrites: false }],
  ])("goes to the pool where %s", async (_why, ring, place) => {
    const { descriptor, counters, writeLarge, holdsLarge, path } = opened(ring, place);
    await writeLarge();
    expect(holdsLarge()).toBe(true);
    expect(counters).toMatchObject({ ringWrites: 0, pooledWrites: 1 });
    await descriptor.close(path);
  });

  it("goes to the pool when the file has its share of the ring", async () => {
    const ring = new StingyRing(MiB);
    const go = ring.hold();
    const { descriptor, counters, writeLarge, holdsLarge, path } = opened(ring);
    const all = Array.from({ length: 70 }, writeLarge);
    expect([counters.ringWrites, ring.asked.length]).toEqual([64, 64]);
    go();
    await Promise.all(all);
    expect(counters).toMatchObject({ ringWrites: 64, pooledWrites: 6 });
    expect(holdsLarge()).toBe(true);
    await writeLarge();
    expect(counters.ringWrites).toBe(65);
    await descriptor.close(path);
  });

  it("keeps its descriptor open, and goes nowhere when that is closed", async () => {
    const ring = new StingyRing(MiB);
    const go = ring.hold();
    const { descriptor, told, writeLarge, holdsLarge, path } = opened(ring);
    const writing = writeLarge();
    let closed = false;
    const closing = descriptor.close(path).then(() => {
      closed = true;
    });
    await setImmediate();
    // Nothing is told as written before it is.
    expect([closed, descriptor.fd >= 0, told.end]).toEqual([false, true, 0]);
    go();
    await writing;
    expect(told.end).toBe(MiB + 5);
    await closing;
    expect(holdsLarge()).toBe(true);
    await expect(writeLarge()).rejects.toThrow(/Bad file descriptor/);
    expect(ring.asked.length).toBe(1);
  });
});

describe("a small write", () => {
  it("is done on the loop while that is quick", () => {
    const ring = new StingyRing(MiB);
    const { writes, counters } = opened(ring, { tookMs: 0.01 });
    for (let i = 0; i < 100; i++) expect(writes.write(i, 1, Buffer.from("x"), 0)).toBeUndefined();
    expect(counters).toMatchObject({ inlineWrites: 100, ringWrites: 0 });
  });

  it("goes to the ring when they are slow, and back when they have no company there", async () => {
    const ring = new StingyRing(3);
    const { counters, content, writeSmall } = opened(ring, { tookMs: 0.04 });
    for (let i = 0; i < 32; i++) await writeSmall("on the loop", i * 11);
    expect(counters).toMatchObject({ inlineWrites: 32, ringWrites: 0 });
    for (let i = 0; i < 40; i++) await writeSmall("beside it", i * 9);
    expect(counters).toMatchObject({ inlineWrites: 40, ringWrites: 32, pooledWrites: 0 });
    expect(content().toString()).toBe("beside it".repeat(40));
  });

  it("stays in the ring while more is asked of the file, and looks now and then", async () => {
    const ring = new StingyRing(MiB);
    const { counters, writeSmall } = opened(ring, { tookMs: 0.04 });
    for (let i = 0; i < 32; i++) await writeSmall("slow", 0);
    for (let i = 0; i < 400; i++) {
      await Promise.all(Array.from({ length: 12 }, (_, at) => writeSmall("slow", at * 4)));
    }
    const { inlineWrites, ringWrites } = counters;
    expect(inlineWrites + ringWrites).toBe(4832);
    expect(ringWrites).toBeGreaterThan(4600);
    expect(inlineWrites).toBeGreaterThanOrEqual(96);
  });

  it("goes back to the loop, not to the pool, when the ring has no room, is gone or takes nothing", async () => {
    const troubles: ((ring: StingyRing) => void)[] = [
      (ring) => ring.hold(),
      (ring) => {
        ring.ready = false;
      },
    ];
    for (const trouble of troubles) {
      const ring = new StingyRing(MiB);
      const { counters, writeSmall } = opened(ring, { tookMs: 0.04 });
      for (let i = 0; i < 32; i++) await writeSmall("slow", 0);
      trouble(ring);
      for (let i = 0; i < 300; i++) void writeSmall("slow", 0);
      expect(counters.pooledWrites).toBe(0);
      expect(counters.inlineWrites).toBeGreaterThanOrEqual(32 + 300 - 64);
    }
    const refusing = opened(new StingyRing(MiB, Array(1000).fill(NOT_TAKEN)), { tookMs: 0.04 });
    for (let i = 0; i < 50; i++) {
      await Promise.all(Array.from({ length: 20 }, () => refusing.writeSmall("slow", 0)));
    }
    expect(refusing.counters.pooledWrites).toBeLessThan(60);
  });

  it("goes to the ring while the host throttles, to the pool where there is none", async () => {
    for (const ring of [new StingyRing(MiB), undefined]) {
      const { counters, clock, writeSmall } = opened(ring, { tookMs: 20 });
      await writeSmall("slept", 0);
      await writeSmall("not on the loop", 0);
      clock.advance(60);
      await writeSmall("on it again", 0);
      const [ringWrites, pooledWrites] = ring === undefined ? [0, 1] : [1, 0];
      expect(counters).toMatchObject({ inlineWrites: 2, ringWrites, pooledWrites });
    }
  });

  it("in several parts is done on the loop however slow, and in the pool when the host throttles", async () => {
    const { writes, counters, content, writeSmall } = opened(new StingyRing(MiB), { tookMs: 0.04 });
    for (let i = 0; i < 32; i++) await writeSmall("slow", 0);
    expect(writes.writeVector(0, [Buffer.from("two "), Buffer.from("parts")])).toBeUndefined();
    expect(content().toString()).toBe("two parts");
    expect(counters).toMatchObject({ inlineWrites: 33, ringWrites: 0, pooledWrites: 0 });
  });
});

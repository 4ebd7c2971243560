import { openSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Descriptor } from "./descriptor.ts";
import { DiskReads, type ReadCounters } from "./disk-reads.ts";
import { Errno } from "./host-error.ts";
import { portableCalls } from "./portable-calls.ts";
import { NOT_TAKEN } from "./ring-operations.ts";
import { RingShare } from "./ring-share.ts";
import type { SystemCalls } from "./system-calls.ts";
import { temporaryDirectory } from "./testing/places.ts";
import { StingyRing } from "./testing/stingy-ring.ts";

const directory = temporaryDirectory();
afterAll(() => directory.remove());
const path = join(directory.path, "file");
writeFileSync(path, "warmcold");

/** Of the file the page cache has the first four bytes. */
const halfCached: SystemCalls = {
  ...portableCalls,
  preadNoWait: (fd, offset, bytes, buffer, at) =>
    offset >= 4 ? -Errno.EAGAIN : portableCalls.pread(fd, offset, Math.min(bytes, 4 - offset), buffer, at),
};

function opened(ring: StingyRing | undefined) {
  const descriptor = new Descriptor(openSync(path, "r"));
  const counters: ReadCounters = { inlineReads: 0, ringReads: 0, pooledReads: 0 };
  const parts = {
    path,
    descriptor,
    inMemory: false,
    calls: halfCached,
    ring: new RingShare(() => ring),
    counters,
  };
  const reads = new DiskReads(parts);
  const content = async (offset: number, bytes: number): Promise<string> => {
    const buffer = Buffer.alloc(bytes + 2, ".");
    await reads.read(offset, bytes, buffer, 1);
    return buffer.toString();
  };
  return { descriptor, counters, content };
}

describe("a read that waits for the disk", () => {
  it("goes on in the ring behind what the page cache has, in as many steps as it takes", async () => {
    const ring = new StingyRing(3);
    const { descriptor, counters, content } = opened(ring);
    expect(await content(0, 10)).toBe(".warmcold\0\0.");
    expect(ring.asked).toEqual([
      [4, 6],
      [7, 3],
      [8, 2],
    ]);
    expect(await content(0, 4)).toBe(".warm.");
    expect(counters).toEqual({ inlineReads: 1, ringReads: 1, pooledReads: 0 });
    await descriptor.close(path);
  });

  it.each([-Errno.EAGAIN, -Errno.EINTR, -Errno.EINVAL, -Errno.ECANCELED, NOT_TAKEN])(
    "is done by the pool when the ring says %i",
    async (result) => {
      const { descriptor, counters, content } = opened(new StingyRing(2, [result]));
      expect(await content(2, 10)).toBe(".rmcold\0\0\0\0.");
      expect(counters).toEqual({ inlineReads: 0, ringReads: 1, pooledReads: 1 });
      await descriptor.close(path);
    },
  );

  it("leaves most of the ring to other files when the host does not answer", async () => {
    const hung = new StingyRing(100);
    const answer = hung.hold();
    const { descriptor, counters, content } = opened(hung);
    const waiting = Array.from({ length: 64 }, () => content(4, 4));
    expect(await content(4, 4)).toBe(".cold.");
    expect([hung.asked.length, counters.pooledReads]).toEqual([64, 1]);
    answer();
    expect(new Set(await Promise.all(waiting))).toEqual(new Set([".cold."]));
    expect(await content(4, 4)).toBe(".cold.");
    expect([hung.asked.length, counters.pooledReads]).toEqual([65, 1]);
    await descriptor.close(path);
  });

  it("fails with the disk's error, and leaves the descriptor", async () => {
    const { descriptor, counters, content } = opened(new StingyRing(2, [2, -Errno.EIO]));
    await expect(content(4, 4)).rejects.toMatchObject({
      code: "EIO",
      message: `Could not read 4 bytes at offset 4 of '${path}': Input/output error`,
    });
    expect(counters).toEqual({ inlineReads: 0, ringReads: 1, pooledReads: 0 });
    await descriptor.close(path);
  });

  it.each([true, false])("takes the pool where no ring is ready; there is one: %s", async (exists) => {
    const ring = new StingyRing(100);
    ring.ready = false;
    const { descriptor, counters, content } = opened(exists ? ring : undefined);
    expect(await content(0, 8)).toBe(".warmcold.");
    expect([ring.asked, counters.pooledReads]).toEqual([[], 1]);
    await descriptor.close(path);
  });

  it("keeps its descriptor open, in the ring, in the pool and parked", async () => {
    const ring = new StingyRing(100);
    const go = ring.hold();
    const { descriptor, counters, content } = opened(ring);
    const inRing = content(4, 4);
    ring.ready = false;
    const others = Array.from({ length: 9 }, () => content(4, 4));
    let closed = false;
    const closing = descriptor.close(path).then(() => {
      closed = true;
    });
    expect(new Set(await Promise.all(others))).toEqual(new Set([".cold."]));
    expect([closed, descriptor.fd < 0]).toEqual([false, false]);
    go();
    await closing;
    expect(await inRing).toBe(".cold.");
    expect(counters).toEqual({ inlineReads: 0, ringReads: 1, pooledReads: 9 });
  });
});

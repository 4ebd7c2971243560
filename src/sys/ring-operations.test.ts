import { setImmediate } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { describe, expect, it } from "vitest";
import { Prng } from "../base/prng.ts";
import { Errno } from "./host-error.ts";
import { NOT_TAKEN, RingOperations } from "./ring-operations.ts";
import { FakeRing } from "./testing/fake-ring.ts";

const FD = 7;

function ready(places = 4): { ring: FakeRing; reads: RingOperations } {
  const ring = new FakeRing(places);
  const reads = new RingOperations(ring);
  ring.finish(ring.kernel[0]!, 0);
  reads.woken();
  ring.submits = 0;
  return { ring, reads };
}

/** Starts one read of 10 bytes; `result` once it has settled. */
function start(reads: RingOperations, offset: number) {
  const buffer = Buffer.alloc(12, 0xee);
  const started: { offset: number; buffer: Buffer; result?: number } = { offset, buffer };
  void reads.read(FD, offset, 10, buffer, 1).then((result) => {
    started.result = result;
  });
  return started;
}

function startMany(reads: RingOperations, count: number) {
  return Array.from({ length: count }, (_, i) => start(reads, i + 1));
}

async function turn(): Promise<void> {
  for (let i = 0; i < 5; i++) await Promise.resolve();
}

const offsets = (entries: readonly { offset: number }[]) => entries.map(({ offset }) => offset);

describe("operations of a ring", () => {
  it("are handed over in one call for all that one turn starts", async () => {
    const { ring, reads } = ready();
    startMany(reads, 3);
    expect([ring.submits, ring.kernel.length]).toEqual([0, 0]);
    await turn();
    expect([ring.submits, offsets(ring.kernel)]).toEqual([1, [1, 2, 3]]);
    expect(ring.kernel[0]).toMatchObject({ fd: FD, offset: 1, bytes: 10, at: 1 });
  });

  it("settle with what the kernel said, in the order in which it is done", async () => {
    const { ring, reads } = ready();
    const [first, second, third] = startMany(reads, 3);
    await turn();
    const [one, two, three] = [...ring.kernel];
    ring.finish(three!);
    ring.finish(one!, -5);
    reads.woken();
    await turn();
    expect([first!.result, second!.result, third!.result]).toEqual([-5, undefined, 10]);
    expect(third!.buffer).toEqual(Buffer.from([0xee, ...Array(10).fill(3), 0xee]));
    ring.finish(two!, 4);
    reads.woken();
    await turn();
    expect(second!.result).toBe(4);
  });

  it("are taken right after the call when they are done by then", async () => {
    const { ring, reads } = ready();
    const first = start(reads, 1);
    await turn();
    ring.finish(ring.kernel[0]!);
    start(reads, 2);
    await turn();
    expect(first.result).toBe(10);
  });

  it("write what the buffer holds, in one queue with reads", async () => {
    const { ring, reads } = ready(2);
    const buffer = Buffer.from("0123456789ab");
    const results: number[] = [];
    for (const offset of [5, 6]) {
      void reads.write(FD, offset, 10, buffer, 2).then((result) => results.push(result));
      start(reads, offset + 10);
    }
    await turn();
    expect(ring.kernel.map(({ offset, writes }) => [offset, writes])).toEqual([
      [5, true],
      [15, undefined],
    ]);
    expect(ring.kernel[0]).toMatchObject({ fd: FD, bytes: 10, buffer, at: 2 });
    ring.finish(ring.kernel[0]!, 4);
    reads.woken();
    await turn();
    expect([results, offsets(ring.kernel)]).toEqual([[4], [15, 6]]);
    ring.finish(ring.kernel[1]!, -28);
    reads.woken();
    await turn();
    expect([results, buffer.toString()]).toEqual([[4, -28], "0123456789ab"]);
  });

  it("wait for a place in order of arrival", async () => {
    const { ring, reads } = ready(2);
    startMany(reads, 5);
    await turn();
    expect(offsets(ring.kernel)).toEqual([1, 2]);
    ring.finish(ring.kernel[1]!);
    reads.woken();
    await turn();
    expect(offsets(ring.kernel)).toEqual([1, 3]);
    ring.finish(ring.kernel[0]!);
    ring.finish(ring.kernel[0]!);
    reads.woken();
    await turn();
    expect(offsets(ring.kernel)).toEqual([4, 5]);
  });

  it("keep the process alive while one is under way, and no longer", async () => {
    const { ring, reads } = ready();
    expect(ring.held).toBe(false);
    startMany(reads, 2);
    expect([ring.held, reads.inFlight]).toEqual([true, 2]);
    await turn();
    ring.finish(ring.kernel[0]!);
    reads.woken();
    expect([ring.held, reads.inFlight]).toEqual([true, 1]);
    ring.finish(ring.kernel[0]!);
    reads.woken();
    expect([ring.held, reads.inFlight]).toEqual([false, 0]);
  });

  it("are submitted on when the kernel takes a part only", async () => {
    const { ring, reads } = ready();
    startMany(reads, 4);
    ring.answers.push(1, 2);
    await turn();
    expect([ring.submits, offsets(ring.kernel)]).toEqual([3, [1, 2, 3, 4]]);
  });

  it.each([-11, -16, -4, -1, 0])("are given back when the call fails with %i", async (errno) => {
    const { ring, reads } = ready();
    const before = start(reads, 9);
    await turn();
    const started = startMany(reads, 3);
    ring.answers.push(1, errno);
    await turn();
    expect(started.map(({ result }) => result)).toEqual([undefined, NOT_TAKEN, NOT_TAKEN]);
    expect([offsets(ring.kernel), reads.inFlight]).toEqual([[9, 1], 2]);
    // What the kernel has is still its own; later ones are tried again.
    const later = start(reads, 5);
    await turn();
    while (ring.kernel.length > 0) ring.finish(ring.kernel[0]!);
    reads.woken();
    await turn();
    expect([before.result, started[0]!.result, later.result]).toEqual([10, 10, 10]);
  });

  it("that wait for a place are not left behind by a call that fails", async () => {
    const { ring, reads } = ready(2);
    const started = startMany(reads, 5);
    ring.answers.push(-11, -11, -11);
    await turn();
    expect(started.map(({ result }) => result)).toEqual(Array(5).fill(NOT_TAKEN));
    expect([reads.inFlight, ring.held]).toEqual([0, false]);
  });

  it("are refused until the kernel has woken the loop once", async () => {
    const ring = new FakeRing(4);
    const reads = new RingOperations(ring);
    expect(reads.ready).toBe(false);
    expect(await reads.read(FD, 0, 10, Buffer.alloc(10), 0)).toBe(NOT_TAKEN);
    reads.woken();
    expect(reads.ready).toBe(false);
    ring.finish(ring.kernel[0]!, 0);
    reads.woken();
    expect(reads.ready).toBe(true);
  });

  it.each([
    [-Errno.EPERM, "io_uring_enter: Operation not permitted"],
    [0, "io_uring_enter: nothing was taken"],
  ])("are not for a ring that takes nothing: %i", (answer, message) => {
    const ring = new FakeRing(4);
    ring.answers.push(answer);
    expect(() => new RingOperations(ring)).toThrow(message);
    expect(ring.closed).toBe(true);
  });

  it("are all waited for when no wake can come any more", async () => {
    const { ring, reads } = ready(3);
    const started = startMany(reads, 3);
    await turn();
    started.push(start(reads, 4));
    ring.onWait = () => ring.finish(ring.kernel[0]!);
    reads.lost();
    await turn();
    expect(started.map(({ result }) => result)).toEqual([10, 10, 10, NOT_TAKEN]);
    expect([ring.waits, ring.held, reads.ready]).toEqual([3, false, false]);
  });

  it("that were not handed over when wakes end are given back", async () => {
    const { ring, reads } = ready();
    const started = start(reads, 1);
    reads.lost();
    await turn();
    expect([started.result, ring.waits]).toEqual([NOT_TAKEN, 0]);
  });

  it("keep their buffer until the kernel has done with it, and no longer", async () => {
    setFlagsFromString("--expose-gc");
    const collect = runInNewContext("gc") as () => void;
    const { ring, reads } = ready();
    // The kernel knows addresses only.
    ring.prepareRead = (tag, fd, offset, bytes) => {
      ring.entries.push({ tag, fd, offset, bytes, buffer: Buffer.alloc(10), at: 0 });
    };
    const buffer = (() => {
      const own = Buffer.from(new ArrayBuffer(10));
      void reads.read(FD, 0, 10, own, 0);
      return new WeakRef(own.buffer);
    })();
    await setImmediate();
    collect();
    expect(buffer.deref()?.byteLength).toBe(10);
    ring.finish(ring.kernel[0]!);
    reads.woken();
    await setImmediate();
    collect();
    expect(buffer.deref()).toBeUndefined();
  });

  it("leave no place taken when their range is outside of the buffer", async () => {
    const { ring, reads } = ready();
    ring.prepareRead = () => {
      throw new Error("outside");
    };
    await expect(reads.read(FD, 0, 10, Buffer.alloc(5), 0)).rejects.toThrow("outside");
    expect([reads.inFlight, ring.held]).toEqual([0, false]);
  });

  it("all settle with their own bytes, whatever comes when: 50 seeds", async () => {
    for (let seed = 1; seed <= 50; seed++) {
      const prng = new Prng(seed);
      const { ring, reads } = ready(1 + prng.below(8));
      const started: ReturnType<typeof start>[] = [];
      for (let step = 0; step < 200; step++) {
        const dice = prng.below(8);
        if (dice < 4) started.push(start(reads, 1 + prng.below(200)));
        else if (dice < 6 && ring.kernel.length > 0)
          ring.finish(ring.kernel[prng.below(ring.kernel.length)]!);
        else if (dice === 6) reads.woken();
        else ring.answers.push(prng.below(4) - 1);
        if (prng.chance(0.3)) await turn();
      }
      ring.answers.length = 0;
      for (let i = 0; i < 300 && started.some(({ result }) => result === undefined); i++) {
        while (ring.kernel.length > 0) ring.finish(ring.kernel[0]!);
        reads.woken();
        await turn();
      }
      const wrong = started.filter(({ offset, buffer, result }) => {
        const read = Buffer.from([0xee, ...Array(10).fill(offset), 0xee]);
        return result === 10 ? !buffer.equals(read) : result !== NOT_TAKEN;
      });
      expect(wrong, `seed ${seed}`).toEqual([]);
      expect([reads.inFlight, ring.held], `seed ${seed}`).toEqual([0, false]);
    }
  });
});

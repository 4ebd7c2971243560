import { describe, expect, it } from "vitest";
import { BufferPool } from "./buffer-pool.ts";
import { GiB, MiB } from "./units.ts";

describe("BufferPool", () => {
  it.each([
    [0, 512],
    [1, 512],
    [512, 512],
    [513, 1024],
    [65536, 65536],
    [65537, 131072],
    [32 * MiB, 32 * MiB],
    [32 * MiB + 1, 32 * MiB + 1],
  ])("%d bytes are held by a buffer of %d", (bytes, length) => {
    expect(new BufferPool().take(bytes).length).toBe(length);
  });

  it("never gives less than asked for, also above 32 bits", () => {
    const pool = new BufferPool();
    // Node may refuse that much; a short buffer would be a memory error of ours.
    let length = Number.POSITIVE_INFINITY;
    try {
      length = pool.take(8 * GiB + 1).length;
    } catch (error) {
      expect(error).toBeInstanceOf(RangeError);
    }
    expect(length).toBeGreaterThan(8 * GiB);
  });

  it("gives a buffer again that came back, and never to two", () => {
    const pool = new BufferPool();
    const first = pool.take(1000);
    const second = pool.take(1000);
    pool.give(first);
    expect(pool.take(900)).toBe(first);
    expect(pool.take(900)).not.toBe(second);
  });

  it("leaves what is not its own to the garbage collector", () => {
    const pool = new BufferPool();
    const odd = Buffer.alloc(1000);
    pool.give(odd);
    expect(pool.take(1000)).not.toBe(odd);
  });

  it("keeps a bounded number of bytes", () => {
    const pool = new BufferPool();
    const taken = Array.from({ length: 3 }, () => pool.take(32 * MiB));
    for (const buffer of taken) pool.give(buffer);
    const again = Array.from({ length: 3 }, () => pool.take(32 * MiB));
    expect(again.filter((buffer) => taken.includes(buffer))).toHaveLength(2);
  });
});

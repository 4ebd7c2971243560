import { describe, expect, it } from "vitest";
import { Prng } from "../base/prng.ts";
import { TiB } from "../base/units.ts";
import { FaultFile, HeldCalls, RandomDelays } from "./fault-file.ts";
import { MemoryFile } from "./memory-file.ts";

describe("a file in memory", () => {
  it("agrees with an array", () => {
    const seed = 11;
    const prng = new Prng(seed);
    const max = 40_000;
    const file = new MemoryFile();
    const model = Buffer.alloc(max);
    let size = 0;
    for (let step = 0; step < 3000; step++) {
      const offset = prng.below(max);
      const bytes = prng.below(max - offset);
      const action = prng.below(5);
      if (action === 0) {
        const content = prng.fill(Buffer.alloc(bytes));
        file.write(offset, bytes, content, 0);
        content.copy(model, offset);
        if (bytes > 0) size = Math.max(size, offset + bytes);
      } else if (action === 1) {
        file.writeZeroes(offset, bytes, { unmap: prng.chance(0.5), cheapOnly: false });
        model.fill(0, offset, offset + bytes);
        size = Math.max(size, offset + bytes);
      } else if (action === 2) {
        file.discard(offset, bytes);
        model.fill(0, offset, offset + bytes);
      } else if (action === 3 && prng.chance(0.2)) {
        file.truncate(offset);
        model.fill(0, offset);
        size = offset;
      }
      expect(file.size, `seed ${seed}, step ${step}`).toBe(size);
      if (step % 50 === 0)
        expect(file.content(0, max).equals(model), `seed ${seed}, step ${step}`).toBe(true);
    }
    expect(file.content(0, max).equals(model)).toBe(true);
  });

  it("is sparse: terabytes of nothing cost nothing", () => {
    const file = new MemoryFile({ size: 8 * TiB });
    file.write(5 * TiB - 1, 2, Buffer.from("ab"), 0);
    expect(file.content(5 * TiB - 2, 4).toString()).toBe("\0ab\0");
    expect(file.extentAt(0)).toEqual({ bytes: 5 * TiB - 4096, data: false });
    expect(file.extentAt(5 * TiB - 4096)).toEqual({ bytes: 8192, data: true });
    expect(file.allocatedBytes()).toBe(8192);
    file.discard(0, 8 * TiB);
    expect(file.allocatedBytes()).toBe(0);
    expect(file.size).toBe(8 * TiB);
  });

  it("knows when it is full, closed, or for reading only", async () => {
    const file = new MemoryFile({ spaceMax: 8192 });
    file.write(0, 8192, Buffer.alloc(8192, 1), 0);
    expect(() => file.write(8192, 1, Buffer.alloc(1), 0)).toThrow(
      expect.objectContaining({ code: "ENOSPC" }),
    );
    await file.setWritable(false);
    expect(() => file.discard(0, 1)).toThrow(expect.objectContaining({ code: "EPERM" }));
    await file.close();
    expect(() => file.content(0, 1)).toThrow(/is closed/);
  });
});

describe("a file with faults", () => {
  it("fails the calls it was told to, before they reach the file", () => {
    const memory = new MemoryFile();
    const file = new FaultFile(memory);
    file.fail({ kind: "write", errno: "ENOSPC", nth: 2, times: 2 });
    const write = () => file.write(0, 1, Buffer.from([file.counts.write + 1]), 0);
    write();
    expect(write).toThrow(expect.objectContaining({ code: "ENOSPC" }));
    expect(write).toThrow(/Injected: write of 1 bytes at offset 0 of 'memory': No space left/);
    expect(memory.content()).toEqual(Buffer.from([1]));
    write();
    expect(memory.content()).toEqual(Buffer.from([4]));
    expect(file.counts).toMatchObject({ write: 4, read: 0 });
  });

  it("fails what touches a range", () => {
    const file = new FaultFile(new MemoryFile());
    file.fail({
      kind: "read",
      errno: "EIO",
      times: Number.POSITIVE_INFINITY,
      range: { offset: 100, bytes: 10 },
    });
    const read = (offset: number, bytes: number) => () => file.read(offset, bytes, Buffer.alloc(bytes), 0);
    expect(read(0, 100)).not.toThrow();
    expect(read(110, 5)).not.toThrow();
    expect(read(0, 101)).toThrow();
    expect(read(109, 5)).toThrow();
    file.clearFaults();
    expect(read(109, 5)).not.toThrow();
  });

  it("delays some calls and not others, the same ones for the same seed", async () => {
    const pattern = async () => {
      const file = new FaultFile(new MemoryFile(), new RandomDelays(new Prng(5)));
      const late: boolean[] = [];
      for (let i = 0; i < 40; i++) {
        const done = file.write(i, 1, Buffer.from([i]), 0);
        late.push(done !== undefined);
        await done;
      }
      return late;
    };
    const late = await pattern();
    expect(new Set(late)).toEqual(new Set([true, false]));
    expect(await pattern()).toEqual(late);
  });

  it("rejects a delayed call that fails", async () => {
    const file = new FaultFile(new MemoryFile(), new RandomDelays(new Prng(1), 2));
    file.fail({ kind: "sync", errno: "EIO" });
    await expect(file.sync()).rejects.toMatchObject({ code: "EIO" });
    await file.sync();
  });

  it("holds calls, or their answers, until they are let go", async () => {
    const memory = new MemoryFile();
    const calls = new HeldCalls("write");
    const file = new FaultFile(memory, calls);
    const first = file.write(0, 1, Buffer.from("a"), 0);
    const second = file.write(0, 1, Buffer.from("b"), 0);
    expect([calls.held, memory.size]).toEqual([2, 0]);
    expect(calls.releaseOne()).toBe(true);
    await first;
    expect(memory.content().toString()).toBe("a");
    calls.release();
    await second;
    expect(memory.content().toString()).toBe("b");
    const answers = new HeldCalls("write", true);
    file.delays = answers;
    const third = file.write(0, 1, Buffer.from("c"), 0);
    expect(memory.content().toString()).toBe("c");
    await Promise.resolve();
    answers.release();
    await third;
  });

  it("records what changed the file", () => {
    const file = new FaultFile(new MemoryFile());
    file.recording = true;
    file.writeVector(5, [Buffer.from("ab"), Buffer.from("c")]);
    file.truncate(3);
    file.sync();
    expect(file.recorded).toEqual([
      { kind: "write", offset: 5, bytes: 3, content: Buffer.from("abc") },
      { kind: "truncate", offset: 3, bytes: 0 },
      { kind: "sync", offset: 0, bytes: 0 },
    ]);
  });
});

import { execFileSync } from "node:child_process";
import { appendFileSync, openSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { BlockError } from "../base/errors.ts";
import { Prng } from "../base/prng.ts";
import { KiB, MiB, TiB } from "../base/units.ts";
import { Descriptor } from "./descriptor.ts";
import type { DiskFile, DiskFileParts } from "./disk-file.ts";
import { Errno } from "./host-error.ts";
import { openHostFile } from "./open-host-file.ts";
import { portableCalls } from "./portable-calls.ts";
import type { SystemCalls } from "./system-calls.ts";
import { diskFileOn } from "./testing/disk-file-on.ts";
import { BOTH_CALLS, LIBC, PLACES, temporaryDirectory } from "./testing/places.ts";

async function contentOf(file: DiskFile, offset: number, bytes: number): Promise<Buffer> {
  const buffer = Buffer.alloc(bytes + 16, 0xee);
  await file.read(offset, bytes, buffer, 8);
  // What stands around the asked range is nobody's business.
  expect(buffer.subarray(0, 8)).toEqual(Buffer.alloc(8, 0xee));
  expect(buffer.subarray(bytes + 8)).toEqual(Buffer.alloc(8, 0xee));
  return buffer.subarray(8, bytes + 8);
}

async function write(file: DiskFile, offset: number, content: Buffer): Promise<void> {
  await file.write(offset, content.length, content, 0);
}

describe.each(PLACES)("a host file in %s", (_place, parent) => {
  describe.each(BOTH_CALLS)("by %s", (_name, calls) => {
    let directory: ReturnType<typeof temporaryDirectory>;
    let count = 0;
    beforeAll(() => {
      directory = temporaryDirectory(parent);
    });
    afterAll(() => directory.remove());

    function fresh(content = Buffer.alloc(0)): DiskFile {
      const path = join(directory.path, `file-${count++}`);
      writeFileSync(path, content);
      return openHostFile(path, { writable: true, calls });
    }

    it("reads what was written, and zeros past the end", async () => {
      const file = fresh();
      await write(file, 3, Buffer.from("abcdef"));
      expect(file.size).toBe(9);
      expect((await contentOf(file, 0, 14)).toString()).toBe("\0\0\0abcdef\0\0\0\0\0");
      expect(await contentOf(file, 100, 5)).toEqual(Buffer.alloc(5));
      await file.close();
    });

    it("reads right what the page cache has lost, many at a time", async () => {
      const content = Buffer.alloc(MiB);
      new Prng(8).fill(content);
      const file = fresh(content);
      for (let round = 0; round < 3; round++) {
        // Clean pages only are dropped.
        execFileSync("sync", [file.path]);
        execFileSync("dd", [`if=${file.path}`, "iflag=nocache", "count=0", "status=none"]);
        const wanted = Array.from({ length: 200 }, (_, i) => ({
          offset: (i * 37 * 4096) % MiB,
          bytes: 4096,
        }));
        wanted.push({ offset: MiB - 100, bytes: 300 });
        const got = await Promise.all(wanted.map(({ offset, bytes }) => contentOf(file, offset, bytes)));
        const padded = Buffer.concat([content, Buffer.alloc(200)]);
        const wrong = wanted.filter(
          ({ offset, bytes }, i) => !got[i]!.equals(padded.subarray(offset, offset + bytes)),
        );
        expect(wrong).toEqual([]);
      }
      await file.close();
    });

    it("reads what another process added meanwhile", async () => {
      const file = fresh(Buffer.from("one"));
      appendFileSync(file.path, "two");
      expect((await contentOf(file, 0, 6)).toString()).toBe("onetwo");
      await file.close();
    });

    it("works at offsets of 2^40 bytes and more", async () => {
      const file = fresh();
      for (const offset of [2 ** 31 - 1, 2 ** 32 - 1, TiB - 1, 4 * TiB + 5]) {
        await write(file, offset, Buffer.from("here"));
        expect((await contentOf(file, offset - 2, 8)).toString()).toBe("\0\0here\0\0");
        expect(file.size).toBe(offset + 4);
      }
      await file.discard(TiB - 1, 2);
      expect(file.size).toBe(4 * TiB + 9);
      await file.truncate(TiB);
      expect(file.size).toBe(TiB);
      await file.close();
    });

    it("agrees with an array in random reads, writes, zeros, discards and truncations", async () => {
      const seed = 20_240_601;
      const prng = new Prng(seed);
      const file = fresh();
      const max = 1300 * KiB;
      const model = Buffer.alloc(max);
      let size = 0;
      for (let step = 0; step < 400; step++) {
        const offset = prng.below(max);
        const bytes = prng.chance(0.3) ? prng.below(max - offset) : prng.below(Math.min(9000, max - offset));
        const where = `seed ${seed}, step ${step}`;
        const action = prng.below(6);
        if (action === 0 || action === 5) {
          expect(
            (await contentOf(file, offset, bytes)).equals(model.subarray(offset, offset + bytes)),
            where,
          ).toBe(true);
        } else if (action === 1) {
          const content = prng.fill(Buffer.alloc(bytes));
          await write(file, offset, content);
          content.copy(model, offset);
          if (bytes > 0) size = Math.max(size, offset + bytes);
        } else if (action === 2) {
          const parts = [
            prng.fill(Buffer.alloc(bytes >> 1)),
            Buffer.alloc(0),
            prng.fill(Buffer.alloc(bytes - (bytes >> 1))),
          ];
          await file.writeVector(offset, parts);
          Buffer.concat(parts).copy(model, offset);
          if (bytes > 0) size = Math.max(size, offset + bytes);
        } else if (action === 3) {
          await file.writeZeroes(offset, bytes, { unmap: prng.chance(0.5), cheapOnly: false });
          model.fill(0, offset, offset + bytes);
          if (bytes > 0) size = Math.max(size, offset + bytes);
        } else if (prng.chance(0.2)) {
          await file.truncate(offset);
          model.fill(0, offset);
          size = offset;
        } else if (calls.complete) {
          await file.discard(offset, bytes);
          model.fill(0, offset, offset + bytes);
        }
        expect(file.size, where).toBe(size);
        expect(statSync(file.path).size, where).toBe(size);
      }
      expect((await contentOf(file, 0, max)).equals(model)).toBe(true);
      await file.sync();
      await file.close();
    });

    it("writes more buffers at once than one system call takes", async () => {
      const file = fresh();
      const parts = Array.from({ length: 2500 }, (_, index) => Buffer.from(`${String(index).padStart(6)};`));
      await file.writeVector(5, parts);
      expect((await contentOf(file, 5, 2500 * 7)).equals(Buffer.concat(parts))).toBe(true);
      const large = Array.from({ length: 1100 }, () => Buffer.alloc(4 * KiB, 0x61));
      await file.writeVector(0, large);
      expect(file.size).toBe(1100 * 4 * KiB);
      expect(await contentOf(file, 1099 * 4 * KiB, 4 * KiB)).toEqual(Buffer.alloc(4 * KiB, 0x61));
      await file.close();
    });

    it("reads and writes large pieces", async () => {
      const file = fresh();
      const content = new Prng(7).fill(Buffer.alloc(1 * MiB));
      const large = Buffer.concat([content, content, content, content, content]);
      await write(file, 1, large);
      expect((await contentOf(file, 1, large.length)).equals(large)).toBe(true);
      await file.close();
    });

    it("goes from writing to reading only and back, with its content", async () => {
      const file = fresh(Buffer.from("first"));
      await file.setWritable(false);
      expect(file.writable).toBe(false);
      expect((await contentOf(file, 0, 5)).toString()).toBe("first");
      await expect((async () => write(file, 0, Buffer.from("x")))()).rejects.toThrow(
        /Could not write 1 bytes at offset 0/,
      );
      await file.setWritable(true);
      await write(file, 0, Buffer.from("F"));
      expect((await contentOf(file, 0, 5)).toString()).toBe("First");
      await file.close();
    });

    it("answers with an error after it was closed, and touches no other file", async () => {
      const file = fresh(Buffer.from("content"));
      await file.close();
      // This one takes the number of the descriptor.
      const other = fresh(Buffer.from("other's"));
      await expect((async () => write(file, 0, Buffer.from("x")))()).rejects.toBeInstanceOf(BlockError);
      await expect((async () => write(file, 0, Buffer.alloc(5 * MiB)))()).rejects.toBeInstanceOf(BlockError);
      await expect((async () => file.read(0, 1, Buffer.alloc(1), 0))()).rejects.toBeInstanceOf(BlockError);
      await expect((async () => file.truncate(0))()).rejects.toBeInstanceOf(BlockError);
      expect((await contentOf(other, 0, 7)).toString()).toBe("other's");
      await other.close();
    });
  });
});

describe("zeros and holes on the host", () => {
  const directories = PLACES.map(([name, parent]) => [name, temporaryDirectory(parent)] as const);
  afterAll(() => {
    for (const [, directory] of directories) directory.remove();
  });

  describe.skipIf(LIBC === undefined).each(directories)("in %s", (_name, directory) => {
    function filled(name: string): DiskFile {
      const path = join(directory.path, name);
      writeFileSync(path, Buffer.alloc(1 * MiB, 1));
      return openHostFile(path, { writable: true, calls: LIBC! });
    }

    it("gives space back for a hole and keeps it otherwise", async () => {
      const file = filled("holes");
      expect(file.allocatedBytes()).toBe(1 * MiB);
      await file.writeZeroes(0, 256 * KiB, { unmap: true, cheapOnly: true });
      expect(file.allocatedBytes()).toBe(768 * KiB);
      await file.writeZeroes(256 * KiB, 256 * KiB, { unmap: false, cheapOnly: true });
      expect(file.allocatedBytes()).toBe(768 * KiB);
      await file.discard(512 * KiB, 10 * MiB);
      expect(file.size).toBe(1 * MiB);
      expect((await contentOf(file, 0, 1 * MiB)).equals(Buffer.alloc(1 * MiB))).toBe(true);
      await file.close();
    });

    it("grows by zeros: a hole, or space set aside", async () => {
      const file = filled("growth");
      await file.writeZeroes(512 * KiB, 1 * MiB, { unmap: true, cheapOnly: true });
      expect(file.size).toBe(1536 * KiB);
      expect(file.allocatedBytes()).toBe(512 * KiB);
      await file.writeZeroes(1536 * KiB, 512 * KiB, { unmap: false, cheapOnly: true });
      expect(file.size).toBe(2 * MiB);
      expect(file.allocatedBytes()).toBe(1 * MiB);
      expect(await contentOf(file, 512 * KiB - 1, 2)).toEqual(Buffer.from([1, 0]));
      await file.close();
    });

    it("tells data from holes, also after it made a hole in data it had told of", async () => {
      const file = filled("extents");
      await file.truncate(4 * MiB);
      await write(file, 2 * MiB, Buffer.alloc(64 * KiB, 2));
      expect(file.extentAt(0)).toEqual({ bytes: 1 * MiB, data: true });
      expect(file.extentAt(4096)).toEqual({ bytes: 1 * MiB - 4096, data: true });
      expect(file.extentAt(1 * MiB)).toEqual({ bytes: 1 * MiB, data: false });
      expect(file.extentAt(2 * MiB + 64 * KiB).data).toBe(false);
      expect(file.extentAt(5 * MiB).data).toBe(false);
      await file.discard(0, 64 * KiB);
      expect(file.extentAt(0)).toEqual({ bytes: 64 * KiB, data: false });
      await file.close();
    });

    it("zeroes a range of 4 TiB in pieces without stopping the loop", async () => {
      const file = filled("huge");
      let turns = 0;
      let going = true;
      const tick = () => {
        turns++;
        if (going) setImmediate(tick);
      };
      setImmediate(tick);
      await file.writeZeroes(0, 4 * TiB, { unmap: true, cheapOnly: true });
      going = false;
      expect(file.size).toBe(4 * TiB);
      expect(file.allocatedBytes()).toBe(0);
      expect(turns).toBeGreaterThan(10);
      await file.close();
    });
  });

  it("writes zeros as data where the host cannot do better, unless only that was asked for", async () => {
    const path = join(directories[0]![1].path, "portable");
    writeFileSync(path, Buffer.alloc(1 * MiB, 1));
    const file = openHostFile(path, { writable: true, calls: portableCalls });
    await expect(
      (async () => file.writeZeroes(0, 4096, { unmap: true, cheapOnly: true }))(),
    ).rejects.toMatchObject({
      code: "ENOTSUP",
    });
    expect(await contentOf(file, 0, 1)).toEqual(Buffer.from([1]));
    await file.writeZeroes(1, 900 * KiB, { unmap: true, cheapOnly: false });
    expect(await contentOf(file, 0, 3)).toEqual(Buffer.from([1, 0, 0]));
    expect((await contentOf(file, 900 * KiB, 2)).toString("hex")).toBe("0001");
    await file.discard(900 * KiB, 8192);
    expect(await contentOf(file, 1000 * KiB, 1)).toEqual(Buffer.from([1]));
    expect(file.extentAt(5)).toEqual({ bytes: 1 * MiB - 5, data: true });
    await file.close();
  });
});

describe("a difficult host", () => {
  const directory = temporaryDirectory();
  afterAll(() => directory.remove());

  /** Does some of the work only, and is interrupted now and then. */
  class StingyDescriptor extends Descriptor {
    readonly #prng = new Prng(99);

    #some(bytes: number): number {
      return this.#prng.between(1, Math.min(bytes, 3000));
    }

    override read(offset: number, bytes: number, buffer: Buffer, at: number): Promise<number> {
      if (this.#prng.chance(0.2)) return Promise.resolve(-Errno.EINTR);
      return super.read(offset, this.#some(bytes), buffer, at);
    }

    override write(offset: number, bytes: number, buffer: Buffer, at: number): Promise<number> {
      if (this.#prng.chance(0.2)) return Promise.resolve(-Errno.EINTR);
      return super.write(offset, this.#some(bytes), buffer, at);
    }

    override writev(offset: number, parts: readonly Buffer[]): Promise<number> {
      if (this.#prng.chance(0.2)) return Promise.resolve(-Errno.EINTR);
      const first = parts[0]!;
      return super.write(offset, this.#some(first.length), first, 0);
    }
  }

  function opened(name: string, calls: SystemCalls, parts: Partial<DiskFileParts> = {}): DiskFile {
    const path = join(directory.path, name);
    return diskFileOn(path, { calls, descriptor: new StingyDescriptor(openSync(path, "w+")), ...parts });
  }

  it("finishes short and interrupted operations of the pool", async () => {
    const neverInline: SystemCalls = {
      ...portableCalls,
      pwrite: () => -Errno.EIO,
      pwritev: () => -Errno.EIO,
    };
    const file = opened("stingy", neverInline);
    const content = new Prng(3).fill(Buffer.alloc(1 * MiB + 1));
    await write(file, 10, content);
    expect((await contentOf(file, 10, content.length)).equals(content)).toBe(true);
    const parts = [content.subarray(0, 700 * KiB), content.subarray(700 * KiB), content.subarray(0, 1)];
    await file.writeVector(5, parts);
    expect((await contentOf(file, 5, content.length + 1)).equals(Buffer.concat(parts))).toBe(true);
    await file.close();
  });

  it("leaves small writes to the pool where a write may wait for others than this host", async () => {
    const neverInline: SystemCalls = {
      ...portableCalls,
      pwrite: () => -Errno.EIO,
      pwritev: () => -Errno.EIO,
    };
    const file = opened("elsewhere", neverInline, { cachesWrites: false });
    await write(file, 0, Buffer.from("one"));
    await file.writeVector(3, [Buffer.from("t"), Buffer.from("wo")]);
    expect((await contentOf(file, 0, 6)).toString()).toBe("onetwo");
    expect(file.counters).toMatchObject({ inlineWrites: 0, pooledWrites: 2 });
    await file.close();
  });

  it("finishes short inline operations", async () => {
    const few = (bytes: number) => Math.max(1, bytes >> 1);
    const calls: SystemCalls = {
      ...portableCalls,
      preadNoWait: (fd, offset, bytes, buffer, at) => portableCalls.pread(fd, offset, few(bytes), buffer, at),
      pwrite: (fd, offset, bytes, buffer, at) => portableCalls.pwrite(fd, offset, few(bytes), buffer, at),
      pwritev: (fd, offset, parts, skip) =>
        portableCalls.pwritev(fd, offset, [Buffer.concat(parts).subarray(skip, skip + 3)], 0),
    };
    const file = opened("short", calls);
    expect(file.write(0, 11, Buffer.from("hello world"), 0)).toBeUndefined();
    expect(file.writeVector(11, [Buffer.from("!!"), Buffer.from("????")])).toBeUndefined();
    const buffer = Buffer.alloc(20, 1);
    expect(file.read(0, 20, buffer, 0)).toBeUndefined();
    expect(buffer.toString()).toBe("hello world!!????\0\0\0");
    await file.close();
  });

  it("takes from the pool what the page cache lacks, and what it has inline", async () => {
    const calls: SystemCalls = {
      ...portableCalls,
      preadNoWait: (fd, offset, bytes, buffer, at) =>
        offset >= 4
          ? -Errno.EAGAIN
          : portableCalls.pread(fd, offset, Math.min(bytes, 4 - offset), buffer, at),
    };
    const file = opened("cold", calls);
    await write(file, 0, Buffer.from("warmcold"));
    expect((await contentOf(file, 0, 8)).toString()).toBe("warmcold");
    expect(file.counters).toMatchObject({ inlineReads: 0, pooledReads: 1 });
    expect((await contentOf(file, 0, 4)).toString()).toBe("warm");
    expect(file.counters).toMatchObject({ inlineReads: 1, pooledReads: 1 });
    await file.close();
  });

  it("asks once only whether the host can tell what is cached", async () => {
    let asked = 0;
    const calls: SystemCalls = {
      ...portableCalls,
      preadNoWait: () => {
        asked++;
        return -Errno.EOPNOTSUPP;
      },
    };
    const file = opened("unknown", calls);
    await contentOf(file, 0, 8);
    await contentOf(file, 0, 8);
    expect(asked).toBe(1);
    await file.close();
  });

  it("names errno, path, offset and what was tried", async () => {
    const calls: SystemCalls = {
      ...portableCalls,
      preadNoWait: () => -Errno.EIO,
      pwrite: () => -Errno.ENOSPC,
    };
    const file = opened("failing", calls);
    expect(() => file.read(4096, 512, Buffer.alloc(512), 0)).toThrow(
      `Could not read 512 bytes at offset 4096 of '${file.path}': Input/output error`,
    );
    try {
      await file.write(0, 4, Buffer.alloc(4), 0);
      expect.unreachable();
    } catch (error) {
      expect(error).toMatchObject({ code: "ENOSPC" });
      expect((error as Error).message).toBe(
        `Could not write 4 bytes at offset 0 of '${file.path}': No space left on device`,
      );
    }
    await file.close();
  });

  it("hands up a real error of a hole punch, and forgives a host that has none", async () => {
    let errno: number = Errno.EIO;
    const file = opened("punch", { ...portableCalls, complete: true, fallocate: () => -errno });
    await write(file, 0, Buffer.alloc(8192, 1));
    expect(() => file.discard(0, 4096)).toThrow(
      /Could not discard 4096 bytes at offset 0.*Input\/output error/,
    );
    errno = Errno.EOPNOTSUPP;
    expect(file.discard(0, 4096)).toBeUndefined();
    // Remembered: the host is not asked any more.
    errno = Errno.EIO;
    expect(file.discard(0, 4096)).toBeUndefined();
    expect(await contentOf(file, 0, 1)).toEqual(Buffer.from([1]));
    await file.close();
  });

  it("closes only when what is in flight has ended", async () => {
    const file = opened("closing", portableCalls);
    const content = Buffer.alloc(3 * MiB, 5);
    const writing = file.write(0, content.length, content, 0);
    await file.close();
    await writing;
    expect(statSync(file.path).size).toBe(3 * MiB);
  });
});

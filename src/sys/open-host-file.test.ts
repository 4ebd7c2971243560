import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, symlinkSync, truncateSync, unlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { MiB } from "../base/units.ts";
import { createHostFile } from "./create-host-file.ts";
import { openHostFile } from "./open-host-file.ts";
import { portableCalls } from "./portable-calls.ts";
import { BOTH_CALLS, hasProgram, LIBC, temporaryDirectory } from "./testing/places.ts";
import { readWholeFile, writeWholeFile } from "./whole-file.ts";

const directory = temporaryDirectory();
afterAll(() => directory.remove());
const inside = (name: string) => join(directory.path, name);

describe("opening", () => {
  it("says what is missing or of the wrong kind, in QEMU's words", () => {
    const open = (path: string) => () => openHostFile(path, { writable: true });
    expect(open(inside("nothing"))).toThrow(
      `Could not open '${inside("nothing")}': No such file or directory`,
    );
    mkdirSync(inside("directory"));
    expect(open(inside("directory"))).toThrow(`Could not open '${inside("directory")}': Is a directory`);
    writeFileSync(inside("plain"), "");
    expect(open(inside("plain/below"))).toThrow(/Could not open '.*': Not a directory/);
    symlinkSync(inside("loop"), inside("loop"));
    expect(open(inside("loop"))).toThrow(/Too many levels of symbolic links/);
    expect(open("/dev/null")).toThrow("'file' driver requires '/dev/null' to be a regular file");
  });

  it("refuses a FIFO at once instead of waiting for its other end", () => {
    execFileSync("mkfifo", [inside("fifo")]);
    for (const writable of [true, false]) {
      expect(() => openHostFile(inside("fifo"), { writable })).toThrow(/to be a regular file/);
    }
  });

  it("creates where it is told to, and exclusively where there must be nothing", async () => {
    const file = openHostFile(inside("new"), { writable: true, create: true });
    await file.write(0, 3, Buffer.from("old"), 0);
    await file.close();
    const again = openHostFile(inside("new"), { writable: true, create: true });
    expect(again.size).toBe(3);
    await again.close();
    expect(() => openHostFile(inside("new"), { writable: true, create: "exclusive" })).toThrow(
      expect.objectContaining({ code: "EEXIST" }),
    );
  });

  it("reopens the file itself when another one stands at its path", async () => {
    writeFileSync(inside("replaced"), "mine");
    const file = openHostFile(inside("replaced"), { writable: false });
    unlinkSync(inside("replaced"));
    writeFileSync(inside("replaced"), "another's");
    await file.setWritable(true);
    await file.write(0, 4, Buffer.from("MINE"), 0);
    expect(readFileSync(inside("replaced"), "utf8")).toBe("another's");
    const buffer = Buffer.alloc(4);
    await file.read(0, 4, buffer, 0);
    expect(buffer.toString()).toBe("MINE");
    await file.close();
  });
});

/** A loop device over a file of 1 MiB, if this host lets us have one. */
const device: string | undefined = (() => {
  if (process.getuid?.() !== 0 || !hasProgram("losetup")) return undefined;
  writeFileSync(inside("device.img"), "");
  truncateSync(inside("device.img"), 1 * MiB);
  const made = spawnSync("losetup", ["--find", "--show", inside("device.img")], { encoding: "utf8" });
  return made.status === 0 ? made.stdout.trim() : undefined;
})();
afterAll(() => {
  if (device !== undefined) spawnSync("losetup", ["--detach", device]);
});

describe.skipIf(device === undefined).each(BOTH_CALLS)("a block device by %s", (_name, calls) => {
  it("has its length, and reads, writes and zeroes like a file", async () => {
    const file = openHostFile(device!, { writable: true, calls });
    expect(file.size).toBe(1 * MiB);
    await file.write(4096, 6, Buffer.from("device"), 0);
    await file.writeZeroes(8192, 4096, { unmap: false, cheapOnly: false });
    await file.writeZeroes(12288 + 1, 100, { unmap: true, cheapOnly: false });
    await file.discard(65536, 4096);
    await file.discard(65536 + 1, 700);
    await file.sync();
    const buffer = Buffer.alloc(6);
    await file.read(4096, 6, buffer, 0);
    expect(buffer.toString()).toBe("device");
    await expect((async () => file.write(1 * MiB, 1, buffer, 0))()).rejects.toMatchObject({ code: "ENOSPC" });
    expect(file.size).toBe(1 * MiB);
    await file.close();
  });
});

describe("creating", () => {
  it.each(["off", "falloc", "full"] as const)("makes zeros with preallocation %s", async (preallocation) => {
    const possible = preallocation !== "falloc" || LIBC !== undefined;
    if (!possible) return;
    const path = inside(`created-${preallocation}`);
    writeFileSync(path, Buffer.alloc(2 * MiB, 1));
    const file = await createHostFile(path, { size: 1 * MiB + 5, preallocation });
    expect(file.size).toBe(1 * MiB + 5);
    expect(file.allocatedBytes() >= 1 * MiB).toBe(preallocation !== "off");
    await file.close();
    expect(readFileSync(path).equals(Buffer.alloc(1 * MiB + 5))).toBe(true);
  });

  it.skipIf(LIBC === undefined)("leaves an image alone that is in use", async () => {
    const path = inside("in-use");
    writeFileSync(path, "precious");
    const user = openHostFile(path, { writable: true });
    user.lock({ write: true, shareWrite: false });
    await expect(createHostFile(path, { size: 0 })).rejects.toMatchObject({ code: "IMAGE_LOCKED" });
    expect(readFileSync(path, "utf8")).toBe("precious");
    await user.close();
  });

  it("cannot set space aside without fallocate, and says so", async () => {
    await expect(
      createHostFile(inside("no-falloc"), { size: 4096, preallocation: "falloc", calls: portableCalls }),
    ).rejects.toMatchObject({ code: "ENOTSUP" });
  });
});

describe("whole files", () => {
  it("reads up to a limit", () => {
    writeFileSync(inside("whole"), "12345");
    expect(readWholeFile(inside("whole"), 5).toString()).toBe("12345");
    expect(() => readWholeFile(inside("whole"), 4)).toThrow(expect.objectContaining({ code: "EOVERFLOW" }));
    const long = Buffer.from(Array.from({ length: 150_000 }, (_, index) => index % 251));
    writeFileSync(inside("long"), long);
    expect(readWholeFile(inside("long"), long.length).equals(long)).toBe(true);
    expect(() => readWholeFile(inside("long"), long.length - 1)).toThrow("more than 149999 bytes");
    expect(() => readWholeFile(inside("none"), 4)).toThrow(/Could not read '.*none': No such file/);
    expect(() => readWholeFile(directory.path, 4)).toThrow(/Is a directory/);
  });

  it("replaces a file as a whole and leaves nothing aside", () => {
    writeWholeFile(inside("pid"), "1\n");
    writeWholeFile(inside("pid"), "2\n");
    expect(readFileSync(inside("pid"), "utf8")).toBe("2\n");
    expect(() => writeWholeFile(inside("none/pid"), "3\n")).toThrow(/Could not write '.*': No such file/);
  });
});

/** A file system of 1 MiB, if this host lets us mount one. */
const small: string | undefined = (() => {
  if (process.getuid?.() !== 0) return undefined;
  mkdirSync(inside("small"));
  const mounted = spawnSync("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", inside("small")]);
  return mounted.status === 0 ? inside("small") : undefined;
})();
afterAll(() => {
  // Lazily: a test that failed has files open there.
  if (small !== undefined) spawnSync("umount", ["--lazy", small]);
});

describe.skipIf(small === undefined).each(BOTH_CALLS)("a full file system by %s", (_name, calls) => {
  it("says ENOSPC, keeps what was written before and goes on when there is space again", async () => {
    const filler = openHostFile(join(small!, "filler"), { writable: true, create: true, calls });
    await filler.write(0, 512 * 1024, Buffer.alloc(512 * 1024, 1), 0);
    const file = openHostFile(join(small!, "disk"), { writable: true, create: true, calls });
    await file.write(0, 4096, Buffer.alloc(4096, 2), 0);
    const much = Buffer.alloc(6 * MiB, 3);
    for (const bytes of [1 * MiB, 6 * MiB]) {
      await expect((async () => file.write(4096, bytes, much, 0))()).rejects.toMatchObject({
        code: "ENOSPC",
      });
      await expect((async () => file.writeVector(4096, [much.subarray(0, bytes)]))()).rejects.toMatchObject({
        code: "ENOSPC",
        message: `Could not write ${bytes} bytes at offset 4096 of '${file.path}': No space left on device`,
      });
    }
    const keep = { unmap: false, cheapOnly: false };
    await expect((async () => file.writeZeroes(0, 2 * MiB, keep))()).rejects.toMatchObject({
      code: "ENOSPC",
    });
    // The failed calls may have made the file longer; its size is known all the same.
    const path = file.path;
    expect(file.size).toBe(readFileSync(path).length);
    await filler.truncate(0);
    await file.truncate(4096);
    await file.write(4096, 400 * 1024, much, 0);
    const buffer = Buffer.alloc(1);
    await file.read(4096 + 400 * 1024 - 1, 1, buffer, 0);
    expect(buffer[0]).toBe(3);
    await file.close();
    await filler.close();
    unlinkSync(path);
  });
});

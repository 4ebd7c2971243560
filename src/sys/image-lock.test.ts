import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { BlockError } from "../base/errors.ts";
import type { DiskFile } from "./disk-file.ts";
import { Errno } from "./host-error.ts";
import { ImageLock } from "./image-lock.ts";
import { openHostFile } from "./open-host-file.ts";
import { portableCalls } from "./portable-calls.ts";
import type { SystemCalls } from "./system-calls.ts";
import { hasProgram, LIBC, temporaryDirectory } from "./testing/places.ts";

const directory = temporaryDirectory();
afterAll(() => directory.remove());
let count = 0;

function image(bytes = 65536): string {
  const path = join(directory.path, `image-${count++}.raw`);
  writeFileSync(path, Buffer.alloc(bytes));
  return path;
}

function open(path: string, writable: boolean): DiskFile {
  return openHostFile(path, { writable, calls: LIBC! });
}

/** The bytes of the file that are locked, in order, as the kernel tells. */
function lockedBytes(path: string): number[] {
  const inode = statSync(path).ino;
  const bytes = new Set<number>();
  for (const line of readFileSync("/proc/locks", "utf8").split("\n")) {
    const match = /OFDLCK\s+ADVISORY\s+READ\s+\S+\s+\S+:(\d+) (\d+) (\d+)/.exec(line);
    if (match === null || Number(match[1]) !== inode) continue;
    for (let byte = Number(match[2]); byte <= Number(match[3]); byte++) bytes.add(byte);
  }
  return [...bytes].sort((a, b) => a - b);
}

const READER = [100, 201, 203];
const WRITER = [100, 101, 103, 201, 203];

describe.skipIf(LIBC === undefined)("image locks", () => {
  it("holds the bytes that QEMU holds", async () => {
    const path = image();
    const file = open(path, true);
    file.lock({ write: true, shareWrite: false });
    expect(lockedBytes(path)).toEqual(WRITER);
    file.lock({ write: true, shareWrite: true });
    expect(lockedBytes(path)).toEqual([100, 101, 103]);
    file.lock({ write: false, shareWrite: false });
    expect(lockedBytes(path)).toEqual(READER);
    await file.close();
    expect(lockedBytes(path)).toEqual([]);
  });

  it("lets readers share and refuses a writer beside them, and the reverse", async () => {
    const path = image();
    const first = open(path, false);
    const second = open(path, false);
    first.lock({ write: false, shareWrite: false });
    second.lock({ write: false, shareWrite: false });
    const writer = open(path, true);
    const refusal = `Failed to get "write" lock\nIs another process using the image [${path}]?`;
    expect(() => writer.lock({ write: true, shareWrite: false })).toThrow(
      new BlockError("IMAGE_LOCKED", refusal),
    );
    expect(lockedBytes(path)).toEqual(READER);
    await first.close();
    await second.close();
    writer.lock({ write: true, shareWrite: false });
    const late = open(path, false);
    expect(() => late.lock({ write: false, shareWrite: false })).toThrow(
      /^Failed to get shared "write" lock\n/,
    );
    late.lock({ write: false, shareWrite: true });
    await late.close();
    await writer.close();
  });

  it("lets two writers in when both share writing", async () => {
    const path = image();
    const first = open(path, true);
    const second = open(path, true);
    first.lock({ write: true, shareWrite: true });
    second.lock({ write: true, shareWrite: true });
    await first.close();
    await second.close();
  });

  it("follows the file from reading only to writing and back", async () => {
    const path = image();
    const file = open(path, false);
    file.lock({ write: false, shareWrite: false });
    await file.setWritable(true);
    expect(lockedBytes(path)).toEqual(WRITER);
    await file.write(0, 3, Buffer.from("abc"), 0);
    await file.setWritable(false);
    expect(lockedBytes(path)).toEqual(READER);
    await file.close();
  });

  it("stays read-only and locked as it was when another one reads the image too", async () => {
    const path = image();
    const file = open(path, false);
    const other = open(path, false);
    file.lock({ write: false, shareWrite: false });
    other.lock({ write: false, shareWrite: false });
    await expect(file.setWritable(true)).rejects.toMatchObject({ code: "IMAGE_LOCKED" });
    expect(file.writable).toBe(false);
    await other.close();
    expect(lockedBytes(path)).toEqual(READER);
    await file.setWritable(true);
    await file.close();
  });

  it("takes nothing when locking is off or the host has no locks", async () => {
    const path = image();
    const off = openHostFile(path, { writable: true, calls: LIBC!, locking: false });
    off.lock({ write: true, shareWrite: false });
    const portable = openHostFile(path, { writable: true, calls: portableCalls });
    portable.lock({ write: true, shareWrite: false });
    expect(lockedBytes(path)).toEqual([]);
    await off.close();
    await portable.close();
  });
});

describe("a lock call that fails", () => {
  it("gives back what was taken before it, and says what failed", () => {
    for (let failing = 0; failing < 5; failing++) {
      const held = new Set<number>();
      let taken = 0;
      const calls: SystemCalls = {
        ...portableCalls,
        lockByte: (_fd, byte, take) => {
          if (take && taken++ === failing) return -Errno.ENOLCK;
          if (take) held.add(byte);
          else held.delete(byte);
          return 0;
        },
        testByte: () => 0,
      };
      const lock = new ImageLock(calls, "/image");
      expect(() => lock.change(3, { write: true, shareWrite: false })).toThrow(
        /^Failed to lock byte \d+ of '\/image': No locks available$/,
      );
      expect([...held]).toEqual([]);
      expect(lock.request).toBeUndefined();
    }
  });
});

const qemuPresent = LIBC !== undefined && hasProgram("qemu-io") && hasProgram("qemu-img");

/** A process of QEMU that has the image open until it is told to go. */
async function holdByQemu(path: string, ...options: string[]): Promise<{ release(): Promise<void> }> {
  const child: ChildProcess = spawn("qemu-io", [...options, path], { stdio: ["pipe", "pipe", "inherit"] });
  // It prompts, once it has opened the image.
  await new Promise<void>((resolve, reject) => {
    child.stdout!.once("data", () => resolve());
    child.once("exit", () => reject(new Error("qemu-io did not open the image")));
  });
  return {
    release: () =>
      new Promise((resolve) => {
        child.removeAllListeners("exit");
        child.once("exit", () => resolve());
        child.stdin!.end("quit\n");
      }),
  };
}

function qemuIo(path: string, ...options: string[]): string {
  const done = spawnSync("qemu-io", [...options, "-c", "read 0 512", path], { encoding: "utf8" });
  return done.stdout + done.stderr;
}

describe.skipIf(!qemuPresent)("image locks between QEMU and us", () => {
  it.each(["raw", "qcow2"])("QEMU refuses a %s image that we write", async (format) => {
    const path = join(directory.path, `ours.${format}`);
    execFileSync("qemu-img", ["create", "-q", "-f", format, path, "1M"]);
    const file = open(path, true);
    file.lock({ write: true, shareWrite: false });
    expect(qemuIo(path, "-f", format)).toContain(
      `Failed to get "write" lock\nIs another process using the image [${path}]?`,
    );
    // QEMU's readers of raw images share writing, so qemu-img info of one goes through.
    const info = spawnSync("qemu-img", ["info", path], { encoding: "utf8" });
    expect(info.status).toBe(format === "raw" ? 0 : 1);
    if (format !== "raw") expect(info.stderr).toContain('Failed to get shared "write" lock');
    await file.close();
    expect(qemuIo(path, "-f", format)).toContain("read 512/512 bytes");
  });

  it.each(["raw", "qcow2"])("we refuse a %s image that QEMU writes", async (format) => {
    const path = join(directory.path, `theirs.${format}`);
    execFileSync("qemu-img", ["create", "-q", "-f", format, path, "1M"]);
    const qemu = await holdByQemu(path, "-f", format);
    const reader = open(path, false);
    expect(() => reader.lock({ write: false, shareWrite: false })).toThrow(
      /^Failed to get shared "write" lock\nIs another/,
    );
    const writer = open(path, true);
    // A raw image is shared by QEMU itself, so what stands in the way of ours differs.
    expect(() => writer.lock({ write: true, shareWrite: false })).toThrow(
      /^Failed to get (shared )?"write" lock\nIs another/,
    );
    await qemu.release();
    writer.lock({ write: true, shareWrite: false });
    await reader.close();
    await writer.close();
  });

  it("QEMU and we read one image together, and nobody writes it meanwhile", async () => {
    const path = join(directory.path, "shared.qcow2");
    execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", path, "1M"]);
    const file = open(path, false);
    file.lock({ write: false, shareWrite: false });
    expect(qemuIo(path, "-r", "-f", "qcow2")).toContain("read 512/512 bytes");
    expect(qemuIo(path, "-f", "qcow2")).toContain('Failed to get "write" lock');
    const qemu = await holdByQemu(path, "-r", "-f", "qcow2");
    const second = open(path, false);
    second.lock({ write: false, shareWrite: false });
    await second.close();
    await expect(file.setWritable(true)).rejects.toThrow(/^Failed to get "write" lock/);
    await qemu.release();
    await file.setWritable(true);
    await file.close();
  });
});

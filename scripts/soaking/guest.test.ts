import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { MemoryBackend } from "../../nbd/testing/memory-backend.ts";
import { cleanUp, startServer } from "../../nbd/testing/peer.ts";
import { formatNbdUri } from "../../nbd/uri.ts";
import { BlockError } from "../../src/base/errors.ts";
import { Prng } from "../../src/base/prng.ts";
import { MiB } from "../../src/base/units.ts";
import { Guest } from "./guest.ts";

afterEach(cleanUp);

/**
 * A guest that has worked a little, or was stopped by something wrong, and rests. `meanwhile` is done before
 * its first request.
 */
async function restedGuest(meanwhile: (guest: Guest, disk: MemoryBackend) => void = () => {}) {
  const disk = new MemoryBackend({ size: MiB });
  const { server, path } = await startServer();
  server.addExport({ name: "disk", backend: disk });
  const wrong: string[] = [];
  let stop = () => {};
  const stopped = new Promise<void>((resolve) => {
    stop = resolve;
  });
  const guest = new Guest({
    name: "the guest",
    sectorsMax: 2048,
    prng: new Prng(5),
    wrong: (what) => {
      wrong.push(what);
      stop();
    },
  });
  await guest.connect(formatNbdUri({ address: { path }, exportName: "disk" }));
  meanwhile(guest, disk);
  const written = guest.afterWrites(10);
  guest.work();
  await Promise.race([written, stopped]);
  await guest.rest();
  return { guest, disk, wrong };
}

const EIO = new BlockError("EIO", "a bad sector");

describe("the guest of a soak", () => {
  it("finds its disk as it has left it", async () => {
    const { guest, disk, wrong } = await restedGuest();
    await guest.checkDisk();
    expect(wrong).toEqual([]);
    expect(disk.bytes.some((byte) => byte !== 0)).toBe(true);
    await guest.disconnect();
  });

  it("notices one wrong byte, and an old sector", async () => {
    const { guest, disk } = await restedGuest();
    const at = disk.bytes.findIndex((byte) => byte !== 0);
    const sector = Math.floor(at / 512);
    disk.bytes[at]! ^= 1;
    await expect(guest.checkDisk()).rejects.toThrow(new RegExp(`^sector ${sector} of the disk holds`));
    disk.bytes.fill(0, sector * 512, sector * 512 + 512);
    await expect(guest.checkDisk()).rejects.toThrow(/holds zeros instead of write \d+$/);
    await guest.disconnect();
  });

  it("notices that the end of its disk is gone, or of a copy of it", async () => {
    const { guest, disk } = await restedGuest();
    const directory = mkdtempSync(join(tmpdir(), "soaked-guest-"));
    try {
      writeFileSync(join(directory, "copy"), disk.bytes);
      expect(guest.checkFile(join(directory, "copy"))).toBeGreaterThanOrEqual(0);
      writeFileSync(join(directory, "copy"), disk.bytes.subarray(0, MiB - 512));
      expect(() => guest.checkFile(join(directory, "copy"))).toThrow("2047 sectors only instead of 2048");
    } finally {
      rmSync(directory, { recursive: true });
    }
    await guest.disconnect();
    const { server, path } = await startServer();
    server.addExport({ name: "short", backend: new MemoryBackend({ size: MiB / 2 }) });
    const uri = formatNbdUri({ address: { path }, exportName: "short" });
    await expect(guest.connect(uri)).rejects.toThrow("the disk has 1024 sectors only instead of 2048");
  });

  it("forgives errors that were announced, and no others", async () => {
    const failing = (_guest: Guest, disk: MemoryBackend) => {
      disk.failNext = { operation: "write", error: EIO };
    };
    expect((await restedGuest(failing)).wrong).toEqual(["the guest: WRITE failed: a bad sector"]);
    const announced = await restedGuest((guest, disk) => {
      guest.allowErrors(1);
      failing(guest, disk);
    });
    expect(announced.wrong).toEqual([]);
    expect(announced.guest.takeFigures().failed).toBe(1);
    await announced.guest.checkDisk();
  });
});

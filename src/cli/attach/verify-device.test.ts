import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { NbdServer } from "../../../nbd/server.ts";
import { MemoryBackend } from "../../../nbd/testing/memory-backend.ts";
import { silentLogger } from "../../base/logger.ts";
import type { NbdHost } from "../../sys/nbd-device.ts";
import type { DevicePlan } from "./kernel-driver.ts";
import { isEqual, piecesOf, verifyDevice, verifyUsedDevice } from "./verify-device.ts";

const SIZE = 300_000;
/** Whole sectors. */
const DEVICE_SIZE = 585 * 512;

let directory: string;
let host: NbdHost;
let server: NbdServer;
let plan: DevicePlan;
let content: Buffer;

beforeEach(async () => {
  directory = mkdtempSync(path.join(tmpdir(), "strata-verify-"));
  host = { sysBlock: path.join(directory, "sys"), proc: directory, dev: directory };
  content = Buffer.from(Array.from({ length: SIZE }, (_, at) => (at * 7 + (at >> 8)) & 0xff));
  const backend = new MemoryBackend({ size: SIZE });
  await backend.write(0, SIZE, content, 0, false);
  server = new NbdServer({ logger: silentLogger });
  server.addExport({ name: "disk", backend });
  const address = { path: path.join(directory, "socket") };
  await server.listen(address);
  plan = {
    target: { address, exportName: "disk" },
    uri: "nbd://right",
    index: undefined,
    connections: 1,
    readOnly: false,
    timeoutSeconds: undefined,
    deadSeconds: undefined,
  };
});

afterEach(async () => {
  await server.close();
  rmSync(directory, { recursive: true });
});

/** The kernel's device, as files. */
function device(bytes: Buffer, says: Readonly<Record<string, string>> = {}): void {
  const sys = path.join(host.sysBlock, "nbd0");
  mkdirSync(sys, { recursive: true });
  const told = { size: String(DEVICE_SIZE / 512), ro: "0", pid: "1", backend: "nbd://right", ...says };
  for (const [name, text] of Object.entries(told)) writeFileSync(path.join(sys, name), `${text}\n`);
  writeFileSync(path.join(directory, "nbd0"), bytes);
}

describe("a device is the right one", () => {
  it("when the kernel and its bytes say so", async () => {
    device(content.subarray(0, DEVICE_SIZE));
    expect(await verifyDevice(host, 0, plan)).toEqual({ size: DEVICE_SIZE, readOnly: false, bytes: "equal" });
  });

  it("not when a byte at its end is another", async () => {
    const other = Buffer.from(content.subarray(0, DEVICE_SIZE));
    other[DEVICE_SIZE - 1]! ^= 1;
    device(other);
    await expect(verifyDevice(host, 0, plan)).rejects.toThrow(
      "/dev/nbd0 is not the disk that was asked for: its bytes are not those of nbd://right",
    );
    // In use, its page cache may be newer.
    expect(await verifyUsedDevice(host, 0, plan)).toMatchObject({ bytes: "unknown" });
  });

  it("not when the kernel says something else", async () => {
    const bytes = content.subarray(0, DEVICE_SIZE);
    device(bytes, { size: "586" });
    await expect(verifyDevice(host, 0, plan)).rejects.toThrow(
      `it has 300032 bytes, and nbd://right has ${DEVICE_SIZE}`,
    );
    device(bytes, { backend: "nbd://wrong" });
    await expect(verifyDevice(host, 0, plan)).rejects.toThrow("the kernel says that it shows nbd://wrong");
    device(bytes);
    await expect(verifyDevice(host, 0, { ...plan, readOnly: true })).rejects.toThrow(
      "it can be written to, though it must not",
    );
    await expect(verifyDevice(host, 1, plan)).rejects.toThrow("the kernel does not show it as connected");
  });
});

describe("bytes are compared", () => {
  const bytes = (text: string) => Promise.resolve([Buffer.from(text)]);

  it("with the export before or after, since others may write", async () => {
    const said = ["a", "b"];
    expect(await isEqual({ device: () => bytes("b"), exported: () => bytes(said.shift()!) })).toBe("equal");
  });

  it("again, when they differ only for a moment", async () => {
    const said = ["old", "new"];
    const device = () => bytes(said.shift()!);
    expect(await isEqual({ device, exported: () => bytes("new") })).toBe("equal");
  });

  it("until it is clear that nothing can be said, or that it is another disk", async () => {
    let count = 0;
    const exported = () => bytes(String(count++));
    expect(await isEqual({ device: () => bytes("x"), exported })).toBe("unknown");
    expect(await isEqual({ device: () => bytes("x"), exported: () => bytes("y") })).toBe("different");
  });

  it("at both ends of a disk, or all of a small one", () => {
    expect(piecesOf(512)).toEqual([{ offset: 0, bytes: 512 }]);
    expect(piecesOf(65536)).toEqual([{ offset: 0, bytes: 65536 }]);
    expect(piecesOf(1 << 30)).toEqual([
      { offset: 0, bytes: 65536 },
      { offset: (1 << 30) - 65536, bytes: 65536 },
    ]);
  });
});

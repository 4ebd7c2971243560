// A guest whose write would go over a table of its image, on the daemon: the error, the event, the mark in
// the image. The same tests pass against the reference (STRATA_TEST_DAEMON).

import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { NbdClient } from "../nbd/client.ts";
import { readU64, writeU64 } from "../src/base/bytes.ts";
import { KiB, MiB } from "../src/base/units.ts";
import { IS_REFERENCE, nbdServerArguments, startDaemon } from "./harness/daemon.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { run, runAnyhow } from "./harness/tool.ts";

const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;
const CLUSTER = 64 * KiB;

/** An image with every kind of table, and where they are; 0 to 64 KiB and 1 MiB to 1088 KiB are allocated. */
async function makeImage(filename: string) {
  await run("qemu-img", "create", "-q", "-f", "qcow2", filename, "8M");
  await run("qemu-io", "-c", "write -q -P 7 2M 64k", filename);
  await run("qemu-img", "snapshot", "-c", "one", filename);
  await run("qemu-io", "-c", "write -q -P 1 0 64k", "-c", "write -q -P 2 1M 64k", filename);
  const bytes = readFileSync(filename);
  const entry = (at: number) => Number(bytes.readBigUInt64BE(at) & OFFSET_MASK);
  const l1 = readU64(bytes, 40);
  const reftable = readU64(bytes, 48);
  const snapshots = readU64(bytes, 64);
  return {
    bytes,
    l2: entry(l1),
    places: {
      "active L1 table": l1,
      "active L2 table": entry(l1),
      "refcount block": entry(reftable),
      "refcount table": reftable,
      "snapshot table": snapshots,
      "inactive L1 table": readU64(bytes, snapshots),
    },
  };
}

const KINDS = [
  "active L1 table",
  "active L2 table",
  "refcount block",
  "refcount table",
  "snapshot table",
  "inactive L1 table",
] as const;

describe("a write that would go over a table", () => {
  it.each(KINDS)("%s: EIO, an event, and an image that says that it is corrupt", async (kind) => {
    const directory = scratchDirectory();
    const filename = path.join(directory, "disk.qcow2");
    const { bytes, l2, places } = await makeImage(filename);
    writeU64(bytes, places[kind], l2 + 16 * 8);
    bytes[l2 + 16 * 8]! |= 0x80;
    writeFileSync(filename, bytes);
    const daemon = await startDaemon(directory, [
      ...nbdServerArguments(directory),
      ...["--blockdev", `qcow2,node-name=disk,file.driver=file,file.filename=${filename}`],
      ...["--export", "nbd,id=export,node-name=disk,name=disk,writable=on"],
    ]);
    const client = await NbdClient.connect(daemon.uri("disk"));
    await client.write(0, Buffer.alloc(4096, 5));
    await expect(client.write(MiB + 512, Buffer.alloc(1024, 9))).rejects.toMatchObject({ code: "EIO" });
    const event = await daemon.qmp.waitFor(({ event }) => event === "BLOCK_IMAGE_CORRUPTED");
    expect(event.data).toEqual({
      device: "",
      "node-name": "disk",
      msg: `Preventing invalid write on metadata (overlaps with ${kind})`,
      offset: places[kind] + 512,
      size: 1024,
      fatal: true,
    });
    await expect(client.write(0, Buffer.alloc(512, 9))).rejects.toThrow();
    // The reference lets go of such an image altogether.
    if (!IS_REFERENCE) {
      expect((await client.read(0, CLUSTER)).subarray(0, 4096).equals(Buffer.alloc(4096, 5))).toBe(true);
    }
    await daemon.quit();
    expect(daemon.qmp.events.filter(({ event }) => event === "BLOCK_IMAGE_CORRUPTED")).toHaveLength(1);
    const after = readFileSync(filename);
    expect(after[79]! & 2).toBe(2);
    const table = after.subarray(places[kind], places[kind] + CLUSTER);
    expect(table.equals(bytes.subarray(places[kind], places[kind] + CLUSTER))).toBe(true);
    const opened = await runAnyhow("qemu-io", "-c", "write 0 512", filename);
    expect(opened.stderr).toContain("Image is corrupt; cannot be opened read/write");
  });
});

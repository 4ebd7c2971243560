// Devices and file systems that fail in ways which need a kernel of our own: a guest in which dm-flakey
// stands below the images, and one user's quota is full. The daemon runs in there; its guests are out here.
//
//   /dev/vdb  -->  /dev/dm-0   good (linear), or from now on failing all writes, or everything
//   /dev/vdc       ext4 with quotas

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { NbdClient } from "../nbd/client.ts";
import { KiB, MiB } from "../src/base/units.ts";
import { checkForErrors, linksOnDisk } from "./harness/chain.ts";
import { within } from "./harness/patience.ts";
import { codeOf, expectEither, expectPieces, fill, PIECE, piece } from "./harness/pieces.ts";
import { exportArguments } from "./harness/serve.ts";
import { run } from "./harness/tool.ts";
import { GUEST_PATIENCE_MS, type GuestDaemon, GuestWithStrata } from "./vm/guest-daemon.ts";
import { findProgram, whyNoGuest } from "./vm/kernel.ts";
import { takeFromDisk } from "./vm/strata-disk.ts";

const PROGRAMS = ["dmsetup", "mkfs.ext4", "e2fsck", "setquota", "setpriv"];
const missing = whyNoGuest(...PROGRAMS, "debugfs");

const DEVICE = 96 * MiB;
const DISK = 32 * MiB;
/** Goes off the event loop. */
const LARGE_WRITE = 320 * KiB;
/** More than the kernel has threads for by itself, four for each processor; less than one file may have. */
const STUCK_WRITES = 40;
/** Pieces of the disk that the base image holds; each byte of them is this. */
const BACKED = 32;
const OLD_BYTE = 0xb0;
const OLD = Buffer.alloc(PIECE, OLD_BYTE);
const oldPieces = (count: number) => Array.from({ length: count }, () => OLD);
const pieces = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => piece(from + i));

describe.skipIf(missing !== undefined)(`on a device that fails${missing ? ` (${missing})` : ""}`, () => {
  let directory: string;
  let guest: GuestWithStrata;

  beforeAll(async () => {
    directory = mkdtempSync(path.join(tmpdir(), "strata-failing-"));
    const [base, top] = ["base.qcow2", "top.qcow2"].map((name) => path.join(directory, name));
    execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", base!, String(DISK)]);
    execFileSync("qemu-io", ["-f", "qcow2", "-c", `write -q -P ${OLD_BYTE} 0 ${BACKED * PIECE}`, base!]);
    execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top!]);
    guest = await GuestWithStrata.boot({
      programs: PROGRAMS,
      modules: ["dm_flakey", "quota_v2"],
      files: { "base.qcow2": base!, "top.qcow2": top! },
      disks: [DEVICE, DEVICE],
    });
    await must(`dmsetup create --noudevsync flaky --table '${TABLES.good}' && mkdir -p /disk /top`);
  }, GUEST_PATIENCE_MS);

  afterAll(async () => {
    await guest?.remove();
    rmSync(directory, { recursive: true, force: true });
  });

  const must = (command: string) => guest.machine.must(command, GUEST_PATIENCE_MS);

  const SECTORS = DEVICE / 512;
  /** Up for no second, down for many. */
  const TABLES = {
    good: `0 ${SECTORS} linear /dev/vdb 0`,
    failingWrites: `0 ${SECTORS} flakey /dev/vdb 0 0 100000 1 error_writes`,
    failing: `0 ${SECTORS} flakey /dev/vdb 0 0 100000`,
  };

  /** What is on its way waits for the new table; nothing is flushed before. */
  async function deviceIs(state: keyof typeof TABLES): Promise<void> {
    await must(`dmsetup suspend --nolockfs --noflush flaky &&
      dmsetup load flaky --table '${TABLES[state]}' && dmsetup resume --noudevsync flaky`);
  }

  async function serveTop(folder: string, base = folder): Promise<Served> {
    return connected(await guest.serve(chainArguments(folder, base)));
  }

  /** The top image of a disk, taken to this host: it is whole, and these pieces are what it begins with. */
  async function expectOnHost(
    disk: 0 | 1,
    links: readonly string[],
    pieces: readonly Buffer[],
  ): Promise<void> {
    await must("sync");
    const [top, raw] = ["taken.qcow2", "taken.raw"].map((name) => path.join(directory, name));
    takeFromDisk(guest.disks[disk]!, "top.qcow2", top!);
    await checkForErrors(top!);
    expect((await linksOnDisk(top!)).slice(1)).toEqual(links);
    await run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", top!, raw!);
    const found = readFileSync(raw!);
    for (const [index, bytes] of pieces.entries()) {
      const isThere = found.subarray(index * PIECE, (index + 1) * PIECE).equals(bytes);
      expect(isThere, `piece ${index}`).toBe(true);
    }
  }

  it("writes and flushes fail, no later flush lies, and all that was flushed is there again", async () => {
    await must("mkfs.ext4 -q /dev/dm-0 && mount -t ext4 /dev/dm-0 /disk");
    await must("cp /opt/*.qcow2 /disk && sync");
    const { daemon, client } = await serveTop("/disk");
    await fill(client, 0, 8);
    await client.flush();
    await deviceIs("failingWrites");
    await fill(client, 8, 24);
    expect(await codeOf(client.flush())).toBe("EIO");
    for (let i = 0; i < 3; i++) expect(await codeOf(client.flush())).not.toBe("ok");
    expect(await codeOf(client.write(0, piece(0), { fua: true }))).not.toBe("ok");
    await expectPieces(client, 8);
    await deviceIs("good");
    // The kernel said once that bytes are lost; for us they stay lost.
    expect(await codeOf(client.flush())).not.toBe("ok");
    client.destroy();
    await daemon.kill();
    await must("umount /disk; e2fsck -fy /dev/dm-0; test $? -le 1 && mount /dev/dm-0 /disk");

    const again = await serveTop("/disk");
    await expectPieces(again.client, 8);
    for (let index = 8; index < 24; index++) await expectEither(again.client, index, OLD, piece(index));
    expect(await fill(again.client, 8, 16)).toEqual({ next: 16, code: "ok" });
    await again.client.flush();
    await end(again);
    await must("umount /disk");
    await expectOnHost(0, ["base.qcow2"], pieces(0, 16));
  });

  it("a device without a file system: the same, until it is opened again", async () => {
    const node = {
      driver: "raw",
      "node-name": "disk",
      file: { driver: "file", filename: "/dev/dm-0" },
    };
    const args = [
      "--blockdev",
      `driver=raw,node-name=disk,file.driver=file,file.filename=${node.file.filename}`,
    ];
    const { daemon, client } = await connected(
      await guest.serve([...args, ...exportArguments("disk", "disk")]),
    );
    const { qmp } = daemon;
    await fill(client, 0, 8);
    await client.flush();
    await deviceIs("failingWrites");
    expect(await codeOf(client.write(8 * PIECE, piece(8), { fua: true }))).toBe("EIO");
    await deviceIs("good");
    expect(await codeOf(client.flush())).not.toBe("ok");
    expect(await codeOf(client.write(9 * PIECE, piece(9), { fua: true }))).not.toBe("ok");
    await expectPieces(client, 8);
    await client.disconnect();
    await qmp.execute("block-export-del", { id: "export-of-disk" });
    await qmp.waitFor((event) => event.event === "BLOCK_EXPORT_DELETED");
    // Who closes it last is told; it is closed all the same.
    await expect(qmp.execute("blockdev-del", { "node-name": "disk" })).rejects.toThrow("to stable storage");
    await must("echo 3 >/proc/sys/vm/drop_caches");
    await qmp.execute("blockdev-add", node);
    await qmp.execute("block-export-add", { type: "nbd", id: "again", "node-name": "disk", writable: true });
    const again = await NbdClient.connect(daemon.uri("disk"));
    await expectPieces(again, 8);
    expect(await fill(again, 8, 16)).toEqual({ next: 16, code: "ok" });
    await again.flush();
    await must("echo 3 >/proc/sys/vm/drop_caches");
    await expectPieces(again, 16);
    await end({ daemon, client: again });
  });

  it("a device that does not answer keeps its own writes, not those of another disk", async () => {
    await must("mkfs.ext4 -q -F /dev/vdc && mount -t ext4 /dev/vdc /top && truncate -s 32M /top/other.raw");
    const raw = (name: string, file: string) => [
      ...["--blockdev", `driver=raw,node-name=${name},file.driver=file,file.filename=${file}`],
      ...exportArguments(name, name),
    ];
    const { daemon, client } = await connected(
      await guest.serve([...raw("disk", "/dev/dm-0"), ...raw("other", "/top/other.raw")]),
    );
    const other = await NbdClient.connect(daemon.uri("other"));
    const large = Buffer.alloc(LARGE_WRITE, 0x5a);
    for (let i = 0; i < 4; i++) await other.write(0, large);
    await must("echo 3 >/proc/sys/vm/drop_caches; dmsetup suspend --nolockfs --noflush flaky");
    // Each begins in the middle of a block, which has to be read first.
    const at = Array.from({ length: STUCK_WRITES }, (_, i) => i * 2 * LARGE_WRITE + 512);
    let answered = 0;
    const stuck = at.map((offset) => client.write(offset, large).then(() => answered++));
    try {
      for (let i = 1; i < 8; i++)
        await within(other.write(i * LARGE_WRITE, large), () => "the other disk does not answer either");
      expect(answered).toBe(0);
    } finally {
      await must("dmsetup resume --noudevsync flaky");
    }
    await Promise.all(stuck);
    expect((await other.read(7 * LARGE_WRITE, LARGE_WRITE)).equals(large)).toBe(true);
    for (const offset of at) expect((await client.read(offset, LARGE_WRITE)).equals(large)).toBe(true);
    await other.disconnect();
    await end({ daemon, client });
    await must("umount /top");
  });

  it("a merge waits for its base while that cannot be read, and then goes on", async () => {
    await must("mkfs.ext4 -q -F /dev/dm-0 && mount -t ext4 /dev/dm-0 /disk");
    await must("cp /opt/base.qcow2 /disk && umount /disk && mount -t ext4 -o ro,noload /dev/dm-0 /disk");
    await must("mkfs.ext4 -q -O quota /dev/vdc && mount -t ext4 -o usrquota /dev/vdc /top");
    await must("cp /opt/top.qcow2 /top/");
    const { daemon, client } = await serveTop("/top", "/disk");
    await fill(client, 0, 4);
    await deviceIs("failing");
    await must("echo 3 >/proc/sys/vm/drop_caches");
    expect(await codeOf(client.read(8 * PIECE, PIECE))).toBe("EIO");
    await merge(daemon, "stop");
    await paused(daemon, "failed");
    // What the guest does itself goes on meanwhile.
    expect(await fill(client, 4, 8)).toEqual({ next: 8, code: "ok" });
    await client.flush();
    await deviceIs("good");
    await daemon.qmp.execute("block-job-resume", { device: "job" });
    await daemon.qmp.waitForEnd("job");
    await expectPieces(client, 8);
    for (let index = 8; index < BACKED; index++) await expectEither(client, index, OLD);
    await end({ daemon, client });
    await must("umount /disk /top");
    await expectOnHost(1, [], [...pieces(0, 8), ...oldPieces(BACKED - 8)]);
  });

  it("a full quota is a lack of space to guests and merges, and both go on when there is more", async () => {
    await must("mkfs.ext4 -q -F -O quota /dev/vdc && mount -t ext4 -o usrquota /dev/vdc /top");
    await must("cp /opt/*.qcow2 /top/ && chown -R 1000 /top");
    const limit = (bytes: number) => must(`setquota -u 1000 0 ${bytes / 1024} 0 0 /dev/vdc`);
    const inUse = Number(await must("du -sk /top/base.qcow2 | cut -f 1")) * 1024;
    await limit(inUse + 4 * MiB);
    // Root may write beyond every quota.
    const asUser = `${findProgram("setpriv")} --reuid 1000 --clear-groups`;
    const { daemon, client } = await connected(await guest.serve(chainArguments("/top", "/top"), asUser));
    const { next, code } = await fill(client, BACKED, 128);
    expect(code).toBe("ENOSPC");
    expect(next).toBeGreaterThan(BACKED + 4);
    await expectPieces(client, next, BACKED);
    await merge(daemon, "enospc");
    await paused(daemon, "nospace");
    await limit(inUse + 32 * MiB);
    await daemon.qmp.execute("block-job-resume", { device: "job" });
    await daemon.qmp.waitForEnd("job");
    expect(await fill(client, next, next + 16)).toEqual({ next: next + 16, code: "ok" });
    await client.flush();
    await expectPieces(client, next + 16, BACKED);
    for (let index = 0; index < BACKED; index++) await expectEither(client, index, OLD);
    await end({ daemon, client });
    await must("umount /top");
    await expectOnHost(1, [], [...oldPieces(BACKED), ...pieces(BACKED, next + 16)]);
  });
});

interface Served {
  readonly daemon: GuestDaemon;
  readonly client: NbdClient;
}

async function connected(daemon: GuestDaemon): Promise<Served> {
  return { daemon, client: await NbdClient.connect(daemon.uri("disk")) };
}

async function end({ daemon, client }: Served): Promise<void> {
  await client.disconnect();
  await daemon.quit();
}

/** [base] <- [top], the top exported as "disk". */
function chainArguments(folder: string, base: string): string[] {
  const file = (name: string) => `file.driver=file,file.filename=${name}.qcow2`;
  return [
    ...["--blockdev", `driver=qcow2,node-name=base,read-only=on,${file(`${base}/base`)}`],
    ...["--blockdev", `driver=qcow2,node-name=disk,${file(`${folder}/top`)},backing=base`],
    ...exportArguments("disk", "disk"),
  ];
}

async function merge(daemon: GuestDaemon, policy: "stop" | "enospc"): Promise<void> {
  await daemon.qmp.execute("block-stream", { "job-id": "job", device: "disk", "on-error": policy });
}

/** The merge has met an error, waits, and says of what kind it was. */
async function paused({ qmp }: GuestDaemon, ioStatus: string): Promise<void> {
  const { data } = await qmp.waitFor((event) => event.event === "BLOCK_JOB_ERROR");
  expect(data).toEqual({ device: "job", operation: "read", action: "stop" });
  await qmp.waitForStatus("job", "paused");
  const [job] = (await qmp.execute("query-block-jobs")) as Record<string, unknown>[];
  expect(job).toMatchObject({ status: "paused", "io-status": ioStatus });
}

// Linux as a client: a guest with Debian's own kernel attaches an export as /dev/nbd0 over the network and
// does with it what people do with disks. What a guest must never see is an I/O error.
//
// Short form: two file systems, two and four connections, restarts. STRATA_LONG=1: larger, more of each.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { Prng } from "../src/base/prng.ts";
import { MiB } from "../src/base/units.ts";
import { checkClean, checkForErrors } from "./harness/chain.ts";
import { NetworkDisk } from "./harness/network-disk.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { run } from "./harness/tool.ts";
import { buildInitramfs, GUEST_READY } from "./vm/initramfs.ts";
import { whyNoGuest } from "./vm/kernel.ts";
import { Machine } from "./vm/machine.ts";

const IS_LONG = process.env["STRATA_LONG"] === "1";
const PROGRAMS = ["nbd-client", "fio", "mkfs.ext4", "e2fsck", "mkfs.xfs", "xfs_repair", "sfdisk"];
const ALL_PROGRAMS = [...PROGRAMS, "blkdiscard", "fstrim", "perl"];
const BOOT_MS = 120_000;
/** Blocks that the test of flushed writes writes one by one. */
const FLUSHED_BLOCKS = IS_LONG ? 2_000 : 200;
const BLOCK_BYTES = 4096;
const FIO_MS = IS_LONG ? 3_600_000 : 240_000;
/** What the kernel says when a disk or a file system has failed. */
const DISK_FAILURE =
  /I\/O error|EXT4-fs error|EXT4-fs warning|XFS \(nbd.*(error|corrupt|shut)|blk_update_request/i;
/** What each job of fio writes. */
const FILE_BYTES = IS_LONG ? 128 * MiB : 8 * MiB;

const BUFFERED = "--direct=0 --ioengine=psync --fsync=64";
const DIRECT = "--direct=1 --ioengine=libaio --iodepth=16";
const FILE_JOBS = ["ext4", "xfs"].flatMap((kind) => [
  `--name=buffered-${kind} --directory=/mnt/${kind} ${BUFFERED}`,
  `--name=direct-${kind} --directory=/mnt/${kind} ${DIRECT}`,
]);
const RAW_OFFSETS = ["0", "256m", "512m", "768m"];
const RAW_JOBS = RAW_OFFSETS.map((at) => `--name=raw-${at} --filename=/dev/nbd0p3 --offset=${at} ${DIRECT}`);

const missing = whyNoGuest(...ALL_PROGRAMS);
const seed = Number(process.env["STRATA_SEED"] ?? Math.floor(Math.random() * 2 ** 31));

describe.skipIf(missing !== undefined)(`Linux with /dev/nbd0${missing ? ` (${missing})` : ""}`, () => {
  let machine: Machine | undefined;
  let shared: string;
  let initramfs: string;

  beforeAll(async () => {
    console.log(`seed ${seed} (STRATA_SEED=${seed} repeats it)`);
    shared = mkdtempSync(path.join(tmpdir(), "strata-linux-nbd-"));
    writeFileSync(path.join(shared, "pattern"), pattern());
    const files = {
      "/usr/bin/nbd-keep": path.join(import.meta.dirname, "vm/nbd-keep.pl"),
      "/pattern": path.join(shared, "pattern"),
    };
    const settings = { programs: ALL_PROGRAMS, modules: ["nbd", "xfs"], files };
    initramfs = await buildInitramfs(settings, path.join(shared, "initramfs"));
  });
  afterAll(() => rmSync(shared, { recursive: true, force: true }));
  afterEach(() => machine?.stop());

  async function boot(): Promise<Machine> {
    machine = await Machine.start({ initramfs, memoryMiB: 1024 });
    await machine.waitFor(GUEST_READY, BOOT_MS);
    return machine;
  }

  it("takes ext4 and xfs over two and four connections, and gives the host what is freed", async () => {
    const directory = scratchDirectory();
    const disk = await NetworkDisk.serve(directory, IS_LONG ? "8G" : "2G");
    const guest = await boot();

    expect(await guest.must(`nbd-client -l 10.0.2.2 ${disk.port}`)).toContain(disk.exportName);
    expect((await guest.run(attach(disk, { name: "nobody" }))).status).not.toBe(0);

    await guest.must(attach(disk, { connections: 2 }));
    await partition(guest);
    await guest.must("mkfs.ext4 -q -F /dev/nbd0p1 && mkfs.xfs -q -f /dev/nbd0p2", FIO_MS);
    await mountBoth(guest);
    await guest.must(fio(...FILE_JOBS), FIO_MS);
    const sums = "cd /mnt && find . -type f | sort | xargs md5sum; cd /";
    const before = await guest.must(sums, FIO_MS);
    await checkFileSystems(guest);
    await detach(guest);

    // The same disk over four connections: all is still there.
    await guest.must(attach(disk, { connections: 4 }));
    await guest.must("sfdisk -q --verify /dev/nbd0 && partprobe /dev/nbd0; ls /dev/nbd0p3");
    await mountBoth(guest);
    expect(await guest.must(sums, FIO_MS)).toBe(before);
    await guest.must(fio(...RAW_JOBS), FIO_MS);
    await freeAll(guest, disk);
    await checkFileSystems(guest);
    await detach(guest);

    expect(guest.console).not.toMatch(DISK_FAILURE);
    await disk.daemon.quit();
    await checkClean(disk.file);
  });

  it("keeps every write that was flushed when the daemon is killed under nbd-client -persist", async () => {
    const directory = scratchDirectory();
    const disk = await NetworkDisk.serve(directory, "64M");
    const guest = await boot();
    // When a server hangs up nbd-client ends, -persist or not: its kernel call returns without an error. The
    // same with 3.24 and 3.26.1, and with qemu-storage-daemon. So a supervisor starts it anew, as systemd
    // would.
    const where = `-name ${disk.exportName} 10.0.2.2 ${disk.port} /dev/nbd0`;
    const client = `nbd-client -nonetlink -nofork -persist ${where}`;
    await guest.must(`while :; do ${client} >>/tmp/client 2>&1; usleep 100000; done &`);
    await guest.must(`${waitUntilAttached()} && (${flushedWrites()}) >/tmp/writer 2>&1 &`);

    for (const [share, how] of [
      [0.25, "kill"],
      [0.5, "quit"],
      [0.75, "kill"],
    ] as const) {
      const reached = Math.floor(FLUSHED_BLOCKS * share);
      await guest.must(`until [ "$(cat /tmp/reached)" -ge ${reached} ] 2>/dev/null; do usleep 20000; done`);
      await disk.restart(how);
    }
    await guest.must("until [ -e /tmp/done ]; do usleep 100000; done", FIO_MS);
    await guest.must(`cmp -n ${FLUSHED_BLOCKS * BLOCK_BYTES} /pattern /dev/nbd0`);

    await disk.daemon.quit();
    const copy = path.join(directory, "copy.raw");
    await run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk.file, copy);
    expect(
      readFileSync(copy)
        .subarray(0, FLUSHED_BLOCKS * BLOCK_BYTES)
        .equals(pattern()),
    ).toBe(true);
    await checkForErrors(disk.file);
  });

  // Not for a daemon that is killed: a disk may lose what was not flushed, and a kernel that only waits for
  // its new connections never hears of it. The reference loses it too.
  it("lets requests wait in the kernel while the daemon restarts, and loses none", async () => {
    const directory = scratchDirectory();
    const disk = await NetworkDisk.serve(directory, "1G");
    const guest = await boot();
    const keep = (verb: string) => `nbd-keep ${verb} 10.0.2.2 ${disk.port} ${disk.exportName} 0 2 3 120`;
    await guest.must(keep("connect"));
    await guest.must(`${waitUntilAttached()} && mkfs.ext4 -q -F /dev/nbd0 && mkdir -p /mnt/ext4`);
    await guest.must("mount /dev/nbd0 /mnt/ext4");
    const work = fio(`--name=kept --directory=/mnt/ext4 ${DIRECT}`);
    await guest.must(
      `(while [ ! -e /tmp/stop ]; do ${work} || exit; done; touch /tmp/well) >/tmp/fio 2>&1 &`,
    );
    for (let round = 0; round < (IS_LONG ? 20 : 2); round++) {
      await guest.must(untilWritten(MiB));
      await disk.restart(round % 2 === 0 ? "terminate" : "quit");
      await guest.must(`until ${keep("reconnect")}; do usleep 200000; done`);
    }
    await guest.must(untilWritten(MiB));
    await guest.must("touch /tmp/stop; wait; cat /tmp/fio; [ -e /tmp/well ]", FIO_MS);
    await guest.must("umount /mnt/ext4 && e2fsck -f -n /dev/nbd0");
    expect(guest.console).not.toMatch(DISK_FAILURE);
    await detach(guest);

    await disk.daemon.quit();
    await checkClean(disk.file);
  });
});

function attach(disk: NetworkDisk, options: { connections?: number; name?: string }): string {
  const { connections = 1, name = disk.exportName } = options;
  const client = `nbd-client -C ${connections} -name ${name} 10.0.2.2 ${disk.port} /dev/nbd0`;
  return `${client} && ${waitUntilAttached()}`;
}

function waitUntilAttached(): string {
  return "until [ $(cat /sys/block/nbd0/size) -gt 0 ]; do usleep 20000; done";
}

/** Waits until the guest has written so much more; the seventh number of the statistics counts sectors. */
function untilWritten(bytes: number): string {
  const written = "awk '{ print $7 }' /sys/block/nbd0/stat";
  return `from=$(${written}); until [ $(${written}) -gt $((from + ${bytes / 512})) ]; do usleep 50000; done`;
}

async function detach(guest: Machine): Promise<void> {
  await guest.must(
    "nbd-client -d /dev/nbd0 && while nbd-client -c /dev/nbd0 >/dev/null; do usleep 20000; done",
  );
}

/** Two partitions for file systems, and one that stays raw. */
async function partition(guest: Machine): Promise<void> {
  const size = IS_LONG ? "2G" : "512M";
  const table = `label: gpt\\n,${size}\\n,${size}\\n,\\n`;
  await guest.must(`printf '${table}' | sfdisk -q /dev/nbd0`);
  await guest.must("until [ -b /dev/nbd0p3 ]; do partprobe /dev/nbd0; usleep 100000; done");
}

async function mountBoth(guest: Machine): Promise<void> {
  await guest.must(
    "mkdir -p /mnt/ext4 /mnt/xfs && mount /dev/nbd0p1 /mnt/ext4 && mount /dev/nbd0p2 /mnt/xfs",
  );
}

async function checkFileSystems(guest: Machine): Promise<void> {
  await guest.must(
    "umount /mnt/ext4 /mnt/xfs && e2fsck -f -n /dev/nbd0p1 && xfs_repair -n /dev/nbd0p2",
    FIO_MS,
  );
}

/**
 * fio with random writes of many sizes, all of them read back and verified; the jobs run at the same time.
 */
function fio(...jobs: readonly string[]): string {
  // What stands before the first --name holds for every job.
  const all = `--rw=randwrite --bsrange=4k-256k --size=${FILE_BYTES} --randseed=${seed}`;
  const verify = "--verify=crc32c --verify_fatal=1 --verify_state_save=0 --output-format=terse";
  return `fio ${all} ${verify} ${jobs.join(" ")}`;
}

/** Writes block after block of /pattern, each one flushed, and tries each again until it is through. */
function flushedWrites(): string {
  const block = `bs=${BLOCK_BYTES} skip=$i seek=$i count=1`;
  const write = `dd if=/pattern of=/dev/nbd0 ${block} oflag=direct conv=fsync,notrunc`;
  const step = `until ${write} 2>/tmp/error; do usleep 50000; done; i=$((i + 1)); echo $i >/tmp/reached`;
  return `i=0; while [ $i -lt ${FLUSHED_BLOCKS} ]; do ${step}; done; touch /tmp/done`;
}

/** What these writes write. */
function pattern(): Buffer {
  const bytes = Buffer.alloc(FLUSHED_BLOCKS * BLOCK_BYTES);
  new Prng(seed).fill(bytes);
  return bytes;
}

/** Deletes and trims by file, then discards a partition; the host's file must shrink each time. */
async function freeAll(guest: Machine, disk: NetworkDisk): Promise<void> {
  const full = disk.allocatedBytes();
  // XFS frees deleted files in the background; unmounting waits for that.
  await guest.must("rm -rf /mnt/ext4/* /mnt/xfs/* && umount /mnt/ext4 /mnt/xfs", FIO_MS);
  await mountBoth(guest);
  await guest.must("fstrim -v /mnt/ext4 && fstrim -v /mnt/xfs", FIO_MS);
  const trimmed = await shrunk(guest, disk, full);
  await guest.must("blkdiscard /dev/nbd0p3 && cmp -n 1048576 /dev/zero /dev/nbd0p3", FIO_MS);
  const discarded = await shrunk(guest, disk, trimmed);
  const inMiB = [full, trimmed, discarded].map((bytes) => (bytes / MiB).toFixed(1));
  console.log(`host file: ${inMiB[0]} MiB full, ${inMiB[1]} after fstrim, ${inMiB[2]} after blkdiscard`);
}

/**
 * Flushes, which is when space goes back to the host, and waits until four files of fio's are gone from it.
 */
async function shrunk(guest: Machine, disk: NetworkDisk, from: number): Promise<number> {
  await guest.must("dd if=/dev/zero of=/dev/nbd0 count=0 conv=fsync,notrunc");
  await expect
    .poll(() => from - disk.allocatedBytes(), { timeout: 30_000 })
    .toBeGreaterThan(3.9 * FILE_BYTES);
  return disk.allocatedBytes();
}

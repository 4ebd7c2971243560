// `strata attach` and `strata detach` with a real kernel: a guest with nbd.ko that runs Strata itself.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Strata } from "./harness/strata-program.ts";
import { run } from "./harness/tool.ts";
import { buildInitramfs, GUEST_READY } from "./vm/initramfs.ts";
import { whyNoGuest } from "./vm/kernel.ts";
import { Machine } from "./vm/machine.ts";
import { buildStrataDisk, mountStrata, nodeLibraries, takeFromDisk } from "./vm/strata-disk.ts";

const missing = whyNoGuest("mkfs.ext4", "debugfs", "nbd-client");
const isLong = process.env["STRATA_LONG"] === "1";
/** A test of the long form; the short one does not have it, so it is not told as skipped. */
const inTheLongForm = (name: string, run: () => Promise<void>) => {
  if (isLong) it(name, run);
};
/** Node takes seconds to start where every instruction is translated. */
const PATIENCE_MS = 240_000;

describe.skipIf(missing !== undefined)(`a disk as /dev/nbdN${missing ? ` (${missing})` : ""}`, () => {
  let directory: string;
  let disk: string;
  let machine: Machine;

  beforeAll(async () => {
    directory = mkdtempSync(path.join(tmpdir(), "strata-attach-"));
    const image = path.join(directory, "disk.qcow2");
    execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", image, "64M"]);
    const files = { "disk.qcow2": image, "a/disk.qcow2": image, "b/disk.qcow2": image };
    disk = buildStrataDisk(directory, files);
    const initramfs = await buildInitramfs(
      {
        programs: ["mkfs.ext4", "nbd-client"],
        modules: ["nbd", "ext4"],
        files: nodeLibraries(),
        init: mountStrata("/dev/vda"),
      },
      path.join(directory, "initramfs"),
    );
    machine = await Machine.start({
      initramfs,
      memoryMiB: 768,
      arguments: ["-drive", `file=${disk},format=raw,if=virtio,cache=unsafe`],
    });
    await machine.waitFor(GUEST_READY, PATIENCE_MS);
    await machine.must("cd /opt");
  }, PATIENCE_MS);

  afterAll(async () => {
    await machine?.stop();
    rmSync(directory, { recursive: true, force: true });
  });

  const must = (command: string) => machine.must(command, PATIENCE_MS);

  /** A command that has to fail; what it says. */
  async function refused(command: string): Promise<string> {
    const { status, output } = await machine.run(command, PATIENCE_MS);
    expect({ output, status }).toEqual({ output, status: 1 });
    return output;
  }

  /** Nothing of an attach is left: no device, no daemon, no socket. */
  async function expectNothing(): Promise<void> {
    const left = "cat /sys/block/nbd*/pid 2>/dev/null; ls /run/strata; ps | grep '[/]opt/node'; true";
    expect(await must(left)).toBe("");
  }

  it("serves an image file until it is detached", async () => {
    const attached = JSON.parse(await must("strata attach disk.qcow2 --connections 2 --json")) as Attached;
    expect(attached).toMatchObject({
      device: "/dev/nbd0",
      size: 64 << 20,
      readOnly: false,
      connections: 2,
      by: "netlink",
      bytes: "equal",
      control: "/run/strata/disk.qmp",
    });
    expect(await must("cat /sys/block/nbd0/backend")).toBe(attached.uri);
    await must("mkfs.ext4 -q /dev/nbd0 && mount -t ext4 /dev/nbd0 /mnt");
    await must("dd if=/dev/urandom of=/mnt/file bs=1M count=8 2>/dev/null");

    expect(await refused("strata detach /dev/nbd0")).toBe(
      "strata: /dev/nbd0 is mounted on /mnt: end that first, or use --force, which gives it I/O errors",
    );
    expect(await refused("strata attach b/disk.qcow2 /dev/nbd0")).toMatch(
      /^strata: \/dev\/nbd0 is in use: it is attached to nbd\+unix:/,
    );
    expect(await refused("strata attach disk.qcow2")).toMatch(
      /^strata: disk.qcow2 is attached already, to \/dev\/nbd0: /,
    );

    const sum = (await must("umount /mnt && md5sum < /dev/nbd0")).split(" ")[0];
    expect(await must("strata detach nbd0")).toBe(
      "/dev/nbd0 is detached, and the daemon of /opt/disk.qcow2 has ended",
    );
    await expectNothing();
    await must("sync");
    expect(await sumOf("disk.qcow2")).toBe(sum);
  });

  it("gives two that come at the same time a device and a daemon each", async () => {
    const attach = (folder: string) => `(cd ${folder} && strata attach disk.qcow2 --json > told 2>&1)`;
    await must(`${attach("a")} & first=$!; ${attach("b")} & wait $first && wait $!`);
    const told = [await must("cat a/told"), await must("cat b/told")];
    const both = told.map((text) => JSON.parse(text) as Attached);
    expect(both.map(({ device }) => device).sort()).toEqual(["/dev/nbd0", "/dev/nbd1"]);
    expect(both.map(({ control }) => control).sort()).toEqual([
      "/run/strata/disk-2.qmp",
      "/run/strata/disk.qmp",
    ]);
    // Each shows the image that was asked for.
    await must(`echo first > ${both[0]!.device}; echo second > ${both[1]!.device}; sync`);
    expect(await must(`head -n 1 ${both[0]!.device}`)).toBe("first");
    await must("strata detach nbd0; strata detach nbd1");
    await expectNothing();
    await must("sync");
    const contents: string[] = [];
    for (const name of ["a/disk.qcow2", "b/disk.qcow2"])
      contents.push(String((await rawOf(name)).subarray(0, 7)));
    expect(contents).toEqual(["first\n\0", "second\n"]);
  });

  it("takes back all that it has done when the kernel refuses", async () => {
    // A device that somebody has open, and that is not connected, is in use to the kernel.
    await must("sleep 10000 < /dev/nbd7 & echo $! > /tmp/opener");
    expect(await refused("strata attach disk.qcow2 /dev/nbd7")).toMatch(/^strata: \/dev\/nbd7 is in use/);
    await expectNothing();
    await must("kill $(cat /tmp/opener)");
    expect(await refused("strata detach /dev/nbd7")).toBe("strata: /dev/nbd7 is not attached");
  });

  inTheLongForm("lets requests wait for a daemon that comes back", async () => {
    const served = path.join(directory, "served");
    mkdirSync(served);
    const image = path.join(served, "net.qcow2");
    await run("qemu-img", "create", "-q", "-f", "qcow2", image, "32M");
    const strata = new Strata(served);
    const first = await strata.serve(image, "--port", "0");
    const port = /:(\d+)\//.exec(first.uri)![1]!;
    const uri = `nbd://10.0.2.2:${port}/virtio0`;
    const attached = await must(`strata attach ${uri} /dev/nbd4 --dead-timeout 1000 --json`);
    expect(JSON.parse(attached)).toMatchObject({ device: "/dev/nbd4", uri, daemon: null, control: null });
    await must("dd if=/dev/urandom of=/tmp/random bs=64k count=32 2>/dev/null");

    first.child.kill("SIGKILL");
    await first.done;
    const write = "dd if=/tmp/random of=/dev/nbd4 bs=64k oflag=direct";
    await must(`(${write}; echo $? > /tmp/written) > /tmp/writer 2>&1 &`);
    expect(await refused(`strata attach --reconnect ${uri} /dev/nbd4`)).toMatch(/ECONNREFUSED/);
    expect((await machine.run("cat /tmp/written")).status).toBe(1);

    const second = await strata.serve(image, "--port", port);
    await must(`strata attach --reconnect ${uri} /dev/nbd4`);
    await must("while [ ! -e /tmp/written ]; do sleep 1; done");
    expect(await must("cat /tmp/written")).toBe("0");
    const sum = (await must("md5sum < /tmp/random")).split(" ")[0];
    expect(await must("strata detach /dev/nbd4")).toBe("/dev/nbd4 is detached");
    second.child.kill("SIGTERM");
    await second.done;
    expect(md5((await checkedBytes(image)).subarray(0, 2 << 20))).toBe(sum);
    await expectNothing();
  });

  inTheLongForm("gives up a device that is in use when it is told to", async () => {
    await must("strata attach disk.qcow2 /dev/nbd2 && mount -t ext4 /dev/nbd2 /mnt");
    expect(await must("strata detach /dev/nbd2 --force")).toMatch(
      /is mounted on \/mnt, and is detached all the same/,
    );
    await must("umount /mnt");
    await expectNothing();
    await must("strata check disk.qcow2");
  });

  inTheLongForm("keeps a daemon until the last device on it is detached", async () => {
    await must("strata attach disk.qcow2 /dev/nbd2 && strata attach disk.qcow2 /dev/nbd3 --read-only");
    expect(await must("cat /sys/block/nbd2/ro /sys/block/nbd3/ro")).toBe("0\n1");
    expect(await must("strata detach /dev/nbd2")).toBe("/dev/nbd2 is detached");
    await must("mount -t ext4 -o ro,noload /dev/nbd3 /mnt && ls /mnt/file && umount /mnt");
    expect(await must("strata detach /dev/nbd3")).toMatch(/, and the daemon of \/opt\/disk.qcow2 has ended$/);
    await expectNothing();
  });

  inTheLongForm("goes through nbd-client where it can make no foreign calls", async () => {
    const told = await must("STRATA_NO_FFI=1 strata attach disk.qcow2 --read-only --json");
    expect(JSON.parse(told)).toMatchObject({ device: "/dev/nbd0", by: "nbd-client", readOnly: true });
    await must("mount -t ext4 -o ro,noload /dev/nbd0 /mnt && ls /mnt/file && umount /mnt");
    await must("STRATA_NO_FFI=1 strata detach /dev/nbd0");
    await expectNothing();
  });

  it("says what to do where the kernel has no nbd", async () => {
    await must("rmmod nbd");
    expect(await refused("strata attach disk.qcow2")).toMatch(
      /^strata: this kernel has no nbd driver, and 'modprobe nbd' did not load it/,
    );
    await expectNothing();
  });

  /** An image of the guest, checked, as the bytes of its disk. */
  function rawOf(name: string): Promise<Buffer> {
    const taken = path.join(directory, "taken.qcow2");
    takeFromDisk(disk, name, taken);
    return checkedBytes(taken);
  }

  async function sumOf(name: string): Promise<string> {
    return md5(await rawOf(name));
  }
});

/** What `attach --json` says. */
interface Attached {
  readonly device: string;
  readonly uri: string;
  readonly control: string;
}

async function checkedBytes(image: string): Promise<Buffer> {
  await run("qemu-img", "check", "-q", image);
  await run("qemu-img", "convert", "-O", "raw", image, `${image}.raw`);
  return readFileSync(`${image}.raw`);
}

function md5(bytes: Buffer): string {
  return createHash("md5").update(bytes).digest("hex");
}

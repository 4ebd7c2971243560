// Merges while a guest works: it has booted from one chain, has the other one as /dev/nbd0, and fio writes
// and verifies on both without a pause. Both chains are merged at the same time:
//
//   root, at the monitor                         data, by QMP
//   A B C D E F   live snapshot                  A B C D E
//   A B D E F     C into D                       A B D E       C into D, throttled
//   A D F         B into D and E into F at once
//   A F           all above A                    A E           all above A into E
//   G             live copy to another folder    F             live copy to another folder
//                 (cancelled half way, again)                  (cancelled half way, again)

import { rmSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { MiB } from "../src/base/units.ts";
import { checkClean, linksOnDisk } from "./harness/chain.ts";
import type { Daemon } from "./harness/daemon.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { run } from "./harness/tool.ts";
import { checkFileSystem } from "./vm/after-guest.ts";
import { debianInitramfs, settle } from "./vm/debian-guest.ts";
import { GuestWork, noErrors, type Stalls, UNTOUCHED_FROM } from "./vm/guest-work.ts";
import { checkLayers, layerFile, ROOT_DEVICE } from "./vm/layered-root.ts";
import type { Machine } from "./vm/machine.ts";
import { cancelled, completed, Merging } from "./vm/merging.ts";
import { rootDisk } from "./vm/root-disk.ts";
import { dataNode, TwoDisks } from "./vm/two-disks.ts";

/** No write of a guest waits longer for a merge than this. Under translation it is the guest that is slow. */
const STALL_MS_MAX = 10_000;

const ONE_SEED = process.env["STRATA_MERGE_SEED"];
const SEEDS =
  ONE_SEED !== undefined ? [Number(ONE_SEED)] : process.env["STRATA_LONG"] === "1" ? [1, 2, 3, 4, 5] : [1];

const disk = await rootDisk();
if (disk.missing !== undefined) console.warn(`SKIPPED, no guest can boot: ${disk.missing}`);

describe.skipIf(disk.missing !== undefined)(
  "merges while the guest works on its root disk and /dev/nbd0",
  () => {
    it.each(SEEDS)(
      "no error, no wrong byte, no long wait: STRATA_MERGE_SEED=%i",
      { timeout: 600_000 },
      async (seed) => {
        const scene = await setUp(seed);
        const { machine, work } = scene;
        await work.start(seed);
        await work.startPulse();
        await work.untilRuns(2);
        const without = await work.endPulse();
        await work.startPulse();
        await Promise.all([mergeRoot(scene, seed), mergeData(scene)]);
        const during = await work.endPulse();
        await work.finish();
        report(seed, await work.runs(), without, during);
        expect(Math.max(during.root, during.nbd)).toBeLessThan(STALL_MS_MAX);
        await checkLayers(machine);
        await work.verifyAgain();
        await settle(machine);
        await work.complain();
        await machine.stop();
        await scene.daemon.quit();
        await checkAfterwards(scene);
      },
    );
  },
);

interface Scene {
  readonly disks: TwoDisks;
  readonly initramfs: string;
  readonly daemon: Daemon;
  /** What the data disk held before the guest came. */
  readonly copyOfData: string;
  readonly machine: Machine;
  readonly work: GuestWork;
  readonly merging: Merging;
}

async function setUp(seed: number): Promise<Scene> {
  const directory = scratchDirectory();
  const initramfs = await debianInitramfs(directory);
  const disks = await TwoDisks.make(directory, { image: disk.image!, initramfs, seed });
  const copyOfData = await disks.data.copyOf("E");
  const daemon = await disks.serve();
  const machine = await disks.boot(initramfs);
  const work = new GuestWork(machine);
  const merging = await Merging.at(daemon);
  return { disks, initramfs, daemon, copyOfData, machine, work, merging };
}

/** As a person at the monitor does it. */
async function mergeRoot({ disks, merging }: Scene, seed: number): Promise<void> {
  const { directory, elsewhere } = disks;
  const speed = (4 + (seed % 3) * 4) * MiB;
  const top = path.join(directory, "root-F.qcow2");
  await merging.type(`snapshot_blkdev ${ROOT_DEVICE} ${top} qcow2`);
  await completed(await merging.typed({ device: "root-D", base: "root-B" }));
  expect(await chainOf(top)).toBe("A B D E F");

  const lower = await merging.typed({ device: "root-D", base: "root-A", speed });
  const upper = await merging.typed({ device: "root-F", base: "root-D", speed });
  const names = (await merging.jobs()).map((job) => job.device);
  expect(names).toEqual(expect.arrayContaining(["root-D", "root-F"]));
  await Promise.all([completed(lower), completed(upper)]);
  expect(await chainOf(top)).toBe("A D F");

  await completed(await merging.typed({ device: ROOT_DEVICE, base: "root-A" }));
  expect(await chainOf(top)).toBe("A F");

  const copy = path.join(elsewhere, "root-G.qcow2");
  await merging.type(`snapshot_blkdev ${ROOT_DEVICE} ${copy} qcow2`);
  const first = await merging.typed({ device: ROOT_DEVICE });
  await merging.type(`block_job_set_speed ${ROOT_DEVICE} 24M`);
  await merging.halfWay(ROOT_DEVICE);
  await merging.type(`block_job_cancel ${ROOT_DEVICE}`);
  await cancelled(first);
  expect(await chainOf(copy)).toBe("A F G");
  await completed(await merging.typed({ device: ROOT_DEVICE }));
  expect(await chainOf(copy)).toBe("G");
}

/** As a program does it. */
async function mergeData({ disks, daemon, merging }: Scene): Promise<void> {
  const { data, elsewhere } = disks;
  const speed = 3 * MiB;
  await completed(await merging.streamed({ device: dataNode("D"), base: dataNode("B"), speed }));
  expect(await chainOf(data.file("E"))).toBe("A B D E");
  await completed(await merging.streamed({ device: dataNode("E"), base: dataNode("A") }));
  expect(await chainOf(data.file("E"))).toBe("A E");

  const copy = path.join(elsewhere, "data-F.qcow2");
  await daemon.qmp.execute("blockdev-snapshot-sync", {
    "node-name": dataNode("E"),
    "snapshot-file": copy,
    "snapshot-node-name": dataNode("F"),
    format: "qcow2",
  });
  const first = await merging.streamed({ device: dataNode("F"), speed: 2 * speed });
  await merging.halfWay(dataNode("F"));
  await daemon.qmp.execute("block-job-cancel", { device: dataNode("F") });
  await cancelled(first);
  expect(await chainOf(copy)).toBe("A E F");
  await completed(await merging.streamed({ device: dataNode("F"), speed: 4 * speed }));
  expect(await chainOf(copy)).toBe("F");
}

/** The images that are left are whole, need no others, and a guest that boots from them finds everything. */
async function checkAfterwards(scene: Scene): Promise<void> {
  const { disks, initramfs, copyOfData } = scene;
  const { directory, data, elsewhere } = disks;
  for (const letter of "ABCDE") rmSync(layerFile(directory, letter));
  for (const letter of data.letters) rmSync(data.file(letter));
  rmSync(path.join(directory, "root-F.qcow2"));
  const root = path.join(elsewhere, "root-G.qcow2");
  const copy = path.join(elsewhere, "data-F.qcow2");
  for (const image of [root, copy]) await checkClean(image);
  await checkFileSystem(root);
  await sameFrom(UNTOUCHED_FROM, copy, copyOfData);

  const daemon = await disks.serveTops({ root, data: copy });
  const machine = await disks.boot(initramfs);
  await checkLayers(machine);
  const work = new GuestWork(machine);
  await work.verifyAgain();
  await noErrors(machine);
  // All this would be worth nothing if it did not notice.
  await machine.must("dd if=/dev/zero of=/dev/nbd0 bs=1M seek=1 count=1 conv=fsync");
  await expect(work.verifyAgain()).rejects.toThrow(/verify/);
  await machine.stop();
  await daemon.quit();
}

/** From this offset on the qcow2 image reads like the raw file. */
async function sameFrom(offset: number, image: string, copy: string): Promise<void> {
  const now = `${image}.raw`;
  await run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, now);
  await run("cmp", `--ignore-initial=${offset}`, now, copy);
  rmSync(now);
}

function report(seed: number, runs: number, without: Stalls, during: Stalls): void {
  const say = (stalls: Stalls) =>
    `${stalls.root.toFixed(0)} ms (root), ${stalls.nbd.toFixed(0)} ms (/dev/nbd0)`;
  console.log(
    `seed ${seed}: ${runs} runs of fio verified; longest wait of a 4 KiB write in the guest: ` +
      `${say(without)} without merges, ${say(during)} during them`,
  );
}

/** Letters of the images of a chain as its links on disk say, base first. */
async function chainOf(top: string): Promise<string> {
  const names = (await linksOnDisk(top)).reverse();
  return names.map((name) => /-([A-Z])\./.exec(name)![1]).join(" ");
}

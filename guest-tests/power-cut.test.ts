// Power cuts while a guest writes and its images are merged: kill -9 for the daemon, the guest, or both, at
// random moments. The guest boots again from what is left; its file systems recover by their journals, every
// file that fsync had answered for is whole, and fsck and qemu-img check have nothing to say.
//
//   root disk    ext4 on five images, with a writer and fio            merges: C into D, all above A into E,
//   a live copy /dev/nbd0    ext4 on five images, with a writer                    merges: C into D, all
//   above A into E, everything

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Prng } from "../src/base/prng.ts";
import { KiB, MiB } from "../src/base/units.ts";
import { checkClean } from "./harness/chain.ts";
import type { Daemon } from "./harness/daemon.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { checkChain, checkFileSystem } from "./vm/after-guest.ts";
import { debianInitramfs, settle } from "./vm/debian-guest.ts";
import {
  brokenPromises,
  countPromises,
  startWriter,
  untilPromise,
  type WriterPlan,
} from "./vm/fsync-writer.ts";
import { GuestWork, noErrors } from "./vm/guest-work.ts";
import { checkLayers, layerFile, ROOT_DEVICE } from "./vm/layered-root.ts";
import type { Machine } from "./vm/machine.ts";
import { Merging, type StreamWords } from "./vm/merging.ts";
import { rootDisk } from "./vm/root-disk.ts";
import { dataNode, TwoDisks } from "./vm/two-disks.ts";

/** STRATA_POWER_SEED repeats one round. */
const ONE_SEED = process.env["STRATA_POWER_SEED"];
const ROUNDS = process.env["STRATA_LONG"] === "1" ? 20 : 3;
const SEEDS =
  ONE_SEED === undefined ? Array.from({ length: ROUNDS }, (_, round) => round + 1) : [Number(ONE_SEED)];

const PATIENCE_MS = 120_000;
const VICTIMS = ["daemon", "guest", "both"] as const;

const disk = await rootDisk();
if (disk.missing !== undefined) console.warn(`SKIPPED, no guest can boot: ${disk.missing}`);

/** The images that every round begins with; made by the first one. */
let shared: string | undefined;
let prepared: Promise<{ disks: TwoDisks; initramfs: string }> | undefined;

describe.skipIf(disk.missing !== undefined)("a power cut during merges", () => {
  it.each(SEEDS)("leaves every promise kept: STRATA_POWER_SEED=%i", { timeout: 600_000 }, async (seed) => {
    prepared ??= prepare();
    const { disks: template, initramfs } = await prepared;
    const disks = await template.cloneTo(scratchDirectory());
    const prng = new Prng(seed);
    const victim = VICTIMS[seed % VICTIMS.length]!;
    const cut = await workUntilCut(disks, initramfs, victim, prng);
    console.log(
      `seed ${seed}: ${victim} killed after ${countPromises(cut.console)} promises, during ${cut.during}`,
    );
    for (const top of [cut.tops.root, cut.tops.data]) await checkChain(top);
    await findEverything(disks, initramfs, cut);
  });
});

interface Cut {
  /** The top images, since a live snapshot may have changed them. */
  readonly tops: { root: string; data: string };
  readonly writers: readonly WriterPlan[];
  readonly console: string;
  readonly during: string;
}

afterAll(() => {
  if (shared !== undefined) rmSync(shared, { recursive: true, force: true });
});

async function prepare(): Promise<{ disks: TwoDisks; initramfs: string }> {
  shared = mkdtempSync(path.join(tmpdir(), "strata-power-"));
  const initramfs = await debianInitramfs(shared);
  return { disks: await TwoDisks.make(shared, { image: disk.image!, initramfs, seed: 1 }), initramfs };
}

/** One life of the guest, up to its sudden end. */
async function workUntilCut(
  disks: TwoDisks,
  initramfs: string,
  victim: (typeof VICTIMS)[number],
  prng: Prng,
): Promise<Cut> {
  const daemon = await disks.serve();
  const machine = await disks.boot(initramfs);
  await machine.must("mkfs.ext4 -q /dev/nbd0 && mkdir -p /data && mount -o discard /dev/nbd0 /data && sync");
  const writers = [
    { tag: "root", folder: "/var/work/slots", seed: prng.below(32768) },
    { tag: "data", folder: "/data/slots", seed: prng.below(32768) },
  ];
  const work = new GuestWork(machine);
  await work.start(prng.below(1000), ["root"]);
  for (const writer of writers) await startWriter(machine, writer);
  await untilPromise(machine, prng.between(2, 8), PATIENCE_MS);
  // In the middle of the merges, which take minutes then however slow the guest is, or about their end.
  const inside = prng.chance(0.5);
  const speed = () => (inside ? prng.between(16, 64) * KiB : prng.between(4, 32) * MiB);
  const merges = await startMerges(disks, daemon, prng, speed);
  if (inside) {
    await merges.merging.allMoving();
    await untilPromise(machine, countPromises(machine.console) + prng.between(1, 12), PATIENCE_MS);
  } else {
    await Promise.race(merges.ended);
  }
  for (let turns = prng.below(200); turns > 0; turns--) await new Promise(setImmediate);
  const during = (await merges.merging.jobs())
    .map((job) => `${job.device} ${job.offset}/${job.len}`)
    .join(" ");
  if (inside) expect(during, "merges under way").not.toBe("");
  await cutPower(victim, daemon, machine);
  const tops = { root: merges.rootTop, data: disks.data.file("E") };
  return { tops, writers, console: machine.console, during: during === "" ? "no merge" : during };
}

interface StartedMerges {
  readonly merging: Merging;
  readonly rootTop: string;
  readonly ended: readonly Promise<unknown>[];
}

/** One merge on each disk. */
async function startMerges(
  disks: TwoDisks,
  daemon: Daemon,
  prng: Prng,
  speed: () => number,
): Promise<StartedMerges> {
  const merging = await Merging.at(daemon);
  let rootTop = layerFile(disks.directory, "E");
  const ofRoot: StreamWords[] = [
    { device: "root-D", base: "root-B", speed: speed() },
    { device: "root-E", base: "root-A", speed: speed() },
    { device: ROOT_DEVICE },
  ];
  const ofData: StreamWords[] = [
    { device: dataNode("D"), base: dataNode("B") },
    { device: dataNode("E"), base: dataNode("A") },
    { device: dataNode("E") },
  ];
  const root = prng.pick(ofRoot);
  if (root.base === undefined) {
    rootTop = path.join(disks.elsewhere, "root-F.qcow2");
    await merging.type(`snapshot_blkdev ${ROOT_DEVICE} ${rootTop} qcow2`);
  }
  const typed = await merging.typed(root);
  // At the monitor there is no speed without a base.
  if (root.base === undefined) await merging.setSpeed(ROOT_DEVICE, speed());
  const started = [typed, await merging.streamed({ ...prng.pick(ofData), speed: speed() })];
  return { merging, rootTop, ended: started.map((merge) => merge.ended) };
}

/**
 * When the daemon goes first, the guest is told of errors, and must not take a failed write for a good one.
 */
async function cutPower(victim: (typeof VICTIMS)[number], daemon: Daemon, machine: Machine): Promise<void> {
  if (victim === "both") await Promise.all([daemon.kill(), machine.kill()]);
  if (victim === "daemon") {
    await daemon.kill();
    await machine.waitFor(/^FAIL |I\/O error, dev/m, PATIENCE_MS);
  }
  await machine.kill();
  if (victim === "guest") await daemon.quit();
}

/** The next life: both file systems recover, and hold what was promised. */
async function findEverything(disks: TwoDisks, initramfs: string, cut: Cut): Promise<void> {
  const daemon = await disks.serveTops(cut.tops);
  const machine = await disks.boot(initramfs);
  await machine.must("mount /dev/nbd0 /data");
  const messages = await machine.must("dmesg -t");
  for (const device of ["vda", "nbd0"]) expect(messages).toContain(`EXT4-fs (${device}): recovery complete`);
  for (const writer of cut.writers) expect(await brokenPromises(cut.console, machine, writer)).toEqual([]);
  await new GuestWork(machine).complain();
  await checkLayers(machine);
  await machine.must("umount /data && e2fsck -fn /dev/nbd0");
  await noErrors(machine);
  await settle(machine);
  await machine.stop();
  await daemon.quit();
  for (const top of [cut.tops.root, cut.tops.data]) await checkClean(top);
  await checkFileSystem(cut.tops.root);
}

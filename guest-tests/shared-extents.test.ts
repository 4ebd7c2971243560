// A merge on a file system that shares extents takes no space, and copies nothing wrong. Needs the right to
// mount a file in a loop.

import { spawnSync } from "node:child_process";
import { mkdirSync, statfsSync, truncateSync, writeFileSync } from "node:fs";
import path from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { NbdClient } from "../nbd/client.ts";
import { Prng } from "../src/base/prng.ts";
import { KiB, MiB } from "../src/base/units.ts";
import { checkClean, linksOnDisk } from "./harness/chain.ts";
import { IS_REFERENCE, nbdServerArguments, startDaemon } from "./harness/daemon.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { exportArguments } from "./harness/serve.ts";
import { run } from "./harness/tool.ts";

const DISK_BYTES = 160 * MiB;
const PIECE = 4 * MiB;

function canMount(fileSystem: string): boolean {
  if (process.getuid?.() !== 0 || IS_REFERENCE) return false;
  const tools = spawnSync("sh", ["-c", `command -v mkfs.${fileSystem} losetup && losetup -f`]);
  return tools.status === 0;
}

async function mounted(fileSystem: string): Promise<string> {
  const directory = scratchDirectory("inMemory");
  const image = path.join(directory, "disk.img");
  const mountPoint = path.join(directory, "mnt");
  writeFileSync(image, "");
  truncateSync(image, 600 * MiB);
  mkdirSync(mountPoint);
  await run(`mkfs.${fileSystem}`, "-q", image);
  await run("mount", "-o", "loop", image, mountPoint);
  onTestFinished(() => run("umount", "--lazy", mountPoint).then(() => undefined));
  return mountPoint;
}

/** A chain A <- B <- C whose lower two hold random data, zeros and nothing; and what the guest sees. */
async function chainOn(folder: string, prng: Prng): Promise<{ top: string; model: Buffer }> {
  const model = Buffer.alloc(DISK_BYTES);
  const plain = path.join(folder, "content");
  let below: string | undefined;
  for (const letter of ["A", "B", "C"]) {
    const file = path.join(folder, `${letter}.qcow2`);
    const backing = below === undefined ? [] : ["-b", below, "-F", "qcow2"];
    await run("qemu-img", "create", "-q", "-f", "qcow2", ...backing, file, String(DISK_BYTES));
    for (let at = 0; letter !== "C" && at < DISK_BYTES; at += PIECE) {
      if (prng.chance(letter === "A" ? 0.2 : 0.6)) continue;
      const content = prng.chance(0.2) ? Buffer.alloc(PIECE) : prng.fill(Buffer.alloc(PIECE));
      writeFileSync(plain, content);
      content.copy(model, at);
      await run("qemu-io", "-f", "qcow2", "-c", `write -q -s ${plain} ${at} ${PIECE}`, file);
    }
    below = file;
  }
  return { top: below!, model };
}

const freeBytes = (folder: string) => {
  const { bavail, bsize } = statfsSync(folder);
  return bavail * bsize;
};

it.skipIf(!canMount("xfs"))("a merge on XFS shares the layers' extents while the guest writes", async () => {
  const seed = Number(process.env["STRATA_SEED"] ?? 20261122);
  const prng = new Prng(seed);
  const folder = await mounted("xfs");
  const { top, model } = await chainOn(folder, prng);
  const directory = scratchDirectory("inMemory");
  const node = `driver=qcow2,node-name=top,file.driver=file,file.filename=${top}`;
  const daemon = await startDaemon(directory, [
    ...nbdServerArguments(directory),
    ...["--blockdev", node],
    ...exportArguments("top", "top"),
  ]);
  const client = await NbdClient.connect(daemon.uri("top"));
  await run("sync", "-f", folder);
  const before = freeBytes(folder);
  let guestBytes = 0;
  let merged = false;
  const guest = async () => {
    while (!merged) {
      const content = prng.fill(Buffer.alloc(1 + prng.below(100 * KiB)));
      const offset = prng.below(DISK_BYTES - content.length);
      await client.write(offset, content);
      content.copy(model, offset);
      guestBytes += content.length + 128 * KiB;
      if (guestBytes > 16 * MiB) return;
    }
  };
  const working = guest();
  await daemon.qmp.execute("block-stream", { "job-id": "merge", device: "top" });
  await daemon.qmp.waitForEnd("merge");
  merged = true;
  await working;
  await client.flush();
  await run("sync", "-f", folder);
  const taken = before - freeBytes(folder);
  const seen = await client.read(0, DISK_BYTES / 8);
  for (let at = 0; at < DISK_BYTES; at += seen.length) {
    const same = (await client.read(at, seen.length)).equals(model.subarray(at, at + seen.length));
    expect(same, `seed ${seed}, at ${at}`).toBe(true);
  }
  await client.disconnect();
  await daemon.quit();
  expect(await linksOnDisk(top)).toEqual(["C.qcow2"]);
  await checkClean(top);
  // What the guest wrote, its copied clusters and tables; the merged data itself took nothing.
  expect(taken, `${guestBytes} bytes of the guest`).toBeLessThan(guestBytes + 24 * MiB);
});

// The host's disk is full: the guest hears ENOSPC, a job stops and goes on when there is space, and nothing
// is lost. Needs the right to mount a small file system.

import { spawnSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import path from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { NbdClient } from "../nbd/client.ts";
import { KiB, MiB } from "../src/base/units.ts";
import { Chain, checkForErrors, compareImages, lettersOnDisk } from "./harness/chain.ts";
import { hmpArguments, IS_REFERENCE, nbdServerArguments, startDaemon } from "./harness/daemon.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { exportArguments } from "./harness/serve.ts";
import { run } from "./harness/tool.ts";

const mountable = spawnSync("unshare", ["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]).status === 0;

/** A mounted file system of `bytes` inside a scratch directory. */
async function smallDisk(bytes: number): Promise<string> {
  const directory = scratchDirectory("onDisk");
  const mountPoint = path.join(directory, "small");
  mkdirSync(mountPoint);
  await run("mount", "-t", "tmpfs", "-o", `size=${bytes}`, "strata-test", mountPoint);
  onTestFinished(() => run("umount", "--lazy", mountPoint).then(() => undefined));
  return mountPoint;
}

async function enlarge(mountPoint: string): Promise<void> {
  await run("mount", "-o", `remount,size=${64 * MiB}`, mountPoint);
}

it.skipIf(!mountable)(
  "the guest gets ENOSPC, keeps what it has, and goes on when there is space",
  async () => {
    const disk = await smallDisk(2 * MiB);
    const file = path.join(disk, "disk.img");
    await run("qemu-img", "create", "-q", "-f", "qcow2", file, "32M");
    const node = `driver=qcow2,node-name=disk,file.driver=file,file.filename=${file}`;
    const directory = path.dirname(disk);
    const daemon = await startDaemon(directory, [
      ...nbdServerArguments(directory),
      ...["--blockdev", node],
      ...exportArguments("disk", "disk"),
    ]);
    const client = await NbdClient.connect(daemon.uri("disk"));
    const data = (index: number) => Buffer.alloc(256 * KiB, index + 1);
    let written = 0;
    let code = "";
    for (; code === ""; ) {
      await client.write(written * 256 * KiB, data(written)).then(
        () => written++,
        (error: { code: string }) => {
          code = error.code;
        },
      );
    }
    expect(code).toBe("ENOSPC");
    expect(written).toBeGreaterThan(2);
    for (let index = 0; index < written; index++) {
      expect((await client.read(index * 256 * KiB, 256 * KiB)).equals(data(index))).toBe(true);
    }
    await enlarge(disk);
    for (; written < 32; written++) await client.write(written * 256 * KiB, data(written));
    await client.flush();
    for (let index = 0; index < written; index++) {
      expect((await client.read(index * 256 * KiB, 256 * KiB)).equals(data(index))).toBe(true);
    }
    await client.disconnect();
    await daemon.quit();
    await checkForErrors(file);
  },
);

it.skipIf(!mountable).each(["stop", "enospc"])("a job with on-error %s waits for space", async (policy) => {
  const { chain, disk, copy, daemon, uri } = await fullChain();
  const { qmp } = daemon;
  await qmp.execute("block-stream", { "job-id": "job", device: "top", "on-error": policy });
  const error = await qmp.waitFor((event) => event.event === "BLOCK_JOB_ERROR");
  expect(error.data).toMatchObject({ device: "job", action: "stop" });
  await qmp.waitForStatus("job", "paused");
  const [job] = (await qmp.execute("query-block-jobs")) as Record<string, unknown>[];
  expect(job).toMatchObject({ "io-status": "nospace", status: "paused" });
  // Reads fail in the reference while the job has no space: its filter wants to copy what it reads.
  if (!IS_REFERENCE) {
    await compareImages(uri, copy);
    const hmp = await daemon.hmp();
    expect(await hmp.type("info block-jobs")).toMatch(/job/);
  }
  await enlarge(disk);
  await qmp.execute("block-job-resume", { device: "job" });
  await qmp.waitForEnd("job");
  await compareImages(uri, copy);
  await daemon.quit();
  expect(await lettersOnDisk(path.join(disk, "top.img"))).toBe("top");
  await checkForErrors(path.join(disk, "top.img"));
  await compareImages(path.join(disk, "top.img"), copy, "qcow2");
  expect(chain.letters.length).toBe(2);
});

it.skipIf(!mountable)(
  "a job with on-error report ends with the error, and the chain is as it was",
  async () => {
    const { disk, copy, daemon, uri } = await fullChain();
    const { qmp } = daemon;
    await qmp.execute("block-stream", { "job-id": "job", device: "top", "on-error": "report" });
    const ended = await qmp.waitFor((event) => event.event === "BLOCK_JOB_COMPLETED");
    expect(ended.data).toMatchObject({ device: "job", error: "No space left on device" });
    expect(qmp.story("job").filter((step) => step.startsWith("BLOCK"))).toEqual([
      "BLOCK_JOB_ERROR",
      "BLOCK_JOB_COMPLETED",
    ]);
    await compareImages(uri, copy);
    await enlarge(disk);
    await qmp.execute("block-stream", { "job-id": "again", device: "top" });
    await qmp.waitForEnd("again");
    await compareImages(uri, copy);
    await daemon.quit();
    await checkForErrors(path.join(disk, "top.img"));
  },
);

/** Two layers with 6 MiB on a roomy disk, and an empty overlay on a small one. */
async function fullChain() {
  const disk = await smallDisk(2 * MiB);
  const directory = path.dirname(disk);
  const chain = await Chain.build(directory, { layers: 2, bytes: 16 * MiB, bytesPerLayer: 4 * MiB });
  const copy = await chain.copyOf("B");
  const top = path.join(disk, "top.img");
  await run("qemu-img", "create", "-q", "-f", "qcow2", "-b", chain.file("B"), "-F", "qcow2", top);
  const node = `driver=qcow2,node-name=top,file.driver=file,file.filename=${top}`;
  const daemon = await startDaemon(directory, [
    ...(IS_REFERENCE ? [] : hmpArguments(directory)),
    ...nbdServerArguments(directory),
    ...["--blockdev", node],
    ...exportArguments("top", "top"),
  ]);
  return { chain, disk, copy, daemon, uri: daemon.uri("top") };
}

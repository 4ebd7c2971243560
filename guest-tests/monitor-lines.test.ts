// The lines that a person types at the HMP monitor, each one against the running daemon through its socket.
// The reference has no such monitor.

import { mkdirSync, rmSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { KiB } from "../src/base/units.ts";
import { type Chain, checkClean, compareImages, lettersOnDisk, linksOnDisk } from "./harness/chain.ts";
import { IS_REFERENCE } from "./harness/daemon.ts";
import { type ServePlan, serveChain } from "./harness/serve.ts";

const SLOW = 64 * KiB;

/** Serves a chain and opens its monitor; `copy` is what the guest saw before anything was typed. */
async function atMonitor(plan: ServePlan) {
  const copies: string[] = [];
  const before = async (built: Chain) => {
    copies.push(await built.copyOf("E"));
  };
  const served = await serveChain({ ...plan, before });
  return { ...served, copy: copies[0]!, hmp: await served.daemon.hmp() };
}

describe.skipIf(IS_REFERENCE)("lines at the monitor", () => {
  it("block_stream virtio0 A: device and node name", async () => {
    const { chain, daemon, uri, copy, hmp } = await atMonitor({ device: "virtio0", base: "raw" });
    expect(await hmp.type("block_stream virtio0 A")).toBe("");
    const ended = await daemon.qmp.waitFor((event) => event.event === "BLOCK_JOB_COMPLETED");
    expect(ended.data["error"]).toBeUndefined();
    expect(await hmp.type("info block-jobs")).toBe("No active jobs");
    expect(await lettersOnDisk(chain.file("E"))).toBe("A E");
    await compareImages(uri, copy);
    await daemon.quit();
    for (const letter of ["B", "C", "D"]) rmSync(chain.file(letter));
    await checkClean(chain.file("E"));
    await compareImages(chain.file("E"), copy, "qcow2");
  });

  it("block_stream node-D file-B.img: node name and file name", async () => {
    const { chain, daemon, uri, copy, hmp } = await atMonitor({ nodeName: (letter) => `node-${letter}` });
    expect(await hmp.type("block_stream node-D file-B.img")).toBe("");
    const ended = await daemon.qmp.waitFor((event) => event.event === "BLOCK_JOB_COMPLETED");
    expect(ended.data["error"]).toBeUndefined();
    expect(await lettersOnDisk(chain.file("E"))).toBe("A B D E");
    await compareImages(uri, copy);
    await daemon.quit();
    rmSync(chain.file("C"));
    for (const letter of ["D", "E"]) await checkClean(chain.file(letter));
    await compareImages(chain.file("E"), copy, "qcow2");
  });

  it("snapshot_blkdev ide0-hd0 /new-path/disk.img qcow2; block_stream ide0-hd0: a live copy", async () => {
    const { directory, chain, daemon, uri, copy, hmp } = await atMonitor({
      device: "ide0-hd0",
      nodeName: (letter) => `node-${letter}`,
    });
    const target = path.join(directory, "new-path", "disk.img");
    mkdirSync(path.dirname(target));
    expect(await hmp.type(`snapshot_blkdev ide0-hd0 ${target} qcow2`)).not.toMatch(/error/i);
    expect((await linksOnDisk(target)).slice(0, 2)).toEqual(["disk.img", "file-E.img"]);
    await compareImages(uri, copy);
    expect(await hmp.type("block_stream ide0-hd0")).toBe("");
    const ended = await daemon.qmp.waitFor((event) => event.event === "BLOCK_JOB_COMPLETED");
    expect(ended.data["error"]).toBeUndefined();
    await compareImages(uri, copy);
    expect(await linksOnDisk(target)).toEqual(["disk.img"]);
    await daemon.quit();
    for (const letter of chain.letters) rmSync(chain.file(letter));
    await checkClean(target);
    await compareImages(target, copy, "qcow2");
  });

  it("info block-jobs, and the lines that steer a job", async () => {
    const { daemon, hmp } = await atMonitor({ device: "virtio0", base: "raw" });
    const { qmp } = daemon;
    expect(await hmp.type("info block-jobs")).toBe("No active jobs");
    expect(await hmp.type("block_stream virtio0 A")).toBe("");
    await qmp.waitFor((event) => event.event === "BLOCK_JOB_COMPLETED");
    const mark = qmp.mark;
    await qmp.execute("blockdev-snapshot-sync", {
      "node-name": "E",
      "snapshot-file": path.join(daemon.directory, "overlay.qcow2"),
      "snapshot-node-name": "F",
    });
    await qmp.execute("block-stream", { "job-id": "job0", device: "F", speed: SLOW });
    expect(await hmp.type("info block-jobs")).toMatch(
      /^Streaming device job0: Completed \d+ of \d+ bytes, speed limit 65536 bytes\/s$/,
    );
    expect(await hmp.type("block_job_pause job0")).toBe("");
    await qmp.waitForStatus("job0", "paused", mark);
    expect(await hmp.type("block_job_resume job0")).toBe("");
    expect(await hmp.type("block_job_set_speed job0 131072")).toBe("");
    expect(await hmp.type("info block-jobs")).toContain("speed limit 131072 bytes/s");
    expect(await hmp.type("block_job_cancel job0")).toBe("");
    expect((await qmp.waitForEnd("job0")).event).toBe("BLOCK_JOB_CANCELLED");
    expect(await hmp.type("info block-jobs")).toBe("No active jobs");
  });

  it("info block and info named-block-nodes name every image", async () => {
    const { chain, hmp } = await atMonitor({ device: "virtio0", nodeName: (letter) => `node-${letter}` });
    const block = await hmp.type("info block");
    expect(block).toContain("virtio0");
    expect(block).toContain(chain.file("E"));
    const nodes = await hmp.type("info named-block-nodes");
    for (const letter of chain.letters) {
      expect(nodes).toContain(`node-${letter}`);
      expect(nodes).toContain(chain.file(letter));
    }
  });

  it("help, and words that it does not know", async () => {
    const { hmp } = await atMonitor({ device: "virtio0" });
    const help = await hmp.type("help");
    for (const word of ["block_stream", "snapshot_blkdev", "block_job_cancel", "info", "quit"]) {
      expect(help).toContain(word);
    }
    expect(await hmp.type("frobnicate virtio0")).toMatch(/unknown command: 'frobnicate'/);
    expect(await hmp.type("block_stream nowhere")).toMatch(/^Error: .*nowhere/);
    expect(await hmp.type("block_stream virtio0 nowhere.img")).toMatch(/^Error: .*nowhere\.img/);
    expect(await hmp.type("block_job_pause nowhere")).toMatch(/^Error: .*nowhere/);
    expect(await hmp.type("block_stream")).toMatch(/block_stream/);
  });

  it("quit ends the daemon in peace", async () => {
    const { chain, daemon, hmp, copy } = await atMonitor({ device: "virtio0" });
    await hmp.typeLast("quit");
    expect(await daemon.ended).toEqual({ code: 0, signal: null });
    await checkClean(chain.file("E"));
    await compareImages(chain.file("E"), copy, "qcow2");
  });

  it("finds what a person may call a disk: device, node name, file name, in each place", async () => {
    for (const [disk, base] of [
      ["file-D.img", "node-B"],
      ["node-D", "file-B.img"],
    ] as const) {
      const { chain, daemon, hmp } = await atMonitor({ nodeName: (letter) => `node-${letter}` });
      expect(await hmp.type(`block_stream ${disk} ${base}`)).toBe("");
      await daemon.qmp.waitFor((event) => event.event === "BLOCK_JOB_COMPLETED");
      expect(await lettersOnDisk(chain.file("E"))).toBe("A B D E");
      const { mark } = daemon.qmp;
      expect(await hmp.type(`block_stream ${chain.file("E")} ${chain.file("A")}`)).toBe("");
      await daemon.qmp.waitFor((event) => event.event === "BLOCK_JOB_COMPLETED", mark);
      await daemon.quit();
      expect(await lettersOnDisk(chain.file("E"))).toBe("A E");
    }
  });
});

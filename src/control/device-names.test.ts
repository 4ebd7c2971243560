// What ours takes beyond the reference: images by device and file name; and the lines of the human monitor.

import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { chainOf } from "../block/chain.ts";
import type { Daemon } from "./daemon.ts";
import { runCommand } from "./dispatch.ts";
import { runHmpLine } from "./hmp/commands.ts";
import { hmpTarget } from "./hmp/monitor.ts";
import type { JsonObject } from "./json-value.ts";
import { endDaemon, startDaemon } from "./testing/daemon-in-process.ts";
import { makeQcow2Image, makeRawImage } from "./testing/image-fixtures.ts";

let directory: string;
let daemon: Daemon;
const SIZE = 1024 * 1024;

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "devices-"));
  makeRawImage(`${directory}/file-A.img`, SIZE, true);
  const links = [
    ["B", "file-A.img", "raw"],
    ["C", "file-B.img", "qcow2"],
    ["D", "file-C.img", "qcow2"],
    ["E", "file-D.img", "qcow2"],
  ] as const;
  for (const [name, file, format] of links) {
    makeQcow2Image(`${directory}/file-${name}.img`, SIZE, {
      backing: { file, format },
      patterned: name === "C",
    });
  }
  const node = (name: string, more: string) =>
    `node-name=${name},file.driver=file,file.filename=${directory}/file-${name.replace("node-", "")}.img,${more}`;
  daemon = await startDaemon([
    ...["--blockdev", `raw,${node("A", "read-only=on")}`],
    ...["--blockdev", `qcow2,${node("B", "read-only=on,backing=A")}`],
    ...["--blockdev", `qcow2,${node("C", "read-only=on,backing=B")}`],
    ...["--blockdev", `qcow2,${node("node-D", "read-only=on,backing=C")}`],
    ...["--blockdev", `qcow2,${node("E", "backing=node-D")}`],
    ...["--nbd-server", `addr.type=unix,addr.path=${directory}/nbd`],
    ...["--export", "nbd,id=virtio0,node-name=E,name=disk,writable=on"],
  ]);
});

afterEach(async () => {
  await endDaemon(daemon);
  rmSync(directory, { recursive: true, force: true });
});

function qmp(command: string, args: object): Promise<unknown> {
  return runCommand(daemon, command, args as JsonObject);
}

const line = (text: string) => runHmpLine(hmpTarget(daemon), text);

/** The chain of what is served, as names. */
function served(): string[] {
  return chainOf(daemon.exports.get("virtio0").backend.node).map((node) => node.name);
}

async function jobsEnded(): Promise<void> {
  await Promise.all(daemon.jobs.jobs.map((job) => job.concluded));
}

describe("QMP", () => {
  it("takes what a node is served as for a device, and names the job after it", async () => {
    await qmp("block-stream", { device: "virtio0", "base-node": "A" });
    expect(daemon.jobs.find("virtio0")?.type).toBe("stream");
    await jobsEnded();
    expect(served()).toEqual(["E", "A"]);
  });

  it("puts a snapshot on a device without being told a node name", async () => {
    await qmp("blockdev-snapshot-sync", { device: "virtio0", "snapshot-file": `${directory}/new.qcow2` });
    expect(served()).toEqual(["overlay0", "E", "node-D", "C", "B", "A"]);
    expect(daemon.graph.get("E").readOnly).toBe(true);
  });

  it("finds a base by every spelling of its file", async () => {
    for (const base of [`${directory}/file-B.img`, "file-B.img", `${directory}/./file-B.img`]) {
      await qmp("block-stream", { device: "node-D", base, "job-id": "j", "auto-finalize": false });
      await qmp("job-cancel", { id: "j" });
      await jobsEnded();
    }
  });

  it("refuses to stream into raw, and says why", async () => {
    await expect(qmp("block-stream", { device: "A", "job-id": "j" })).rejects.toThrow(
      "cannot stream into node 'A': a raw image has no backing link",
    );
  });

  it("takes all snapshots of a transaction or none", async () => {
    makeQcow2Image(`${directory}/other.img`, SIZE, {});
    const file = { driver: "file", filename: `${directory}/other.img` };
    await qmp("blockdev-add", { driver: "qcow2", "node-name": "other", file });
    const snapshot = (node: string, name: string) => ({
      type: "blockdev-snapshot-sync",
      data: { "node-name": node, "snapshot-file": `${directory}/${name}.img`, "snapshot-node-name": name },
    });
    const failing = { actions: [snapshot("E", "S1"), { type: "abort", data: {} }] };
    await expect(qmp("transaction", failing)).rejects.toThrow("Transaction aborted using Abort action");
    expect(served()[0]).toBe("E");
    expect(daemon.graph.find("S1")).toBeUndefined();
    await qmp("transaction", { actions: [snapshot("E", "S1"), snapshot("other", "S2")] });
    expect(served().slice(0, 2)).toEqual(["S1", "E"]);
    expect(daemon.graph.get("S2").backing?.name).toBe("other");
  });

  it("closes what a merge leaves out where the monitor does not hold it, overlays of a snapshot too", async () => {
    for (const name of ["node-D", "C", "B", "A", "E"]) await daemon.nodes.letGo(daemon.graph.get(name));
    expect(served()).toEqual(["E", "node-D", "C", "B", "A"]);
    for (const name of ["F", "G"]) {
      await line(`snapshot_blkdev virtio0 ${directory}/${name}.img`);
      await line("block_stream virtio0");
      await jobsEnded();
      expect(served()).toEqual([name]);
      expect([...daemon.graph.nodes].filter((node) => node.file !== undefined)).toHaveLength(1);
    }
  });

  it("does not replace the image that it stands on by a snapshot", async () => {
    const same = { device: "virtio0", "snapshot-file": `${directory}/./file-E.img` };
    await expect(qmp("blockdev-snapshot-sync", same)).rejects.toThrow(
      "Trying to create an image with the same filename as the backing file",
    );
    // Another image of the chain is locked against it.
    const below = { device: "virtio0", "snapshot-file": `${directory}/file-C.img` };
    await expect(qmp("blockdev-snapshot-sync", below)).rejects.toThrow("lock");
    expect(served()).toEqual(["E", "node-D", "C", "B", "A"]);
  });

  it("tells each unknown name", async () => {
    await expect(qmp("nope", {})).rejects.toMatchObject({ code: "COMMAND_NOT_FOUND" });
    await expect(qmp("block-job-pause", { device: "j" })).rejects.toMatchObject({ code: "JOB_NOT_ACTIVE" });
  });
});

describe("the lines of the human monitor", () => {
  it("info block tells one image by any of its names", async () => {
    const all = await line("info block");
    for (const name of ["virtio0", "E", "file-E.img"]) expect(await line(`info block ${name}`)).toBe(all);
    expect(await line("info block C")).toMatch(/^C: .*file-C\.img \(qcow2, read-only\)\n/);
    await expect(line("info block nosuch")).rejects.toThrow("Cannot find device, node or file 'nosuch'");
    await expect(line("info version E")).rejects.toThrow("extraneous characters at the end of line: 'E'");
  });

  it("block_stream virtio0 A", async () => {
    expect(await line("block_stream virtio0 A")).toBe("");
    await jobsEnded();
    expect(served()).toEqual(["E", "A"]);
  });

  it("block_stream node-D file-B.img", async () => {
    expect(await line("block_stream node-D file-B.img")).toBe("");
    expect(await line("info block-jobs")).toContain("Streaming device node-D: Completed");
    await jobsEnded();
    expect(served()).toEqual(["E", "node-D", "B", "A"]);
    expect(await line("info block-jobs")).toBe("No active jobs\n");
  });

  it("snapshot_blkdev virtio0 FILE qcow2, then block_stream virtio0", async () => {
    expect(await line(`snapshot_blkdev virtio0 ${directory}/disk.img qcow2`)).toBe("");
    expect(existsSync(`${directory}/disk.img`)).toBe(true);
    expect(served().slice(1)).toEqual(["E", "node-D", "C", "B", "A"]);
    expect(await line("block_stream virtio0")).toBe("");
    await jobsEnded();
    expect(served()).toEqual(["disk"]);
  });
});

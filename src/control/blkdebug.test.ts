// The fault filter in a daemon: below an image that is merged into, as a backing image, on top of all.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path, { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { chainOf } from "../block/chain.ts";
import type { BlockNode } from "../block/node.ts";
import { contentOf } from "../block/testing/array-world.ts";
import { reportChain } from "./chain-report.ts";
import type { Daemon } from "./daemon.ts";
import { runCommand } from "./dispatch.ts";
import type { JsonObject } from "./json-value.ts";
import { endDaemon, startDaemon } from "./testing/daemon-in-process.ts";
import { makeQcow2Image, makeRawImage } from "./testing/image-fixtures.ts";

const SIZE = 1024 * 1024;
let directory: string;
let daemon: Daemon;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "blkdebug-"));
  makeRawImage(`${directory}/A`, SIZE, true);
  const backing = (file: string, format: string) => ({ backing: { file, format } });
  makeQcow2Image(`${directory}/B`, SIZE, { ...backing("A", "raw"), patterned: true });
  makeQcow2Image(`${directory}/C`, SIZE, { ...backing("B", "qcow2") });
  makeQcow2Image(`${directory}/D`, SIZE, { ...backing("C", "qcow2") });
});

afterEach(async () => {
  await endDaemon(daemon);
  rmSync(directory, { recursive: true, force: true });
});

const qmp = (command: string, args: object) => runCommand(daemon, command, args as JsonObject);
const file = (name: string) => `file.driver=file,file.filename=${directory}/${name}`;
const faulty = (name: string, rules: string) =>
  `file.driver=blkdebug,file.node-name=dbg-${name},file.image.driver=file,` +
  `file.image.filename=${directory}/${name},${rules}`;
const ONCE = "file.inject-error.0.event=l2_update,file.inject-error.0.once=on";

async function jobEnds(id: string): Promise<void> {
  for (;;) {
    const job = daemon.jobs.find(id);
    if (job === undefined) return;
    await job.concluded;
    await new Promise((resolve) => setImmediate(resolve));
  }
}

describe("blkdebug", () => {
  it("below an intermediate image: it is reopened for the merge, through the filter, and back", async () => {
    daemon = await startDaemon([
      ...["--blockdev", `raw,node-name=A,read-only=on,${file("A")}`],
      ...["--blockdev", `qcow2,node-name=B,read-only=on,backing=A,${file("B")}`],
      ...["--blockdev", `qcow2,node-name=C,read-only=on,backing=B,${faulty("C", ONCE)}`],
      ...["--blockdev", `qcow2,node-name=D,backing=C,${file("D")}`],
    ]);
    const { graph } = daemon;
    const top = graph.get("D");
    const before = await contentOf(top);
    const events: string[] = [];
    daemon.events.listen(({ event, data }) => {
      if (event.startsWith("BLOCK_JOB")) events.push(`${event} ${JSON.stringify(data)}`);
    });
    await qmp("block-stream", { device: "C", base: "A", "job-id": "first" });
    await jobEnds("first");
    expect(events.at(-1)).toContain("Input/output error");
    expect(chainOf(top).map(({ name }) => name)).toEqual(["D", "C", "B", "A"]);
    await qmp("block-stream", { device: "C", base: "A", "job-id": "second" });
    await jobEnds("second");
    expect(chainOf(top).map(({ name }) => name)).toEqual(["D", "C", "A"]);
    expect(["C", "dbg-C"].map((name) => graph.get(name).readOnly)).toEqual([true, true]);
    expect((await contentOf(top)).equals(before)).toBe(true);
    expect(graph.usesOf(graph.get("dbg-C").file!).map(({ needs }) => needs)).toEqual([1]);
  });

  it("as a backing image: it is one layer, and its errors are those of the read", async () => {
    const backing = `backing.driver=blkdebug,backing.node-name=dbg,backing.image=C`;
    daemon = await startDaemon([
      ...["--blockdev", `qcow2,node-name=C,read-only=on,${file("C")}`],
      ...["--blockdev", `qcow2,node-name=D,${file("D")},${backing},backing.inject-error.0.event=none`],
      ...["--blockdev", "blkdebug,node-name=plain,image=C,read-only=on"],
    ]);
    const top = daemon.graph.get("D");
    expect(
      chainOf(top)
        .slice(0, 4)
        .map(({ filename }) => path.basename(filename)),
    ).toEqual([...["D", "C", "C", "B"]]);
    await expect(contentOf(top)).rejects.toThrow("Input/output error");
    const seen = await contentOf(daemon.graph.get("C"));
    expect((await contentOf(daemon.graph.get("plain"))).equals(seen)).toBe(true);
  });

  it("a merge from below the filter takes what it shows", async () => {
    const backing = `backing.driver=blkdebug,backing.node-name=dbg,backing.image=C`;
    daemon = await startDaemon([
      ...["--blockdev", `qcow2,node-name=C,read-only=on,${file("C")}`],
      ...["--blockdev", `qcow2,node-name=D,${file("D")},${backing}`],
    ]);
    const top = daemon.graph.get("D");
    const before = await contentOf(top);
    await qmp("block-stream", { device: "D", "job-id": "merge" });
    await jobEnds("merge");
    expect(chainOf(top).map(({ name }) => name)).toEqual(["D"]);
    expect((await contentOf(top)).equals(before)).toBe(true);
  });

  it("on top of all: the guest's requests fail, the image below does not hear of them", async () => {
    const nbd = `${directory}/nbd`;
    daemon = await startDaemon([
      ...["--blockdev", `qcow2,node-name=D,${file("D")}`],
      ...[
        "--blockdev",
        "blkdebug,node-name=dbg,image=D,inject-error.0.event=pwritev,inject-error.0.errno=28",
      ],
      ...["--nbd-server", `addr.type=unix,addr.path=${nbd}`],
      ...["--export", "nbd,id=e,node-name=dbg,writable=on"],
    ]);
    const node = daemon.graph.get("dbg");
    const before = await contentOf(daemon.graph.get("D"));
    await expect(Promise.resolve(node.write(0, 512, Buffer.alloc(512, 1), 0))).rejects.toMatchObject({
      code: "ENOSPC",
    });
    expect((await contentOf(daemon.graph.get("D"))).equals(before)).toBe(true);
  });

  it("over a host file: a merge that the host could copy still reads through it", async () => {
    const rule =
      "backing.inject-error.0.event=none,backing.inject-error.0.iotype=read,backing.inject-error.0.errno=28";
    const image = `backing.image.driver=file,backing.image.filename=${directory}/A`;
    makeQcow2Image(`${directory}/E`, SIZE, { backing: { file: "A", format: "raw" } });
    daemon = await startDaemon([
      ...["--blockdev", `qcow2,node-name=E,${file("E")},backing.driver=blkdebug,${image},${rule}`],
    ]);
    const ended: unknown[] = [];
    daemon.events.listen(({ event, data }) => {
      if (event === "BLOCK_JOB_COMPLETED") ended.push(data?.["error"]);
    });
    await qmp("block-stream", { device: "E", "job-id": "merge" });
    await jobEnds("merge");
    expect(ended).toEqual(["No space left on device"]);
    expect(chainOf(daemon.graph.get("E"))).toHaveLength(3);
  });

  it("keeps the guest when the image below it gets an overlay, and the rules with it", async () => {
    const nbd = `${directory}/nbd`;
    const rule = "inject-error.0.event=pwritev,inject-error.0.sector=8,inject-error.0.once=on";
    makeQcow2Image(`${directory}/O`, SIZE, {});
    daemon = await startDaemon([
      ...["--blockdev", `qcow2,node-name=D,${file("D")}`],
      ...["--blockdev", `blkdebug,node-name=dbg,image=D,${rule}`],
      ...["--blockdev", `qcow2,node-name=O,${file("O")}`],
      ...["--nbd-server", `addr.type=unix,addr.path=${nbd}`],
      ...["--export", "nbd,id=e,node-name=dbg,writable=on"],
    ]);
    const { graph } = daemon;
    const [dbg, below, overlay] = ["dbg", "D", "O"].map((name) => graph.get(name)) as [
      BlockNode,
      BlockNode,
      BlockNode,
    ];
    const before = await contentOf(dbg);
    // In flight while the snapshot is taken: nothing may be lost, and nobody may wait for the other.
    const writing = Promise.resolve(dbg.write(64 * 1024, 512, Buffer.alloc(512, 7), 0));
    await qmp("blockdev-snapshot", { node: "D", overlay: "O" });
    await writing;
    expect(chainOf(dbg).slice(0, 3)).toEqual([dbg, overlay, below]);
    expect([dbg, overlay, below].map(({ readOnly }) => readOnly)).toEqual([false, false, true]);
    await dbg.write(128 * 1024, 512, Buffer.alloc(512, 8), 0);
    await expect(Promise.resolve(dbg.write(4096, 512, Buffer.alloc(512, 1), 0))).rejects.toMatchObject({
      code: "EIO",
    });
    before.fill(7, 64 * 1024, 64 * 1024 + 512).fill(8, 128 * 1024, 128 * 1024 + 512);
    expect((await contentOf(overlay)).equals(before)).toBe(true);
    await qmp("block-stream", { device: "dbg", "base-node": "D", "job-id": "nothing" });
    await qmp("block-stream", { device: "dbg", "job-id": "merge" });
    await jobEnds("merge");
    expect(chainOf(dbg)).toEqual([dbg, overlay]);
    expect((await contentOf(dbg)).equals(before)).toBe(true);
  });

  it("lets its image be resized through it, and nobody else meanwhile", async () => {
    daemon = await startDaemon([
      ...["--blockdev", `qcow2,node-name=D,${file("D")}`],
      ...["--blockdev", "blkdebug,node-name=dbg,image=D"],
    ]);
    const { graph } = daemon;
    await qmp("block_resize", { "node-name": "dbg", size: 2 * SIZE });
    expect([graph.get("dbg").size, graph.get("D").size]).toEqual([2 * SIZE, 2 * SIZE]);
    const needs = graph.usesOf(graph.get("D")).map((use) => use.needs);
    await qmp("block-stream", { device: "D", "job-id": "merge", speed: 1 });
    await expect(qmp("block_resize", { "node-name": "dbg", size: 3 * SIZE })).rejects.toThrow(
      "(job 'merge')",
    );
    await qmp("block-job-cancel", { device: "merge", force: true });
    await jobEnds("merge");
    expect(graph.usesOf(graph.get("D")).map((use) => use.needs)).toEqual(needs);
  });

  it("a snapshot of it while a merge runs below leaves the image writable for the merge", async () => {
    makeQcow2Image(`${directory}/O`, SIZE, {});
    daemon = await startDaemon([
      ...["--blockdev", `qcow2,node-name=D,${file("D")}`],
      ...["--blockdev", "blkdebug,node-name=dbg,image=D"],
      ...["--blockdev", `qcow2,node-name=O,${file("O")}`],
    ]);
    const { graph } = daemon;
    const before = await contentOf(graph.get("D"));
    await qmp("block-stream", { device: "D", "job-id": "merge", speed: 1 });
    await qmp("blockdev-snapshot", { node: "dbg", overlay: "O" });
    expect(["dbg", "D"].map((name) => graph.get(name).readOnly)).toEqual([true, false]);
    await qmp("block-job-set-speed", { device: "merge", speed: 0 });
    await jobEnds("merge");
    expect(chainOf(graph.get("O")).map(({ name }) => name)).toEqual(["O", "dbg", "D"]);
    expect((await contentOf(graph.get("O"))).equals(before)).toBe(true);
  });

  it("never stands on itself", async () => {
    daemon = await startDaemon([
      ...["--blockdev", `qcow2,node-name=D,${file("D")}`],
      ...["--blockdev", "blkdebug,node-name=dbg,image=D,read-only=on"],
      ...["--blockdev", "raw,node-name=raw,file=dbg,read-only=on"],
    ]);
    const options = {
      driver: "qcow2",
      "node-name": "D",
      file: { driver: "file", filename: `${directory}/D` },
    };
    for (const backing of ["dbg", "raw"]) {
      const reopening = qmp("blockdev-reopen", { options: [{ ...options, backing }] });
      await expect(reopening).rejects.toThrow(
        `Making '${backing}' a backing child of 'D' would create a cycle`,
      );
    }
  });

  it("in a chain is told as a layer that holds nothing", async () => {
    daemon = await startDaemon([
      ...["--blockdev", `qcow2,node-name=B,read-only=on,${file("B")}`],
      ...["--blockdev", "blkdebug,node-name=dbg,image=B,read-only=on"],
    ]);
    const { layers } = await reportChain(daemon.graph.get("dbg"));
    expect(layers.map(({ driver, data, seen, shadows }) => [driver, data, seen, shadows])).toEqual([
      ["blkdebug", 0, 0, 0],
      ["qcow2", SIZE, SIZE, SIZE],
      ["raw", SIZE, 0, 0],
    ]);
  });

  it("in a backing link of an image it is refused: an image does not choose to fail", async () => {
    const image = { driver: "file", filename: `${directory}/A` };
    const link = `json:${JSON.stringify({ driver: "blkdebug", config: "/etc/hostname", image })}`;
    makeQcow2Image(`${directory}/E`, SIZE, { backing: { file: link, format: "blkdebug" } });
    daemon = await startDaemon([]);
    const options = {
      driver: "qcow2",
      "node-name": "E",
      file: { driver: "file", filename: `${directory}/E` },
    };
    await expect(qmp("blockdev-add", options)).rejects.toThrow("Unknown driver 'blkdebug' in a backing file");
  });
});

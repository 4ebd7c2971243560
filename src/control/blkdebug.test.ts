// The fault filter in a daemon: below an image that is merged into, as a backing image, on top of all.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { chainOf } from "../block/chain.ts";
import { contentOf } from "../block/testing/array-world.ts";
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
    expect(chainOf(top).map(({ name }) => name)).toEqual(["D", "dbg"]);
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

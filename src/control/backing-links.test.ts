// Links that a merge or a snapshot writes lead to what was below: whoever opens the image by its link alone
// sees the same disk.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Prng } from "../base/prng.ts";
import { contentOf } from "../block/testing/array-world.ts";
import type { Daemon } from "./daemon.ts";
import { runCommand } from "./dispatch.ts";
import type { JsonObject } from "./json-value.ts";
import { endDaemon, startDaemon } from "./testing/daemon-in-process.ts";
import { makeQcow2Image } from "./testing/image-fixtures.ts";

const SIZE = 64 * 1024;
let directory: string;
let daemon: Daemon;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "backing-links-"));
  const bytes = Buffer.alloc(3 * SIZE);
  new Prng(1).fill(bytes);
  writeFileSync(`${directory}/A`, bytes);
  writeFileSync(`${directory}/other`, bytes);
});

afterEach(async () => {
  await endDaemon(daemon);
  rmSync(directory, { recursive: true, force: true });
});

const qmp = (command: string, args: object) => runCommand(daemon, command, args as JsonObject);
const json = (options: object) => `json:${JSON.stringify(options)}`;
const named = (name: string) => ({ driver: "file", filename: `${directory}/${name}` });
const window = (name: string) => ({ driver: "raw", offset: SIZE, size: SIZE, file: named(name) });

/** What an image shows that is opened with nothing but its name, and its link. */
async function byLink(name: string): Promise<{ link: unknown; content: Buffer }> {
  await qmp("blockdev-add", { driver: "qcow2", "node-name": "again", file: named(name), "read-only": true });
  const again = daemon.graph.get("again");
  const { backingFile: link } = again.details();
  const content = await contentOf(again);
  await qmp("blockdev-del", { "node-name": "again" });
  return { link, content };
}

/** A chain of base, B and C, opened node by node; B's own link is `link`. Settles when B is merged into C. */
async function merged(link: string, base: object): Promise<Buffer> {
  makeQcow2Image(`${directory}/B`, SIZE, { backing: { file: link, format: "raw" } });
  makeQcow2Image(`${directory}/C`, SIZE, { backing: { file: "B", format: "qcow2" } });
  daemon = await startDaemon([]);
  await qmp("blockdev-add", { ...base, "node-name": "base", "read-only": true });
  const below = { driver: "qcow2", "node-name": "B", file: named("B"), backing: "base", "read-only": true };
  await qmp("blockdev-add", below);
  await qmp("blockdev-add", { driver: "qcow2", "node-name": "C", file: named("C"), backing: "B" });
  const seen = await contentOf(daemon.graph.get("C"));
  await qmp("block-stream", { "job-id": "s", device: "C", "base-node": "base", "auto-dismiss": false });
  const job = daemon.jobs.find("s")!;
  await job.concluded;
  expect(job.error).toBeUndefined();
  await qmp("job-dismiss", { id: "s" });
  await qmp("blockdev-del", { "node-name": "C" });
  return seen;
}

describe("the link that a merge writes", () => {
  it("to a window of a file says which window", async () => {
    const seen = await merged(json(window("A")), window("A"));
    expect((await byLink("C")).content.equals(seen)).toBe(true);
    expect(seen.equals(Buffer.alloc(SIZE))).toBe(false);
  });

  it.each(["A", "json"])("is not the old one where that leads elsewhere: %s", async (old) => {
    const seen = await merged(old === "A" ? old : json({ ...window("other"), offset: 0 }), window("A"));
    expect((await byLink("C")).content.equals(seen)).toBe(true);
  });

  it("is the old one where that leads there, in its own words", async () => {
    const old = json({ size: SIZE, "file.filename": `${directory}/A`, "file.driver": "file", offset: SIZE });
    const seen = await merged(old, window("A"));
    const { link, content } = await byLink("C");
    expect(link).toBe(old);
    expect(content.equals(seen)).toBe(true);
  });

  it("to an image that stands in a window of a file says so", async () => {
    makeQcow2Image(`${directory}/inner`, SIZE, { patterned: true });
    const inner = readFileSync(`${directory}/inner`);
    writeFileSync(`${directory}/box`, Buffer.concat([Buffer.alloc(SIZE), inner]));
    const box = { driver: "raw", offset: SIZE, file: named("box") };
    const seen = await merged("A", { driver: "qcow2", file: box });
    expect((await byLink("C")).content.equals(seen)).toBe(true);
    expect(seen[0]).toBe(1);
  });
});

describe("the link that a snapshot writes", () => {
  it("to a window of a file says which window", async () => {
    daemon = await startDaemon([]);
    await qmp("blockdev-add", { ...window("A"), "node-name": "disk" });
    const seen = await contentOf(daemon.graph.get("disk"));
    const snapshot = { "node-name": "disk", "snapshot-file": `${directory}/S`, "snapshot-node-name": "snap" };
    await qmp("blockdev-snapshot-sync", snapshot);
    await qmp("blockdev-del", { "node-name": "snap" });
    expect((await byLink("S")).content.equals(seen)).toBe(true);
  });
});

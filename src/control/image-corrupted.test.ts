// The event BLOCK_IMAGE_CORRUPTED and the option overlap-check, through the daemon.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { readU64, writeU64 } from "../base/bytes.ts";
import type { Daemon } from "./daemon.ts";
import { runCommand } from "./dispatch.ts";
import { endDaemon, startDaemon } from "./testing/daemon-in-process.ts";
import { makeQcow2Image } from "./testing/image-fixtures.ts";

let directory: string;
let path: string;
let daemon: Daemon;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "corrupted-"));
  path = join(directory, "disk.qcow2");
});
afterEach(async () => {
  await endDaemon(daemon);
  rmSync(directory, { recursive: true, force: true });
});

/** An image whose first entry names the place of its L1 table, in a daemon. */
async function serve(option: string) {
  makeQcow2Image(path, 1024 * 1024, { patterned: true });
  const bytes = readFileSync(path);
  const l1 = readU64(bytes, 40);
  bytes[l1] = 0;
  const l2 = readU64(bytes, l1);
  writeU64(bytes, l1, l2);
  bytes[l2]! |= 0x80;
  bytes[l1] = 0x80;
  writeFileSync(path, bytes);
  daemon = await startDaemon([
    ...["--blockdev", `qcow2,node-name=disk,file.driver=file,file.filename=${path}${option}`],
  ]);
  const events: { event: string; data: unknown }[] = [];
  daemon.events.listen(({ event, data }) => events.push({ event, data }));
  return { events, l1, node: daemon.graph.get("disk") };
}

it("a write over a table: an error, and an event as the reference sends it", async () => {
  const { node, events, l1 } = await serve(",overlap-check.template=constant");
  const write = async () => node.write(0, 4096, Buffer.alloc(4096, 1), 0);
  await expect(write()).rejects.toMatchObject({ code: "EIO" });
  const msg = "Preventing invalid write on metadata (overlaps with active L1 table)";
  const data = { device: "", "node-name": "disk", msg, offset: l1, size: 4096, fatal: true };
  expect(events).toEqual([{ event: "BLOCK_IMAGE_CORRUPTED", data }]);
  const nodes = (await runCommand(daemon, "query-named-block-nodes", {})) as { image: object }[];
  expect(JSON.stringify(nodes)).toContain('"corrupt":true');
});

it.each([",overlap-check=none", ",overlap-check.active-l1=off"])("%s is obeyed", async (option) => {
  const { node, events } = await serve(option);
  await node.write(0, 4096, Buffer.alloc(4096, 1), 0);
  expect(events).toEqual([]);
});

it("another mode is refused", async () => {
  const refused = expect(serve(",overlap-check=some")).rejects;
  await refused.toThrow("overlap-check");
  daemon = await startDaemon([]);
});

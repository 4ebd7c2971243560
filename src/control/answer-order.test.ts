// Which events are out before a command is answered: those of jobs that end by it, as in the reference.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { Daemon } from "./daemon.ts";
import { runCommand } from "./dispatch.ts";
import type { QmpEvent } from "./event-bus.ts";
import type { JsonObject } from "./json-value.ts";
import { endDaemon, startDaemon } from "./testing/daemon-in-process.ts";
import { makeQcow2Image, makeRawImage } from "./testing/image-fixtures.ts";

let directory: string;
let daemon: Daemon;
const events: QmpEvent[] = [];

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "order-"));
  makeRawImage(`${directory}/A.img`, 1024 * 1024, true);
  makeQcow2Image(`${directory}/B.img`, 1024 * 1024, { backing: { file: "A.img", format: "raw" } });
  daemon = await startDaemon([
    "--blockdev",
    `qcow2,node-name=B,file.driver=file,file.filename=${directory}/B.img`,
  ]);
  events.length = 0;
  daemon.events.listen((event) => events.push(event));
});

afterEach(async () => {
  await endDaemon(daemon);
  rmSync(directory, { recursive: true, force: true });
});

function qmp(command: string, args: object): Promise<unknown> {
  return runCommand(daemon, command, args as JsonObject);
}

const told = () => events.map(({ event, data }) => (event === "JOB_STATUS_CHANGE" ? data["status"] : event));

async function untilTold(what: string): Promise<void> {
  await expect.poll(told).toContain(what);
}

it("job-finalize: the chain has changed and the job has ended", async () => {
  await qmp("block-stream", { "job-id": "j", device: "B", "auto-finalize": false });
  await untilTold("BLOCK_JOB_PENDING");
  await qmp("job-finalize", { id: "j" });
  expect(told().slice(-3)).toEqual(["BLOCK_JOB_COMPLETED", "concluded", "null"]);
  expect(daemon.graph.get("B").backing).toBeUndefined();
});

it("job-cancel of a pending and of a paused job: it has ended", async () => {
  await qmp("block-stream", { "job-id": "j", device: "B", "auto-finalize": false });
  await untilTold("BLOCK_JOB_PENDING");
  await qmp("job-cancel", { id: "j" });
  expect(told().slice(-4)).toEqual(["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]);
  await qmp("block-stream", { "job-id": "k", device: "B", speed: 1 });
  await qmp("job-pause", { id: "k" });
  await untilTold("paused");
  await qmp("block-job-cancel", { device: "k", force: true });
  expect(told().slice(-5)).toEqual(["running", "aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]);
});

it("block-stream with nothing to copy: it has ended", async () => {
  await qmp("block-stream", { "job-id": "j", device: "B" });
  await untilTold("null");
  events.length = 0;
  await qmp("block-stream", { "job-id": "k", device: "B" });
  const whole = ["created", "running", "waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"];
  expect(told()).toEqual(whole);
});

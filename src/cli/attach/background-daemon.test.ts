import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { setImmediate as turn } from "node:timers/promises";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { AttachRecord } from "./attach-record.ts";
import { type DaemonPlan, startDaemon, stopDaemon } from "./background-daemon.ts";

/** A daemon as far as its QMP socket goes; its disk says how it behaves. */
const FAKE_SERVE = `
import { createServer } from "node:net";
import { basename } from "node:path";
const [, disk, , qmp] = process.argv.slice(2);
if (basename(disk) === "broken.qcow2") {
  console.error("opening it");
  console.error("strata: '" + basename(disk) + "' is damaged");
  process.exit(1);
}
const answers = {
  "query-named-block-nodes": [{ "node-name": "top", drv: "qcow2", file: disk }],
  "x-strata-query-devices": [{ name: "virtio0", id: "virtio0", "node-name": "top", uri: "nbd+unix:///?socket=" + qmp }],
};
const server = createServer((socket) => {
  socket.write('{"QMP": {}}\\n');
  socket.setEncoding("utf8").on("data", (text) => {
    for (const line of text.trim().split("\\n")) {
      const { execute } = JSON.parse(line);
      if (execute === "quit") process.exit(0);
      socket.write(JSON.stringify({ return: answers[execute] ?? {} }) + "\\n");
    }
  });
});
if (basename(disk) === "slow.qcow2") setInterval(() => {}, 1000);
else server.listen(qmp);
`;

let directory: string;
const started: AttachRecord[] = [];

beforeEach(() => {
  directory = mkdtempSync(path.join(tmpdir(), "strata-daemon-"));
  writeFileSync(path.join(directory, "serve.mjs"), FAKE_SERVE);
});

afterEach(async () => {
  for (const record of started.splice(0)) await stopDaemon(record);
  rmSync(directory, { recursive: true });
});

async function start(name: string, more: Partial<DaemonPlan> = {}): Promise<AttachRecord> {
  const disk = path.join(directory, name);
  writeFileSync(disk, name);
  const record = await startDaemon({
    disk,
    format: undefined,
    readOnly: false,
    environment: { runtimeDirectory: directory, uid: process.getuid!() },
    script: path.join(directory, "serve.mjs"),
    checkInterrupt() {},
    ...more,
  });
  started.push(record);
  return record;
}

const left = () => readdirSync(path.join(directory, "strata"));

it("starts a daemon that goes on alone, and ends it", async () => {
  const record = await start("disk.qcow2");
  const qmp = path.join(directory, "strata/disk.qmp");
  expect(record).toEqual({
    disk: path.join(directory, "disk.qcow2"),
    uri: `nbd+unix:///?socket=${qmp}`,
    pid: expect.any(Number),
    qmp,
    log: path.join(directory, "strata/disk.log"),
  });
  await stopDaemon(started.pop()!);
  // It has ended; that we are told so, as the ones who started it, may take a turn.
  while (existsSync(`/proc/${record.pid}`)) await turn();
  expect(existsSync(record.log)).toBe(false);
  // And once more, for one that is gone.
  await stopDaemon(record);
});

it("gives disks of one name names of their own, also at the same time", async () => {
  const records = await Promise.all([start("disk.qcow2"), start("disk.raw"), start("disk.img")]);
  expect(records.map(({ qmp }) => path.basename(qmp)).sort()).toEqual([
    "disk-2.qmp",
    "disk-3.qmp",
    "disk.qmp",
  ]);
  for (const { uri, qmp } of records) expect(uri).toBe(`nbd+unix:///?socket=${qmp}`);
});

it("tells what the daemon said when it did not start, and leaves nothing", async () => {
  await expect(start("broken.qcow2")).rejects.toThrow(/^'broken\.qcow2' is damaged$/);
  expect(left()).toEqual([]);
});

it("ends a daemon that is not ready when the user has had enough", async () => {
  let looks = 0;
  const checkInterrupt = () => {
    if (++looks === 3) throw new Error("enough");
  };
  await expect(start("slow.qcow2", { checkInterrupt })).rejects.toThrow("enough");
  expect(left()).toEqual([]);
});

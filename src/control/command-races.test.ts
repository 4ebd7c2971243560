// Two monitors at once: what a command found out before it waited may have changed when it goes on.

import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { NbdServer } from "../../nbd/server.ts";
import { BlockError } from "../base/errors.ts";
import { contentOf } from "../block/testing/array-world.ts";
import type { Daemon } from "./daemon.ts";
import { runCommand } from "./dispatch.ts";
import type { JsonObject } from "./json-value.ts";
import { endDaemon, startDaemon } from "./testing/daemon-in-process.ts";
import { makeQcow2Image } from "./testing/image-fixtures.ts";

const SIZE = 256 * 1024;
let directory: string;
let daemon: Daemon;

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "races-"));
  daemon = await startDaemon(["--nbd-server", `addr.type=unix,addr.path=${directory}/nbd`]);
});

afterEach(async () => {
  vi.restoreAllMocks();
  await endDaemon(daemon);
  rmSync(directory, { recursive: true, force: true });
});

const qmp = (command: string, args: object = {}) => runCommand(daemon, command, args as JsonObject);
const node = (name: string) => daemon.graph.get(name);
const exported = (id: string) => daemon.exports.get(id).backend.node.name;

/** Makes an image and opens it. */
async function add(
  name: string,
  options: { backing?: string; patterned?: boolean; readOnly?: boolean } = {},
) {
  const { backing, patterned = false, readOnly = false } = options;
  const file = `${directory}/${name}`;
  makeQcow2Image(file, SIZE, {
    patterned,
    ...(backing === undefined ? {} : { backing: { file: backing, format: "qcow2" } }),
  });
  await qmp("blockdev-add", {
    driver: "qcow2",
    "node-name": name,
    "read-only": readOnly,
    backing: backing ?? null,
    file: { driver: "file", filename: file },
  });
}

const serve = (name: string, more: object = {}) =>
  qmp("block-export-add", {
    type: "nbd",
    id: name.toLowerCase(),
    "node-name": name,
    writable: true,
    ...more,
  });

/** A place where somebody waits until the test lets him go. */
function gate() {
  let open = () => {};
  let arrive = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  const arrived = new Promise<void>((resolve) => {
    arrive = resolve;
  });
  const pass = () => {
    arrive();
    return opened;
  };
  return { pass, arrived, open };
}

describe("transaction", () => {
  const snapshot = (below: string, overlay: string) => ({
    type: "blockdev-snapshot",
    data: { node: below, overlay },
  });

  beforeEach(async () => {
    await add("base", { readOnly: true, patterned: true });
    await add("A");
    await add("B", { backing: "base" });
    await add("OA");
    await add("OB");
    await serve("A");
    await serve("B");
  });

  it("moves all disks or none when a job begins in the middle of it", async () => {
    const { driver } = node("A");
    const reopen = driver.setWritable.bind(driver);
    vi.spyOn(driver, "setWritable").mockImplementationOnce(async (writable) => {
      await qmp("block-stream", { "job-id": "s", device: "B", speed: 1 }).catch(() => {});
      await reopen(writable);
    });
    await qmp("transaction", { actions: [snapshot("A", "OA"), snapshot("B", "OB")] }).catch(() => {});
    expect([
      ["A", "B"],
      ["OA", "OB"],
    ]).toContainEqual([exported("a"), exported("b")]);
  });

  it("moves all disks or none when the host fails", async () => {
    const { driver } = node("B");
    const flush = driver.flush.bind(driver);
    let flushes = 0;
    vi.spyOn(driver, "flush").mockImplementation(() => {
      if (++flushes === 2) throw new BlockError("EIO", "injected");
      return flush();
    });
    await qmp("transaction", { actions: [snapshot("A", "OA"), snapshot("B", "OB")] }).catch(() => {});
    expect([
      ["A", "B"],
      ["OA", "OB"],
    ]).toContainEqual([exported("a"), exported("b")]);
  });

  it("closes all images that it has made when it fails, whatever becomes of one of them", async () => {
    const sync = (below: string, overlay: string) => ({
      type: "blockdev-snapshot-sync",
      data: { "node-name": below, "snapshot-file": `${directory}/${overlay}`, "snapshot-node-name": overlay },
    });
    const open = daemon.opener.open.bind(daemon.opener);
    vi.spyOn(daemon.opener, "open").mockImplementation(async (options) => {
      const opened = await open(options);
      if (opened.name !== "S2") return opened;
      vi.spyOn(opened.driver, "close").mockRejectedValue(new BlockError("EIO", "injected"));
      return opened;
    });
    const actions = [sync("A", "S1"), sync("B", "S2"), { type: "abort", data: {} }];
    await expect(qmp("transaction", { actions })).rejects.toThrow("Abort action");
    expect([daemon.graph.find("S1"), daemon.graph.find("S2")]).toEqual([undefined, undefined]);
  });

  it("of a disk and of a filter far above it ends, while the guest reads", async () => {
    await qmp("blockdev-add", { driver: "blkdebug", "node-name": "F1", image: "OA" });
    await qmp("blockdev-add", { driver: "blkdebug", "node-name": "F2", image: "F1" });
    await add("OF");
    await add("OA2");
    const { pass, arrived, open } = gate();
    const { driver } = node("OA");
    const read = driver.read.bind(driver);
    vi.spyOn(driver, "read").mockImplementationOnce(async (...args) => {
      await pass();
      await read(...args);
    });
    const content = Buffer.alloc(1024);
    const reads = [node("F2").read(0, 512, content, 0)];
    await arrived;
    const ended = qmp("transaction", { actions: [snapshot("OA", "OA2"), snapshot("F2", "OF")] });
    await daemon.clock.turn();
    reads.push(node("F2").read(0, 512, content, 512));
    open();
    await ended;
    await Promise.all(reads);
    expect(node("OF").backing).toBe(node("F2"));
    expect(node("F1").file).toBe(node("OA2"));
  });
});

describe("blockdev-reopen", () => {
  it("does not change the chain of a job that began while the node was drained", async () => {
    await add("B", { readOnly: true, patterned: true });
    await add("C", { backing: "B", readOnly: true });
    await add("D", { backing: "C", readOnly: true });
    await add("E", { backing: "D" });
    await add("empty", { readOnly: true });
    const { pass, arrived, open } = gate();
    const quiesce = node("D").quiesce.bind(node("D"));
    vi.spyOn(node("D"), "quiesce").mockImplementationOnce(async () => {
      await quiesce();
      await pass();
    });
    const file = { driver: "file", filename: `${directory}/D` };
    const options = { driver: "qcow2", "node-name": "D", "read-only": true, file, backing: "empty" };
    const reopened = qmp("blockdev-reopen", { options: [options] });
    const refused = expect(reopened).rejects.toThrow("is busy");
    await arrived;
    await qmp("block-stream", { "job-id": "s", device: "E", "base-node": "B", speed: 1 });
    open();
    await refused;
    expect(node("D").backing).toBe(node("C"));
  });
});

describe("a node that is opened for writing for a while", () => {
  it("is not given to a job meanwhile, which would find it closed for writing", async () => {
    await add("A", { readOnly: true, patterned: true });
    await add("B", { backing: "A", readOnly: true });
    const before = await contentOf(node("B"));
    const { driver } = node("B");
    const change = driver.changeBackingLink!.bind(driver);
    const stream = () => qmp("block-stream", { "job-id": "s", device: "B", "auto-dismiss": false });
    const link = { device: "B", "image-node-name": "B", "backing-file": `${directory}/A` };
    vi.spyOn(driver, "changeBackingLink").mockImplementationOnce(async (file, format) => {
      await change(file, format);
      await expect(stream()).rejects.toThrow("Node 'B' is busy: its backing link is being changed");
    });
    await qmp("change-backing-file", link);
    await stream();
    const job = daemon.jobs.find("s")!;
    await job.concluded;
    expect(job.error).toBeUndefined();
    expect(await contentOf(node("B"))).toEqual(before);
    expect(node("B").readOnly).toBe(true);
  });

  it("is not offered for writing at the moment when it is closed for it", async () => {
    await add("A", { readOnly: true, patterned: true });
    await add("B", { backing: "A", readOnly: true });
    const { driver } = node("B");
    const reopen = driver.setWritable.bind(driver);
    const { pass, arrived, open } = gate();
    await qmp("block-stream", { "job-id": "s", device: "B", "auto-finalize": false });
    await vi.waitFor(() => expect(daemon.jobs.find("s")?.status).toBe("pending"));
    vi.spyOn(driver, "setWritable").mockImplementationOnce(async (writable) => {
      await pass();
      await reopen(writable);
    });
    const finalized = qmp("job-finalize", { id: "s" });
    await arrived;
    const served = await serve("B").then(
      () => true,
      () => false,
    );
    open();
    await finalized;
    expect([served, node("B").readOnly]).not.toEqual([true, true]);
  });
});

it("change-backing-file leaves an image alone that was closed while it waited its turn", async () => {
  await add("A", { readOnly: true });
  await add("B", { backing: "A", readOnly: true });
  const { pass, open } = gate();
  const other = daemon.graph.exclusively(pass);
  const args = { device: "B", "image-node-name": "B", "backing-file": "elsewhere" };
  const refused = expect(qmp("change-backing-file", args)).rejects.toThrow("Cannot find device");
  await qmp("blockdev-del", { "node-name": "B" });
  open();
  await Promise.all([other, refused]);
});

describe("nbd-server-stop", () => {
  it("leaves the exports of the next server alone", async () => {
    await add("A");
    await add("B");
    await serve("A");
    const { pass, open } = gate();
    const close = NbdServer.prototype.close;
    vi.spyOn(NbdServer.prototype, "close").mockImplementationOnce(async function (this: NbdServer) {
      await pass();
      return close.call(this);
    });
    const stopped = qmp("nbd-server-stop");
    await qmp("nbd-server-start", { addr: { type: "unix", data: { path: `${directory}/second` } } });
    await serve("B");
    open();
    await stopped;
    expect(daemon.exports.entries.map(({ id }) => id)).toEqual(["b"]);
    await expect(qmp("blockdev-del", { "node-name": "B" })).rejects.toThrow("in use");
  });

  it("tells of an export that is being removed once, when it is gone", async () => {
    await add("A");
    await serve("A");
    const { pass, arrived, open } = gate();
    const { backend } = daemon.exports.get("a");
    const release = backend.release.bind(backend);
    vi.spyOn(backend, "release").mockImplementationOnce(async () => {
      await pass();
      await release();
    });
    const told: string[] = [];
    daemon.events.listen(({ event }) => told.push(event));
    const removed = qmp("block-export-del", { id: "a" });
    await arrived;
    const stopped = qmp("nbd-server-stop");
    await daemon.clock.turn();
    await daemon.clock.turn();
    expect(told).toEqual([]);
    open();
    await Promise.all([removed, stopped]);
    expect(told).toEqual(["BLOCK_EXPORT_DELETED"]);
  });
});

it("blockdev-create keeps no file open that it may not write to", async () => {
  makeQcow2Image(`${directory}/F`, SIZE, {});
  const file = { driver: "file", filename: `${directory}/F`, "read-only": true };
  await qmp("blockdev-create", { "job-id": "c", options: { driver: "qcow2", file, size: SIZE } });
  const job = daemon.jobs.find("c")!;
  await job.concluded;
  expect(job.error).toBe("Block node is read-only");
  expect([...daemon.graph.nodes]).toEqual([]);
});

it("a job does not begin on a disk that is just being closed", async () => {
  await add("base", { readOnly: true, patterned: true });
  await add("A", { backing: "base" });
  await serve("A");
  await daemon.nodes.letGo(node("A"));
  const { pass, arrived, open } = gate();
  const { driver } = node("A");
  const close = driver.close.bind(driver);
  vi.spyOn(driver, "close").mockImplementationOnce(async () => {
    await pass();
    await close();
  });
  const removed = qmp("block-export-del", { id: "a" });
  await arrived;
  await expect(qmp("block-stream", { "job-id": "s", device: "a" })).rejects.toThrow("Node 'A' was closed");
  open();
  await removed;
});

it("quit closes every image that can be closed, also where another one hangs", async () => {
  await add("A");
  await add("B");
  const { pass, arrived, open } = gate();
  const { driver } = node("B");
  const close = driver.close.bind(driver);
  vi.spyOn(driver, "close").mockImplementationOnce(async () => {
    await pass();
    await close();
  });
  const closed = vi.spyOn(node("A").driver, "close");
  const ended = daemon.shutDown();
  await arrived;
  await vi.waitFor(() => expect(closed).toHaveBeenCalled(), { timeout: 2000 });
  open();
  await ended;
});

it("chardev-add gives an id to one of two who ask for it at once", async () => {
  const socket = (name: string) => ({
    id: "c",
    backend: {
      type: "socket",
      data: { addr: { type: "unix", data: { path: `${directory}/${name}` } }, wait: false },
    },
  });
  const results = await Promise.allSettled([
    qmp("chardev-add", socket("one")),
    qmp("chardev-add", socket("two")),
  ]);
  expect(results.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
  await qmp("chardev-remove", { id: "c" });
  expect(readdirSync(directory).filter((name) => name === "one" || name === "two")).toEqual([]);
});

// The daemon as a process: in the background, with its pid file, its signals, and sockets that it connects to
// itself.

import { spawn } from "node:child_process";
import { existsSync, readFileSync, symlinkSync } from "node:fs";
import { createConnection, createServer, type Socket } from "node:net";
import path from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { NbdClient } from "../nbd/client.ts";
import { KiB, MiB } from "../src/base/units.ts";
import { Chain, checkClean, compareImages } from "./harness/chain.ts";
import {
  DAEMON_COMMAND,
  DAEMON_SCRIPT,
  IS_REFERENCE,
  nbdServerArguments,
  startDaemon,
} from "./harness/daemon.ts";
import { HmpClient } from "./harness/hmp-client.ts";
import { later, within } from "./harness/patience.ts";
import { QmpClient } from "./harness/qmp-client.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { exportArguments, serveChain } from "./harness/serve.ts";
import { run } from "./harness/tool.ts";

/** The first connection that somebody makes to a new unix socket. */
async function listen(socketPath: string): Promise<{ connection: Promise<Socket> }> {
  const server = createServer();
  const connection = new Promise<Socket>((resolve) => server.once("connection", resolve));
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  onTestFinished(() => {
    server.close();
  });
  return { connection };
}

it("runs from a checkout by its script, from any directory and through a link", async () => {
  const link = path.join(scratchDirectory(), "qemu-storage-daemon");
  symlinkSync(DAEMON_SCRIPT, link);
  expect(await run(link, "--version")).toMatch(/^strata-storage-daemon version \d+\.\d+\.\d+/);
});

it("--daemonize: the parent ends when everything is ready; the pid file tells who serves", async () => {
  const directory = scratchDirectory();
  const chain = await Chain.build(directory, { bytes: 4 * MiB, bytesPerLayer: 256 * KiB });
  const copy = await chain.copyOf("E");
  const pidFile = path.join(directory, "daemon.pid");
  const monitor = await listen(path.join(directory, "monitor.sock"));
  const [program, ...leading] = DAEMON_COMMAND;
  await run(
    program!,
    ...leading,
    ...["--daemonize", "--pidfile", pidFile],
    ...["--chardev", `socket,id=m,path=${directory}/monitor.sock`, "--monitor", "chardev=m"],
    ...nbdServerArguments(directory),
    ...chain.nodeArguments(),
    ...exportArguments("E", "disk"),
  );
  const pid = Number(readFileSync(pidFile, "utf8").trim());
  expect(process.kill(pid, 0)).toBe(true);
  onTestFinished(() => {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // It has ended, as it should.
    }
  });
  const uri = `nbd+unix:///disk?socket=${directory}/nbd.sock`;
  await compareImages(uri, copy);
  await run("qemu-io", "-f", "raw", "-c", "write -q -P 9 1M 64k", uri);
  const socket = await monitor.connection;
  const qmp = new QmpClient(socket);
  await qmp.greeting;
  const closed = new Promise((resolve) => socket.once("close", resolve));
  process.kill(pid, "SIGTERM");
  await within(closed, () => "the daemon did not end on SIGTERM");
  await run("qemu-io", "-f", "qcow2", "-r", "-U", "-c", "read -q -P 9 1M 64k", chain.file("E"));
});

it.each(["SIGTERM", "SIGINT", "SIGHUP"] as const)(
  "%s: writes are on disk, the pid file is gone",
  async (signal) => {
    const pidFile = path.join(scratchDirectory(), "daemon.pid");
    const { chain, daemon, uri } = await serveChain({
      bytes: 4 * MiB,
      bytesPerLayer: 256 * KiB,
      more: ["--pidfile", pidFile],
    });
    expect(Number(readFileSync(pidFile, "utf8"))).toBe(daemon.pid);
    await run("qemu-io", "-f", "raw", "-c", "write -q -P 9 0 2M", uri);
    process.kill(daemon.pid, signal);
    expect(await within(daemon.ended, () => `${signal} did nothing`)).toEqual({ code: 0, signal: null });
    await checkClean(chain.file("E"));
    await run("qemu-io", "-f", "qcow2", "-r", "-c", "read -q -P 9 0 2M", chain.file("E"));
    expect(existsSync(pidFile)).toBe(false);
  },
);

it("SIGTERM during a merge leaves a chain that opens", async () => {
  let copy = "";
  const { chain, daemon } = await serveChain({
    before: async (built) => {
      copy = await built.copyOf("E");
    },
  });
  await daemon.qmp.execute("block-stream", { "job-id": "m", device: "D", "base-node": "B", speed: MiB });
  process.kill(daemon.pid, "SIGTERM");
  expect(await within(daemon.ended, () => "SIGTERM did nothing")).toEqual({ code: 0, signal: null });
  for (const letter of ["D", "E"]) await checkClean(chain.file(letter));
  await compareImages(chain.file("E"), copy, "qcow2");
});

it("several monitors at once, on sockets of either side", async () => {
  const directory = scratchDirectory();
  const chain = await Chain.build(directory, { bytes: 4 * MiB, bytesPerLayer: 256 * KiB });
  const outgoing = await listen(path.join(directory, "outgoing.sock"));
  const daemon = await startDaemon(directory, [
    ...["--chardev", `socket,id=in,path=${directory}/incoming.sock,server=on,wait=off`],
    ...["--chardev", `socket,id=out,path=${directory}/outgoing.sock`],
    ...["--monitor", "chardev=in", "--monitor", "chardev=out"],
    ...chain.nodeArguments(),
  ]);
  const first = new QmpClient(await outgoing.connection);
  const second = new QmpClient(createConnection(path.join(directory, "incoming.sock")));
  for (const client of [first, second]) {
    await client.greeting;
    await client.execute("qmp_capabilities");
  }
  await first.execute("block-stream", { "job-id": "seen-by-all", device: "E" });
  for (const client of [daemon.qmp, first, second]) {
    await client.waitForEnd("seen-by-all");
    expect(client.story("seen-by-all")).toContain("BLOCK_JOB_COMPLETED");
  }
  second.close();
  await first.execute("query-jobs");
  // Another client may come after one has left.
  const third = new QmpClient(createConnection(path.join(directory, "incoming.sock")));
  await third.greeting;
  await third.execute("qmp_capabilities");
  expect(await third.execute("query-jobs")).toEqual([]);
});

it.skipIf(IS_REFERENCE)("an HMP monitor on a socket that the daemon connects to", async () => {
  const directory = scratchDirectory();
  const outgoing = await listen(path.join(directory, "outgoing.sock"));
  await startDaemon(directory, [
    ...["--chardev", `socket,id=out,path=${directory}/outgoing.sock`],
    ...["--monitor", "chardev=out,mode=readline"],
  ]);
  const hmp = await HmpClient.over(await outgoing.connection);
  expect(await hmp.type("info block-jobs")).toBe("No active jobs");
});

it("clients that come while the command line is carried out see all of it, not a part", async () => {
  const directory = scratchDirectory();
  const image = path.join(directory, "disk.img");
  await run("qemu-img", "create", "-q", "-f", "qcow2", image, "1M");
  const monitor = await listen(path.join(directory, "monitor.sock"));
  const [program, ...leading] = DAEMON_COMMAND;
  // The device that waits for its peer stands between the sockets and the export.
  const child = spawn(
    program!,
    [
      ...leading,
      ...["--chardev", `socket,id=m,path=${directory}/monitor.sock`, "--monitor", "chardev=m"],
      ...nbdServerArguments(directory),
      ...["--chardev", `socket,id=late,path=${directory}/late.sock,server=on,wait=on`],
      ...["--blockdev", `driver=qcow2,node-name=disk,file.driver=file,file.filename=${image}`],
      ...exportArguments("disk", "disk"),
    ],
    { stdio: ["ignore", "ignore", "inherit"] },
  );
  onTestFinished(() => {
    child.kill("SIGKILL");
  });
  const qmp = new QmpClient(await within(monitor.connection, () => "the daemon does not connect"));
  const negotiated = later(qmp.execute("qmp_capabilities"));
  const exports = later(qmp.execute("query-block-exports"));
  const late = path.join(directory, "late.sock");
  await within(appears(late), () => "the device that waits is not there");
  const client = later(NbdClient.connect(`nbd+unix:///disk?socket=${directory}/nbd.sock`));
  const peer = createConnection(late);
  onTestFinished(() => {
    peer.destroy();
  });
  await negotiated;
  expect(await exports).toMatchObject([{ id: "export-of-disk" }]);
  expect((await client).size).toBe(MiB);
  (await client).destroy();
});

/** Done when a file of this name is there. */
async function appears(file: string): Promise<void> {
  while (!existsSync(file)) await new Promise(setImmediate);
}

import { spawnSync } from "node:child_process";
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import {
  controlDirectory,
  findDaemon,
  makeControlDirectory,
  newSockets,
  refuseLongPath,
  socketStem,
} from "./control-directory.ts";

const uid = process.getuid!();
let runtimeDirectory: string;
let directory: string;
const servers: Server[] = [];

beforeEach(() => {
  runtimeDirectory = mkdtempSync(path.join(tmpdir(), "strata-run-"));
  directory = controlDirectory({ runtimeDirectory, uid });
  makeControlDirectory(directory, uid);
});

afterEach(() => {
  for (const server of servers.splice(0)) server.close();
  rmSync(runtimeDirectory, { recursive: true });
});

/** A socket as a killed process leaves it: bound, and nobody there. */
function leaveSocket(socket: string): void {
  const script = `require("net").createServer().listen(${JSON.stringify(socket)}, () => process.kill(process.pid, 9))`;
  spawnSync(process.execPath, ["-e", script]);
}

async function daemon(name: string): Promise<string> {
  const server = createServer();
  servers.push(server);
  const socket = path.join(directory, `${name}.qmp`);
  await new Promise<void>((resolve) => server.listen(socket, resolve));
  return socket;
}

it("stands where the environment says, and falls back by user", () => {
  expect(controlDirectory({ runtimeDirectory: "/x", uid: 5 })).toBe("/x/strata");
  expect(controlDirectory({ runtimeDirectory: undefined, uid: 0 })).toBe("/run/strata");
  expect(controlDirectory({ runtimeDirectory: "relative", uid: 5 })).toBe("/tmp/strata-5");
});

it("refuses a directory that others may write to", () => {
  chmodSync(directory, 0o777);
  expect(() => makeControlDirectory(directory, uid)).toThrow("others may write");
  expect(() => makeControlDirectory(directory, uid + 1)).toThrow("another user");
});

it("finds the only daemon, one by name, one by path of either socket", async () => {
  const socket = await daemon("vm1");
  const sockets = { qmp: socket, hmp: socket.replace(/qmp$/, "hmp") };
  const environment = { runtimeDirectory, uid };
  expect(await findDaemon(undefined, environment)).toEqual(sockets);
  expect(await findDaemon("vm1", environment)).toEqual(sockets);
  expect(await findDaemon(sockets.hmp, environment)).toEqual(sockets);
  expect(await findDaemon(sockets.qmp, environment)).toEqual(sockets);
  await daemon("vm2");
  await expect(findDaemon(undefined, environment)).rejects.toThrow("--control NAME (vm1, vm2)");
  await expect(findDaemon("vm3", environment)).rejects.toThrow(
    "no daemon is called 'vm3' (there are: vm1, vm2)",
  );
});

it("does not count sockets at which nobody listens, and gives their names to the next daemon", async () => {
  leaveSocket(path.join(directory, "disk.qmp"));
  await expect(findDaemon(undefined, { runtimeDirectory, uid })).rejects.toThrow("no daemon runs");
  const sockets = await newSockets(directory, "images/disk.qcow2");
  expect(path.basename(sockets.qmp)).toBe("disk.qmp");
  rmSync(sockets.qmp);
  await daemon("disk");
  expect(path.basename((await newSockets(directory, "disk.qcow2")).hmp)).toBe("disk-2.hmp");
});

it("makes names that a shell needs no quotes for", () => {
  expect(["/a/b c.qcow2", "...", "x.tar.gz", `${"n".repeat(60)}.img`].map(socketStem)).toEqual([
    "b-c",
    "disk",
    "x.tar",
    "n".repeat(32),
  ]);
});

it("says when a path is too long for a socket", () => {
  expect(() => refuseLongPath(`/${"x".repeat(107)}`)).toThrow("longer than 107 bytes");
  refuseLongPath(`/${"x".repeat(106)}`);
});

// Where daemons leave their control sockets, so that the other commands find them without being told.
//
//   $XDG_RUNTIME_DIR/strata, else /run/strata for root, else /tmp/strata-UID
//     NAME.qmp   QMP of one daemon; NAME is the served disk's, with a number where two are alike
//     NAME.hmp   its monitor for people
//
//   1. The directory is its owner's alone (mode 700); one that belongs to somebody else is refused: whoever
//      can write there could put a socket of his own in place of a daemon's.
//   2. A socket at which nobody listens is left over from a daemon that was killed; the next one to come
//      removes it.

import { existsSync, lstatSync, mkdirSync, readdirSync } from "node:fs";
import { createConnection } from "node:net";
import path from "node:path";
import { BlockError } from "../base/errors.ts";

/** The environment as far as it matters here. */
export interface ControlEnvironment {
  readonly runtimeDirectory: string | undefined;
  readonly uid: number;
}

export const realEnvironment = (): ControlEnvironment => ({
  runtimeDirectory: process.env["XDG_RUNTIME_DIR"],
  uid: process.getuid?.() ?? 0,
});

/** A daemon's pair of sockets. */
export interface ControlSockets {
  readonly qmp: string;
  readonly hmp: string;
}

/** A socket address holds 107 bytes; the kernel refuses a longer path without saying why. */
const SOCKET_PATH_BYTES_MAX = 107;

export function controlDirectory({ runtimeDirectory, uid }: ControlEnvironment): string {
  if (runtimeDirectory !== undefined && path.isAbsolute(runtimeDirectory)) {
    return path.join(runtimeDirectory, "strata");
  }
  return uid === 0 ? "/run/strata" : `/tmp/strata-${uid}`;
}

/** Makes the directory, or checks that the one that is there is safe to use. */
export function makeControlDirectory(directory: string, uid: number): void {
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const { mode, uid: owner } = lstatSync(directory);
  if (owner !== uid || (mode & 0o022) !== 0) {
    throw new BlockError(
      "EACCES",
      `'${directory}' belongs to another user or others may write to it: remove it, or name sockets with --control`,
    );
  }
}

/** The two sockets of a daemon whose QMP socket stands at `qmp`. */
export function socketsOf(qmp: string): ControlSockets {
  return { qmp, hmp: qmp.endsWith(".qmp") ? `${qmp.slice(0, -4)}.hmp` : `${qmp}.hmp` };
}

/** Free socket names for a daemon that serves `disk`; what stands there is a leftover of a killed daemon. */
export async function newSockets(directory: string, disk: string): Promise<ControlSockets> {
  const stem = socketStem(disk);
  for (let number = 1; ; number++) {
    const name = number === 1 ? stem : `${stem}-${number}`;
    const sockets = socketsOf(path.join(directory, `${name}.qmp`));
    if (existsSync(sockets.qmp) && (await isAlive(sockets.qmp))) continue;
    refuseLongPath(sockets.hmp);
    return sockets;
  }
}

export function refuseLongPath(socket: string): void {
  if (Buffer.byteLength(socket) <= SOCKET_PATH_BYTES_MAX) return;
  throw new BlockError(
    "EINVAL",
    `the socket path '${socket}' is longer than ${SOCKET_PATH_BYTES_MAX} bytes: choose a shorter one`,
  );
}

/** Disk name as a file name: what a shell needs no quotes for, and short. */
export function socketStem(disk: string): string {
  const base = path.basename(disk).replace(/\.[A-Za-z0-9]+$/, "");
  const stem = base.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[-.]+/, "");
  return stem === "" ? "disk" : stem.slice(0, 32);
}

/**
 * The daemon that the user means: by path of a socket, by name, or the only one that runs.
 * @throws BlockError that lists what there is to choose from
 */
export async function findDaemon(
  control: string | undefined,
  environment: ControlEnvironment,
): Promise<ControlSockets> {
  if (control !== undefined && (control.includes("/") || existsSync(control))) {
    return socketsOf(control.endsWith(".hmp") ? `${control.slice(0, -4)}.qmp` : control);
  }
  const directory = controlDirectory(environment);
  const running = await runningDaemons(directory);
  const found = control === undefined ? running : running.filter((name) => name === control);
  if (found.length === 1) return socketsOf(path.join(directory, `${found[0]}.qmp`));
  if (found.length > 1) {
    throw new BlockError(
      "EINVAL",
      `several daemons run: say which with --control NAME (${found.join(", ")})`,
    );
  }
  const what = control === undefined ? "no daemon runs" : `no daemon is called '${control}'`;
  const others = running.length === 0 ? "" : ` (there are: ${running.join(", ")})`;
  throw new BlockError(
    "ENOENT",
    `${what}${others}: start one with 'strata serve DISK', or name one with --control`,
  );
}

/** Names of the daemons that listen in the directory. */
export async function runningDaemons(directory: string): Promise<string[]> {
  if (!existsSync(directory)) return [];
  const names: string[] = [];
  for (const file of readdirSync(directory).sort()) {
    if (file.endsWith(".qmp") && (await isAlive(path.join(directory, file)))) names.push(file.slice(0, -4));
  }
  return names;
}

/** Whether somebody listens at a unix socket. */
export function isAlive(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection(socketPath);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}

// Rights of unix sockets: whoever can open one is a client of the daemon, or its master.
//
//   1. A socket is its owner's alone from its first moment on; wider rights are given afterwards, and only
//      when asked for.

import { chmodSync, lchownSync, readFileSync } from "node:fs";
import { BlockError } from "../base/errors.ts";
import { fsError } from "../sys/host-error.ts";

export interface SocketRights {
  /** Permission bits; 0o600 unless asked otherwise. */
  readonly mode: number;
  /** Group id; otherwise that of the daemon or of the directory. */
  readonly group?: number | undefined;
}

export const OWNER_ONLY: SocketRights = { mode: 0o600 };

const GROUP_FILE = "/etc/group";

/** Runs what binds a unix socket within the call. */
export function bindPrivately(bind: () => void): void {
  const before = process.umask(0o177);
  try {
    bind();
  } finally {
    process.umask(before);
  }
}

/** Gives a socket that was bound privately its rights. @throws BlockError with the host's errno */
export function grantRights(socket: string, { mode, group }: SocketRights): void {
  try {
    if (group !== undefined) lchownSync(socket, -1 >>> 0, group);
    if (mode !== OWNER_ONLY.mode) chmodSync(socket, mode);
  } catch (error) {
    throw fsError(error, `Could not give group and rights to the socket ${socket}`);
  }
}

/**
 * What --socket-mode and --socket-group mean: an octal number, and a name or number. A group without a mode
 * is to have access.
 * @throws BlockError EINVAL
 */
export function parseRights(mode: string | undefined, group: string | undefined): SocketRights {
  const gid = group === undefined ? undefined : groupId(group);
  if (mode === undefined) return { mode: group === undefined ? 0o600 : 0o660, group: gid };
  const bits = /^0?[0-7]{3}$/.test(mode) ? Number.parseInt(mode, 8) : Number.NaN;
  if ((bits & 0o600) === 0o600) return { mode: bits, group: gid };
  const expected =
    "three octal digits of which the first gives reading and writing to the owner, such as 660";
  throw new BlockError("EINVAL", `'${mode}' is no mode for a socket: expected ${expected}`);
}

function groupId(group: string): number {
  if (/^\d+$/.test(group)) return Number(group);
  const lines = readFileSync(GROUP_FILE, "utf8").split("\n");
  const fields = lines.map((line) => line.split(":")).find(([name]) => name === group);
  if (fields !== undefined) return Number(fields[2]);
  throw new BlockError("EINVAL", `there is no group '${group}' in ${GROUP_FILE}; give its number`);
}

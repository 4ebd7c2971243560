// Listening sockets: the one place of this folder that touches the host's names.

import fs from "node:fs";
import net from "node:net";
import { BlockError, errorMessage } from "../src/base/errors.ts";

/** Where a server listens: a unix socket's path, or a TCP address (port 0: any free one). */
export type ListenAddress = { readonly path: string } | { readonly host: string; readonly port: number };

/** Connections that the system keeps until they are accepted. */
const BACKLOG = 128;

export interface Listener {
  /** The address with the port that was really taken. */
  readonly address: ListenAddress;
  /** Stops listening and removes a unix socket's name. */
  close(): Promise<void>;
}

/**
 * Listens and hands over sockets that have not begun to read. A unix socket's name that nobody listens on any more is
 * taken over.
 * @throws BlockError EADDRINUSE and what else the host says.
 */
export async function listen(
  address: ListenAddress,
  accept: (socket: net.Socket) => void,
  failed: (error: Error) => void,
): Promise<Listener> {
  if ("path" in address) await removeStale(address.path);
  const server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true }, accept);
  const where = "path" in address ? { path: address.path } : { host: address.host, port: address.port };
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error) => reject(listenError(address, error)));
    server.listen({ ...where, backlog: BACKLOG }, resolve);
  });
  server.removeAllListeners("error");
  server.on("error", failed);
  const bound = server.address();
  return {
    address:
      "path" in address || typeof bound !== "object" ? address : { host: address.host, port: bound!.port },
    close: () => new Promise((resolve) => server.close(() => resolve())),
  };
}

function listenError(address: ListenAddress, error: NodeJS.ErrnoException): BlockError {
  const where = "path" in address ? `unix socket ${address.path}` : `${address.host}:${address.port}`;
  if (error.code === "EADDRINUSE") {
    const hint = "another server listens there; stop it or choose another address";
    return new BlockError("EADDRINUSE", `cannot listen on ${where}: address already in use (${hint})`, error);
  }
  const code = error.code === "EACCES" || error.code === "ENOENT" ? error.code : "EINVAL";
  return new BlockError(code, `cannot listen on ${where}: ${errorMessage(error)}`, error);
}

/** Removes the name of a unix socket that refuses connections: its server ended without removing it. */
async function removeStale(path: string): Promise<void> {
  if (!fs.lstatSync(path, { throwIfNoEntry: false })?.isSocket()) return;
  const refused = await new Promise<boolean>((resolve) => {
    const probe = net.connect({ path });
    probe.once("connect", () => resolve(false));
    probe.once("error", (error: NodeJS.ErrnoException) => resolve(error.code === "ECONNREFUSED"));
    probe.once("connect", () => probe.destroy());
  });
  if (refused) fs.rmSync(path, { force: true });
}

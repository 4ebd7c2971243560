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
 * Listens and hands over sockets that have not begun to read. `bindSocket` runs what binds a unix socket.
 * @throws BlockError EADDRINUSE and what else the host says.
 */
export async function listen(
  address: ListenAddress,
  accept: (socket: net.Socket) => void,
  failed: (error: Error) => void,
  bindSocket: (bind: () => void) => void = (bind) => bind(),
): Promise<Listener> {
  const server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true }, accept);
  const where = "path" in address ? { path: address.path } : { host: address.host, port: address.port };
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error) => reject(listenError(address, error)));
    const bind = () => void server.listen({ ...where, backlog: BACKLOG }, resolve);
    // Node binds a unix socket before `listen` returns; a TCP address it may have to look up first.
    if ("path" in address) bindSocket(bind);
    else bind();
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
    const hint = "stop the server that listens there, remove the socket it left, or choose another address";
    return new BlockError("EADDRINUSE", `cannot listen on ${where}: address already in use (${hint})`, error);
  }
  const code = error.code === "EACCES" || error.code === "ENOENT" ? error.code : "EINVAL";
  return new BlockError(code, `cannot listen on ${where}: ${errorMessage(error)}`, error);
}

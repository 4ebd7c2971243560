// A monitor's unix socket for any number of people and programs at a time: while one watches a job, others
// give commands. (A character device, as the daemon's own command line makes them, has one peer at a time.)
// The socket is its owner's alone.

import net from "node:net";
import type { Frontend } from "../control/chardev/chardev.ts";
import { bindError, removeStale } from "../control/chardev/socket-address.ts";
import { bindPrivately } from "../control/socket-rights.ts";

/** Clients at a time; more are hung up on. */
const CLIENTS_MAX = 64;

export class MonitorListener {
  readonly #server: net.Server;
  readonly #clients: Set<net.Socket>;

  private constructor(server: net.Server, clients: Set<net.Socket>) {
    this.#server = server;
    this.#clients = clients;
  }

  /** Listens; a socket that a killed process left behind is taken over. @throws BlockError EADDRINUSE ... */
  static async open(path: string, frontend: Frontend): Promise<MonitorListener> {
    const address = { kind: "unix", path } as const;
    await removeStale(address);
    const clients = new Set<net.Socket>();
    const server = net.createServer({ pauseOnConnect: true }, (socket) => {
      socket.on("error", () => socket.destroy());
      if (clients.size >= CLIENTS_MAX) {
        socket.destroy();
        return;
      }
      clients.add(socket);
      socket.once("close", () => clients.delete(socket));
      frontend.opened({ input: socket, output: socket, close: () => socket.destroySoon() });
    });
    await new Promise<void>((resolve, reject) => {
      server.once("error", (error) => reject(bindError(address, error)));
      bindPrivately(() => void server.listen({ path }, resolve));
    });
    server.on("error", () => undefined);
    return new MonitorListener(server, clients);
  }

  /** Lets the clients have what was written for them, hangs up, and removes the socket. */
  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const client of this.#clients) client.destroySoon();
    await closed;
  }
}

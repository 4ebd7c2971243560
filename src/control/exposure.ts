// What a TCP listener gives away to whoever can reach it.

import net from "node:net";
import { OWNER_ONLY, type SocketRights } from "./socket-rights.ts";

/** How the daemon's listeners treat the world. */
export interface ListeningRules {
  /** Of unix sockets. */
  readonly rights: SocketRights;
  /** The user knows that listeners on TCP are open to others: no warnings. */
  readonly insecure: boolean;
}

export const CAREFUL: ListeningRules = { rights: OWNER_ONLY, insecure: false };

/** Whether only this machine reaches the address; a name other than localhost is not looked up: no. */
export function isLoopback(host: string): boolean {
  const plain = host.replace(/^::ffff:/i, "");
  if (net.isIPv4(plain)) return plain.startsWith("127.");
  return host === "::1" || host.toLowerCase() === "localhost";
}

export type Listener = "nbd" | "monitor";

const GIVEN_AWAY: Readonly<Record<Listener, string>> = {
  nbd: "whoever reaches it can read and write its disks; use TLS (tls-creds), a loopback address or a unix socket",
  monitor:
    "with it goes all that the daemon can do, and it asks for no password; use a unix socket or a loopback address",
};

/** The warning for a listener on TCP, undefined where none is due. */
export function exposure(listener: Listener, host: string, port: number): string | undefined {
  if (isLoopback(host)) return undefined;
  const what = listener === "nbd" ? "NBD server without TLS" : "monitor";
  return `${what} on ${host}:${port}: ${GIVEN_AWAY[listener]} (--insecure says that this is meant)`;
}

// Makes chardevs of their options: QAPI's ChardevBackend, which --chardev is turned into as well.

import type { Clock } from "../../base/clock.ts";
import { BlockError } from "../../base/errors.ts";
import type { chardevBackend } from "../qapi/chardev.ts";
import type { Infer } from "../qapi/types.ts";
import type { Chardev } from "./chardev.ts";
import type { SocketAddress } from "./socket-address.ts";
import { SocketChardev } from "./socket-chardev.ts";
import { FileChardev, NullChardev, StdioChardev } from "./stream-chardevs.ts";

export type ChardevBackend = Infer<typeof chardevBackend>;
type SocketBackend = Extract<ChardevBackend, { type: "socket" }>["data"];

/**
 * Opens the device; a server that is to wait for its first peer is waited for. `listening` is told where a
 * server listens, before anybody is waited for. @throws BlockError in QEMU's words
 */
export async function openChardev(
  id: string,
  backend: ChardevBackend,
  clock: Clock,
  listening: (address: SocketAddress) => void = () => {},
): Promise<Chardev> {
  switch (backend.type) {
    case "socket":
      return openSocket(id, backend.data, clock, listening);
    case "stdio":
      return new StdioChardev(id);
    case "file":
      return new FileChardev(id, backend.data.out, backend.data.append ?? false);
    case "null":
      return new NullChardev(id);
  }
}

async function openSocket(
  id: string,
  data: SocketBackend,
  clock: Clock,
  listening: (address: SocketAddress) => void,
): Promise<Chardev> {
  const server = data.server ?? true;
  refuseSocketOptions(data, server);
  const reconnectMs = data["reconnect-ms"] ?? (data.reconnect ?? 0) * 1000;
  const settings = { id, address: toAddress(data.addr), server, reconnectMs };
  const chardev = await SocketChardev.open(settings, clock);
  try {
    if (server) listening(chardev.address);
  } catch (error) {
    await chardev.close();
    throw error;
  }
  if (server && data.wait !== false) await chardev.firstPeer();
  return chardev;
}

function refuseSocketOptions(data: SocketBackend, server: boolean): void {
  const fail = (message: string) => {
    throw new BlockError("EINVAL", message);
  };
  if (server && (data.reconnect ?? data["reconnect-ms"] ?? 0) > 0) {
    fail("'reconnect' option is incompatible with socket in server listen mode");
  }
  if (!server && data.wait !== undefined)
    fail("'wait' option is incompatible with socket in client connect mode");
  if (data["tls-creds"] !== undefined) fail("TLS is not supported on character devices");
  if (data.websocket === true) fail("websockets are not supported on character devices");
  if (data.telnet === true || data.tn3270 === true) fail("telnet is not supported on character devices");
}

type AddressOptions = SocketBackend["addr"];

/** The address that QAPI's union means. @throws BlockError in QEMU's words */
export function toAddress(addr: AddressOptions): SocketAddress {
  if (addr.type === "unix") {
    // Node pads such names with NULs, so that clients of the reference would not find them.
    if (addr.data.abstract === true)
      throw new BlockError("ENOTSUP", "abstract socket names are not supported");
    return { kind: "unix", path: addr.data.path };
  }
  if (addr.type === "fd") {
    if (!/^\d+$/.test(addr.data.str))
      throw new BlockError("EINVAL", `Unable to parse FD number ${addr.data.str}`);
    return { kind: "fd", fd: Number(addr.data.str) };
  }
  const { host, port, to } = addr.data;
  const first = toPort(host, port);
  // The reference finds no socket to create in an empty range.
  if (to !== undefined && !(to >= first && to <= 65535)) {
    throw new BlockError("EINVAL", `Failed to create a socket: there is no port from ${first} to ${to}`);
  }
  return {
    kind: "inet",
    host: host === "" ? "0.0.0.0" : host,
    port: first,
    ...(to === undefined ? {} : { to }),
  };
}

/** A number, or the service of this protocol. @throws BlockError in QEMU's words */
function toPort(host: string, port: string): number {
  if (/^\d+$/.test(port) && Number(port) <= 65535) return Number(port);
  if (port === "nbd") return NBD_PORT;
  throw new BlockError(
    "EINVAL",
    `address resolution failed for ${host}:${port}: Servname not supported for ai_socktype`,
  );
}

/** The one service name that host files list and people use here. */
const NBD_PORT = 10809;

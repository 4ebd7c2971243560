import fs from "node:fs";
import net from "node:net";
import { constants } from "node:os";
import { dirname } from "node:path";
import { BlockError } from "../../base/errors.ts";
import { fsError } from "../../sys/host-error.ts";

/** Where a socket listens or connects. */
export type SocketAddress =
  | { readonly kind: "unix"; readonly path: string }
  | {
      readonly kind: "inet";
      readonly host: string;
      readonly port: number;
      /** Last port to try, where others are taken. */
      readonly to?: number;
    }
  | { readonly kind: "fd"; readonly fd: number };

/**
 * Listens at the address; where it has a range of ports, at the first one that nobody has taken.
 * @throws what `listen` threw last
 */
export async function onFreePort<T>(
  address: SocketAddress,
  listen: (address: SocketAddress) => Promise<T>,
): Promise<T> {
  if (address.kind !== "inet" || address.to === undefined) return listen(address);
  for (let port = address.port; ; port++) {
    try {
      return await listen({ ...address, port });
    } catch (error) {
      if ((error as { code?: unknown }).code !== "EADDRINUSE" || port >= address.to) throw error;
    }
  }
}

/** The error for an address that cannot be listened on, in QEMU's words. */
export function bindError(address: SocketAddress, error: unknown): BlockError {
  const code = (error as NodeJS.ErrnoException).code;
  if (address.kind === "unix") {
    const what = `Failed to bind socket to ${address.path}`;
    if (code === "EADDRINUSE") return new BlockError("EADDRINUSE", `${what}: Address already in use`, error);
    return fsError(unixError(address.path, error), what);
  }
  if (address.kind === "fd") return fsError(error, `Failed to listen on descriptor ${address.fd}`);
  if (code === "EADDRINUSE") {
    return new BlockError(
      "EADDRINUSE",
      `Failed to find an available port: Address already in use (${address.host}:${address.port})`,
      error,
    );
  }
  if (code === "ENOTFOUND" || code === "EAI_AGAIN") {
    const place = `${address.host}:${address.port}`;
    return new BlockError(
      "EINVAL",
      `address resolution failed for ${place}: ${code === "ENOTFOUND" ? "Name or service not known" : "Temporary failure in name resolution"}`,
      error,
    );
  }
  return fsError(error, `Failed to listen on ${address.host}:${address.port}`);
}

/** Node reports a directory that is not there as EACCES. */
function unixError(path: string, error: unknown): unknown {
  const isMissing = (error as NodeJS.ErrnoException).code === "EACCES" && !fs.existsSync(dirname(path));
  return isMissing ? { errno: -constants.errno.ENOENT } : error;
}

/**
 * Removes the name of a unix socket at which nobody listens: it is left over from a server that was killed.
 */
export async function removeStale(address: SocketAddress): Promise<void> {
  if (address.kind !== "unix") return;
  const { path } = address;
  if (!fs.lstatSync(path, { throwIfNoEntry: false })?.isSocket()) return;
  const refused = await new Promise<boolean>((resolve) => {
    const probe = net.connect({ path });
    probe.once("connect", () => {
      probe.destroy();
      resolve(false);
    });
    probe.once("error", (error: NodeJS.ErrnoException) => resolve(error.code === "ECONNREFUSED"));
  });
  if (refused) fs.rmSync(path, { force: true });
}

// NBD URIs, as NetworkBlockDevice/nbd doc/uri.md defines them:
//   nbd://host[:port]/export      nbd+unix:///export?socket=/path

import { BlockError } from "../src/base/errors.ts";
import type { ListenAddress } from "./listen.ts";

export const NBD_PORT = 10809;

/** An export on a server. */
export interface NbdTarget {
  readonly address: ListenAddress;
  readonly exportName: string;
}

/** @throws BlockError EINVAL for what is no NBD URI, ENOTSUP for TLS and vsock. */
export function parseNbdUri(uri: string): NbdTarget {
  const match = /^([a-z+]+):\/\/([^/?#]*)(?:\/([^?#]*))?(?:\?([^#]*))?$/i.exec(uri);
  if (match === null)
    throw invalid(uri, "expected nbd://host[:port]/export or nbd+unix:///export?socket=PATH");
  const [, scheme, authority, path, query] = match;
  const exportName = decoded(uri, path ?? "");
  switch (scheme!.toLowerCase()) {
    case "nbd":
    case "nbd+tcp":
      return { address: tcpAddress(uri, authority!), exportName };
    case "nbd+unix": {
      const socket = queryValue(uri, query ?? "", "socket");
      if (authority !== "" || socket === undefined || socket === "") {
        throw invalid(uri, "nbd+unix needs no host but ?socket=PATH");
      }
      return { address: { path: socket }, exportName };
    }
    case "nbds":
    case "nbds+unix":
      throw new BlockError(
        "ENOTSUP",
        `'${uri}': TLS is not supported here, nor by the kernel's driver; use a unix socket or a tunnel`,
      );
    default:
      throw new BlockError("ENOTSUP", `'${uri}': scheme ${scheme} is not supported; use nbd or nbd+unix`);
  }
}

/** The URI that {@link parseNbdUri} reads as `target`. */
export function formatNbdUri({ address, exportName }: NbdTarget): string {
  const path = exportName.split("/").map(encodeURIComponent).join("/");
  if ("path" in address) {
    const socket = address.path.split("/").map(encodeURIComponent).join("/");
    return `nbd+unix:///${path}?socket=${socket}`;
  }
  const host = address.host.includes(":") ? `[${address.host}]` : address.host;
  const port = address.port === NBD_PORT ? "" : `:${address.port}`;
  return `nbd://${host}${port}${path === "" ? "" : `/${path}`}`;
}

function tcpAddress(uri: string, authority: string): ListenAddress {
  const match = /^(?:\[([0-9a-f:.]+)\]|([^:[\]@]*))(?::(\d{1,5}))?$/i.exec(authority);
  if (match === null) throw invalid(uri, "bad host or port");
  const port = match[3] === undefined ? NBD_PORT : Number(match[3]);
  if (port < 1 || port > 65535) throw invalid(uri, "the port is not between 1 and 65535");
  const host = match[1] ?? match[2]!;
  return { host: host === "" ? "localhost" : host, port };
}

function queryValue(uri: string, query: string, key: string): string | undefined {
  for (const pair of query.split(/[&;]/)) {
    const equals = pair.indexOf("=");
    if (equals > 0 && pair.slice(0, equals) === key) return decoded(uri, pair.slice(equals + 1));
  }
  return undefined;
}

function decoded(uri: string, text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid(uri, "broken percent encoding");
  }
}

function invalid(uri: string, reason: string): BlockError {
  return new BlockError("EINVAL", `'${uri}' is no NBD URI: ${reason}`);
}

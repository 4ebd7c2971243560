// Options of exports and of the NBD server, in QAPI's names.

import { alternate, array, bool, enumeration, int, str, struct, uint32, union } from "./types.ts";

const inetMembers = {
  host: str,
  port: str,
  "?numeric": bool,
  "?to": int,
  "?ipv4": bool,
  "?ipv6": bool,
  "?keep-alive": bool,
  "?mptcp": bool,
} as const;

const inetAddress = struct(
  "InetSocketAddress",
  "A TCP address; port may be a number or a service.",
  inetMembers,
);

const unixAddress = struct("UnixSocketAddress", "A unix socket.", {
  path: str,
  "?abstract": bool,
  "?tight": bool,
});

const fdAddress = struct("FdSocketAddress", "An open descriptor by number.", { str });

const addressKind = enumeration("SocketAddressType", ["inet", "unix", "fd"]);

/** An address as `--nbd-server` takes it: members side by side. */
export const socketAddress = union(
  "SocketAddress",
  "Where a server listens or a client connects.",
  struct("SocketAddressBase", "", { type: addressKind }),
  "type",
  { inet: inetAddress, unix: unixAddress, fd: fdAddress },
);

/** The same as `nbd-server-start` and `chardev-add` take it: members in `data`. */
export const socketAddressLegacy = union(
  "SocketAddressLegacy",
  "As SocketAddress, with the members in `data`.",
  struct("SocketAddressLegacyBase", "", { type: addressKind }),
  "type",
  {
    inet: struct("InetSocketAddressWrapper", "", { data: inetAddress }),
    unix: struct("UnixSocketAddressWrapper", "", { data: unixAddress }),
    fd: struct("FdSocketAddressWrapper", "", { data: fdAddress }),
  },
);

const serverMembers = {
  "?handshake-max-seconds": uint32,
  "?tls-creds": str,
  "?tls-authz": str,
  "?max-connections": uint32,
} as const;

export const nbdServerOptions = struct("NbdServerOptions", "What --nbd-server takes.", {
  ...serverMembers,
  addr: socketAddress,
});

export const nbdServerOptionsLegacy = struct("NbdServerOptionsLegacy", "What nbd-server-start takes.", {
  ...serverMembers,
  addr: socketAddressLegacy,
});

const bitmapRef = alternate<string | { readonly node: string; readonly name: string }>(
  "BlockDirtyBitmapOrStr",
  "A bitmap by name, or by node and name.",
  () => [struct("BlockDirtyBitmap", "", { node: str, name: str }), str],
);

const nbdMembers = { "?name": str, "?description": str } as const;

const nbdExport = struct(
  "BlockExportOptionsNbd",
  "An NBD export. `name` is the node's name where it is not given.",
  {
    ...nbdMembers,
    "?bitmaps": array(bitmapRef),
    "?allocation-depth": bool,
  },
);

export const exportType = enumeration("BlockExportType", ["nbd"]);

/** What `block-export-add` takes. */
export const exportOptions = union(
  "BlockExportOptions",
  "A node offered to others.",
  struct("BlockExportOptionsBase", "What every kind of export takes.", {
    type: exportType,
    id: str,
    "?fixed-iothread": bool,
    "?iothread": str,
    "node-name": str,
    "?writable": bool,
    "?writethrough": bool,
    "?allow-inactive": bool,
  }),
  "type",
  { nbd: nbdExport },
);

export const nbdServerAddOptions = struct("NbdServerAddOptions", "What nbd-server-add takes.", {
  ...nbdMembers,
  device: str,
  "?writable": bool,
  "?bitmap": str,
});

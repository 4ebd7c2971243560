// Options of character devices, in QAPI's names.

import { socketAddressLegacy } from "./export.ts";
import { bool, enumeration, int, str, struct, union } from "./types.ts";

const common = { "?logfile": str, "?logappend": bool } as const;

function wrapped<const M extends Parameters<typeof struct>[2]>(name: string, doc: string, members: M) {
  return struct(`${name}Wrapper`, doc, { data: struct(name, doc, { ...members, ...common }) });
}

const socket = wrapped("ChardevSocket", "A unix or TCP socket, as server (the default) or client.", {
  addr: socketAddressLegacy,
  "?tls-creds": str,
  "?tls-authz": str,
  "?server": bool,
  "?wait": bool,
  "?nodelay": bool,
  "?telnet": bool,
  "?tn3270": bool,
  "?websocket": bool,
  "?reconnect": int,
  "?reconnect-ms": int,
});

/** `backend` of `chardev-add`. */
export const chardevBackend = union(
  "ChardevBackend",
  "What stands behind a character device.",
  struct("ChardevBackendBase", "", {
    type: enumeration("ChardevBackendKind", ["socket", "stdio", "file", "null"]),
  }),
  "type",
  {
    socket,
    stdio: wrapped("ChardevStdio", "Standard input and output.", { "?signal": bool }),
    file: wrapped("ChardevFile", "A file that is written.", { "?in": str, out: str, "?append": bool }),
    null: wrapped("ChardevCommon", "Nothing: what is written is gone.", {}),
  },
);

// --chardev, whose syntax is older than key=value: a name alone means on, "noname" means off, nothing is
// nested.
//
//   socket,id=mon,path=/run/qmp.sock,server=on,wait=off      socket,id=mon,path=/run/qmp.sock,server,nowait

import { BlockError } from "../../base/errors.ts";
import { isIdentifier } from "../identifiers.ts";
import type { ChardevBackend } from "./backend.ts";

/** What --chardev takes, by kind: names that mean text, and names that mean on or off. */
const TEXTS: readonly string[] = [
  "backend",
  "id",
  "path",
  "fd",
  "host",
  "port",
  "to",
  "logfile",
  "tls-creds",
  "tls-authz",
  "reconnect",
  "reconnect-ms",
  "input-path",
];
const SWITCHES: readonly string[] = [
  "server",
  "wait",
  "delay",
  "nodelay",
  "ipv4",
  "ipv6",
  "telnet",
  "tn3270",
  "websocket",
  "signal",
  "append",
  "logappend",
  "abstract",
  "tight",
  "mux",
];

type Options = ReadonlyMap<string, string>;

/** @throws BlockError EINVAL in QEMU's words */
export function parseChardevOption(text: string): { id: string; backend: ChardevBackend } {
  const options = splitOptions(text);
  for (const [name, value] of options) checkOption(name, value);
  const id = options.get("id");
  if (id !== undefined && !isIdentifier(id)) {
    throw new BlockError("EINVAL", "Parameter 'id' expects an identifier");
  }
  const kind = options.get("backend");
  if (kind === undefined) throw new BlockError("EINVAL", 'chardev: "backend" is missing');
  if (id === undefined) throw new BlockError("EINVAL", "chardev: no id specified");
  return { id, backend: toBackend(kind, options) };
}

function splitOptions(text: string): Map<string, string> {
  const options = new Map<string, string>();
  // A doubled comma is part of a value; a single one ends it.
  const parts = text.match(/(?:[^,]|,,)+/g) ?? [];
  parts.forEach((part, position) => {
    const plain = part.replaceAll(",,", ",");
    const equals = plain.indexOf("=");
    if (equals >= 0) options.set(plain.slice(0, equals), plain.slice(equals + 1));
    else if (position === 0) options.set("backend", plain);
    else if (plain.startsWith("no") && SWITCHES.includes(plain.slice(2)) && plain !== "nodelay") {
      options.set(plain.slice(2), "off");
    } else options.set(plain, "on");
  });
  return options;
}

function checkOption(name: string, value: string): void {
  if (TEXTS.includes(name)) return;
  if (!SWITCHES.includes(name)) throw new BlockError("EINVAL", `Invalid parameter '${name}'`);
  if (!isOn(value) && !isOff(value))
    throw new BlockError("EINVAL", `Parameter '${name}' expects 'on' or 'off'`);
}

function toBackend(kind: string, options: Options): ChardevBackend {
  switch (kind) {
    case "socket":
      return { type: "socket", data: socketData(options) };
    case "stdio":
      return { type: "stdio", data: {} };
    case "null":
      return { type: "null", data: {} };
    case "file": {
      const out = options.get("path");
      if (out === undefined) throw new BlockError("EINVAL", "chardev: file: no filename given");
      return { type: "file", data: { out, append: isOn(options.get("append") ?? "off") } };
    }
    default:
      throw new BlockError("EINVAL", `'${kind}' is not a valid char driver name`);
  }
}

function socketData(options: Options): Extract<ChardevBackend, { type: "socket" }>["data"] {
  const flag = (name: string) => {
    const value = options.get(name);
    return value === undefined ? {} : { [name]: isOn(value) };
  };
  const number = (name: string) => {
    const value = options.get(name);
    if (value === undefined) return {};
    if (!/^\d+$/.test(value)) throw new BlockError("EINVAL", `Parameter '${name}' expects a number`);
    return { [name]: Number(value) };
  };
  const text = (name: string) => (options.has(name) ? { [name]: options.get(name) } : {});
  return {
    addr: socketAddress(options),
    // Unlike in QAPI, a socket is a client unless it is said to be a server.
    server: isOn(options.get("server") ?? "off"),
    ...flag("wait"),
    ...flag("telnet"),
    ...flag("tn3270"),
    ...flag("websocket"),
    ...number("reconnect"),
    ...number("reconnect-ms"),
    ...text("tls-creds"),
  };
}

function socketAddress(options: Options) {
  const path = options.get("path");
  const host = options.get("host");
  const fd = options.get("fd");
  if ([path, host, fd].filter((one) => one !== undefined).length > 1) {
    throw new BlockError("EINVAL", "None or one of 'path', 'fd' or 'host' option required.");
  }
  if (path !== undefined) {
    return { type: "unix", data: { path, abstract: isOn(options.get("abstract") ?? "off") } } as const;
  }
  if (host === undefined && !options.has("port")) return { type: "fd", data: { str: fd ?? "" } } as const;
  const port = options.get("port");
  if (port === undefined) throw new BlockError("EINVAL", "chardev: socket: no port given");
  const to = options.get("to");
  return {
    type: "inet",
    data: { host: host ?? "", port, ...(to === undefined ? {} : { to: Number(to) }) },
  } as const;
}

function isOn(value: string): boolean {
  return ["on", "yes", "true", "y"].includes(value);
}

function isOff(value: string): boolean {
  return ["off", "no", "false", "n"].includes(value);
}

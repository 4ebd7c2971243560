import { BlockError } from "../../base/errors.ts";
import { toAddress } from "../chardev/backend.ts";
import { type Command, command } from "../command.ts";
import type { Daemon } from "../daemon.ts";
import {
  exportOptions,
  nbdServerAddOptions,
  type nbdServerOptions,
  nbdServerOptionsLegacy,
} from "../qapi/export.ts";
import { blockExportInfo } from "../qapi/results.ts";
import { array, empty, enumeration, type Infer, str, struct } from "../qapi/types.ts";
import { nbdPolicy } from "../tls/nbd-policy.ts";

/** What is common to both spellings of the server's options. */
type ServerOptions = Omit<Infer<typeof nbdServerOptions>, "addr"> & {
  readonly addr: Infer<typeof nbdServerOptionsLegacy>["addr"];
};

/** @throws BlockError in QEMU's words */
export async function startNbdServer(daemon: Daemon, options: ServerOptions): Promise<void> {
  const { "tls-creds": creds, "tls-authz": authz } = options;
  const tls = nbdPolicy(daemon.objects, { creds, authz }, daemon.logger);
  const handshakeSeconds = options["handshake-max-seconds"];
  await daemon.exports.startServer({
    address: toAddress(options.addr),
    maxConnections: options["max-connections"],
    handshakeMs: handshakeSeconds === undefined ? undefined : handshakeSeconds * 1000,
    tls,
  });
}

/** @throws BlockError in QEMU's words */
export async function addExport(daemon: Daemon, options: Infer<typeof exportOptions>): Promise<void> {
  daemon.exports.checkId(options.id);
  const node = daemon.lookUp(undefined, options["node-name"]);
  if (options.iothread !== undefined) daemon.objects.checkIothread(options.iothread);
  refuseBitmaps(options.bitmaps?.map((bitmap) => (typeof bitmap === "string" ? bitmap : bitmap.name)));
  await daemon.exports.add({
    id: options.id,
    name: options.name ?? options["node-name"],
    node,
    writable: options.writable ?? false,
    description: options.description,
    allocationDepth: options["allocation-depth"] ?? false,
  });
}

function refuseBitmaps(bitmaps: readonly string[] = []): void {
  for (const bitmap of bitmaps) throw new BlockError("EINVAL", `Bitmap '${bitmap}' is not found`);
}

async function addLegacyExport(daemon: Daemon, args: Infer<typeof nbdServerAddOptions>): Promise<void> {
  const node = daemon.nodeOrDevice(args.device);
  refuseBitmaps(args.bitmap === undefined ? [] : [args.bitmap]);
  const id = args.name ?? args.device;
  daemon.exports.checkId(id);
  await daemon.exports.add({
    id,
    name: id,
    node,
    // As in the reference, a read-only node is served read-only whatever is asked for.
    writable: (args.writable ?? false) && !node.readOnly,
    description: args.description,
    allocationDepth: false,
  });
}

const removeMode = enumeration("BlockExportRemoveMode", ["safe", "hard"]);

export const EXPORT_COMMANDS: readonly Command[] = [
  command({
    name: "nbd-server-start",
    doc: "Starts the NBD server: one at a time.",
    data: nbdServerOptionsLegacy,
    run: startNbdServer,
  }),
  command({
    name: "nbd-server-stop",
    doc: "Stops the NBD server: clients are disconnected, exports deleted.",
    data: empty,
    run: (daemon) => daemon.exports.stopServer(),
  }),
  command({
    name: "nbd-server-add",
    doc: "Offers a node under its own name, or under `name`. block-export-add can do more.",
    data: nbdServerAddOptions,
    run: addLegacyExport,
  }),
  command({
    name: "nbd-server-remove",
    doc: "Takes back what nbd-server-add offered.",
    data: struct("NbdServerRemoveArguments", "", { name: str, "?mode": removeMode }),
    run: (daemon, args) => daemon.exports.remove(args.name, args.mode ?? "safe"),
  }),
  command({
    name: "block-export-add",
    doc: "Offers a node to others.",
    data: exportOptions,
    run: addExport,
  }),
  command({
    name: "block-export-del",
    doc: "Takes an export back; in mode hard also from clients that use it. BLOCK_EXPORT_DELETED tells the end.",
    data: struct("BlockExportDelArguments", "", { id: str, "?mode": removeMode }),
    run: (daemon, args) => daemon.exports.remove(args.id, args.mode ?? "safe"),
  }),
  command({
    name: "query-block-exports",
    doc: "Lists exports, newest first.",
    data: empty,
    returns: array(blockExportInfo),
    run: (daemon) =>
      daemon.exports.entries.reverse().map((entry) => ({
        id: entry.id,
        type: "nbd",
        "node-name": entry.backend.node.name,
        "shutting-down": entry.shuttingDown,
      })),
  }),
];

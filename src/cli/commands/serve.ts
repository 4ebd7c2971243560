import path from "node:path";
import type { Command } from "commander";
import type { TlsPolicy } from "../../../nbd/tls.ts";
import type { Logger } from "../../base/logger.ts";
import { formatSize } from "../../base/units.ts";
import { BackingRoots } from "../../block/backing-roots.ts";
import { chainOf } from "../../block/chain.ts";
import type { NodeOptions } from "../../block/node-options.ts";
import type { SocketAddress } from "../../control/chardev/socket-address.ts";
import { Daemon } from "../../control/daemon.ts";
import { DRIVERS } from "../../control/drivers.ts";
import { HmpMonitor } from "../../control/hmp/monitor.ts";
import { QmpMonitor } from "../../control/qmp-monitor.ts";
import { systemWallClock } from "../../control/wall-clock.ts";
import { chainLine } from "../chain-picture.ts";
import { type CommandContext, examples } from "../command-context.ts";
import {
  type ControlSockets,
  controlDirectory,
  makeControlDirectory,
  newSockets,
  refuseLongPath,
  socketsOf,
} from "../control-directory.ts";
import { usageError } from "../failure.ts";
import { MonitorListener } from "../monitor-listener.ts";
import { statedFormat, withImage } from "../open-image.ts";
import { repeatable } from "../repeatable-option.ts";
import { type ListeningFlags, listeningRules, servePolicy } from "../serve-listening.ts";
import { chainOptions, connectLines, type FoundImage } from "../serve-plan.ts";

interface ServeFlags extends ListeningFlags {
  readonly format?: string;
  readonly socket?: string;
  readonly name?: string;
  readonly device: string;
  readonly readOnly?: boolean;
  readonly control?: string;
  readonly monitor: readonly string[];
  readonly backingRoot: readonly string[];
}

export function addServe(program: Command, context: CommandContext): void {
  program
    .command("serve <disk>")
    .description("open a disk with all images behind it and serve it over NBD until Ctrl-C")
    .option("-f, --format <format>", "qcow2 or raw; a raw disk must be stated, it is not guessed")
    .option(
      "--socket <path>",
      "serve on this unix socket; without it and --port on one beside the control socket",
    )
    .option("--port <port>", "serve on TCP; 0: any free port")
    .option(
      "--bind <address>",
      "address for TCP; one that others reach needs --tls or --insecure",
      "127.0.0.1",
    )
    .option("--insecure", "let everybody who reaches the TCP address read and write, without TLS")
    .option("--tls <directory>", "over TLS only, with the keys in this directory (docs/tls.md)")
    .option("--no-verify-peer", "with --tls: clients need no certificate")
    .addOption(
      repeatable("--tls-allow <name>", "with --tls: only clients of this name, a pattern with * and ?"),
    )
    .option("--socket-mode <mode>", "rights of the unix socket for clients, such as 660; otherwise 600")
    .option("--socket-group <group>", "its group; alone it means mode 660")
    .option("--device <name>", "what commands call the disk", "virtio0")
    .option("--name <name>", "what NBD clients ask for; otherwise the device name")
    .option("--read-only", "let nobody write")
    .option("--control <path>", "path of the QMP socket; the monitor's is beside it, ending in .hmp")
    .addOption(repeatable("--monitor <path>", "a further socket for people"))
    .addOption(
      repeatable(
        "--backing-root <directory>",
        "images may name files here too, not only in the disk's own folder",
      ),
    )
    .addHelpText(
      "after",
      examples(
        "strata serve disk.qcow2",
        "strata serve disk.qcow2 --port 10809 --bind 0.0.0.0 --tls /etc/pki/strata",
        "strata serve disk.raw --format raw --read-only",
        "strata serve disk.qcow2 --backing-root /srv/base-images",
      ),
    )
    .action((disk: string, flags: ServeFlags) => serve(disk, flags, context));
}

async function serve(disk: string, flags: ServeFlags, context: CommandContext): Promise<void> {
  const readOnly = flags.readOnly === true;
  const format = statedFormat(disk, flags.format);
  const listening = listeningRules(flags);
  const logger = warningsOnly(context);
  const tls = servePolicy(flags, logger);
  const roots = backingRoots(disk, flags.backingRoot);
  const images = await findImages(disk, format, roots);
  const sockets = await controlSockets(disk, flags, context);
  const address = nbdAddress(flags, sockets);
  const daemon = new Daemon({
    drivers: DRIVERS,
    clock: context.clock,
    wallClock: systemWallClock,
    logger,
    backingRoots: roots,
    listening,
  });
  const listeners: MonitorListener[] = [];
  // A second Ctrl-C does not hurry the end: what a guest was told to be on disk has to get there.
  const end = () => {
    daemon.quit();
    forget = context.onInterrupt(end);
  };
  let forget = context.onInterrupt(end);
  try {
    const exportName = flags.name ?? flags.device;
    await start(daemon, {
      options: chainOptions(images, readOnly),
      address,
      tls,
      exportName,
      device: flags.device,
    });
    await openMonitors(daemon, sockets, flags.monitor, listeners);
    tellAddresses(daemon, { images, exportName, readOnly, isSecure: tls !== undefined, sockets, context });
    await daemon.quitRequested;
  } finally {
    forget();
    await daemon.shutDown().finally(async () => {
      for (const listener of listeners) await listener.close();
    });
  }
}

/** The disk's own folder, and what the user adds. */
function backingRoots(disk: string, added: readonly string[]): BackingRoots {
  return new BackingRoots([path.dirname(path.resolve(disk)), ...added]);
}

/** The images of the chain, top first, by absolute paths: the daemon's folder means nothing to its users. */
function findImages(disk: string, format: string, roots: BackingRoots): Promise<FoundImage[]> {
  const lockHelp =
    "A disk has one writer: end that process first; 'strata chain' shows what a running Strata daemon serves";
  return withImage(path.resolve(disk), { format, lockHelp, roots }, async (top) => {
    let plain = true;
    return chainOf(top).map((node) => {
      const image = { filename: node.filename, driver: node.driverName, plain };
      plain = node.details().backingFile?.startsWith("json:") !== true;
      return image;
    });
  });
}

async function controlSockets(
  disk: string,
  flags: ServeFlags,
  context: CommandContext,
): Promise<ControlSockets> {
  if (flags.control !== undefined) {
    const sockets = socketsOf(path.resolve(flags.control));
    refuseLongPath(sockets.hmp);
    return sockets;
  }
  const directory = controlDirectory(context.environment);
  makeControlDirectory(directory, context.environment.uid);
  return newSockets(directory, disk);
}

function nbdAddress(flags: ServeFlags, sockets: ControlSockets): SocketAddress {
  if (flags.port !== undefined) {
    if (flags.socket !== undefined) throw usageError("--socket and --port exclude each other");
    const port = Number(flags.port);
    if (!/^\d+$/.test(flags.port) || port > 65535) throw usageError(`'${flags.port}' is no port: 0 to 65535`);
    return { kind: "inet", host: flags.bind, port };
  }
  const socket = flags.socket === undefined ? `${sockets.hmp.slice(0, -4)}.nbd` : path.resolve(flags.socket);
  refuseLongPath(socket);
  return { kind: "unix", path: socket };
}

async function start(
  daemon: Daemon,
  plan: {
    options: NodeOptions;
    address: SocketAddress;
    tls: TlsPolicy | undefined;
    exportName: string;
    device: string;
  },
): Promise<void> {
  await daemon.exports.startServer({ address: plan.address, tls: plan.tls });
  const node = await daemon.nodes.add(plan.options);
  await daemon.exports.add({
    id: plan.device,
    name: plan.exportName,
    node,
    writable: !node.readOnly,
    allocationDepth: true,
  });
  // The export holds it from now on: an image that a merge leaves out is closed then, and may be deleted.
  await daemon.nodes.letGo(node);
}

async function openMonitors(
  daemon: Daemon,
  sockets: ControlSockets,
  others: readonly string[],
  listeners: MonitorListener[],
): Promise<void> {
  const human = new HmpMonitor(daemon);
  for (const socket of [sockets.hmp, ...others.map((one) => path.resolve(one))]) {
    listeners.push(await MonitorListener.open(socket, human));
  }
  // The QMP socket comes last: who finds it finds a daemon that is ready.
  listeners.push(await MonitorListener.open(sockets.qmp, new QmpMonitor(daemon, { pretty: false })));
}

function tellAddresses(
  daemon: Daemon,
  facts: {
    images: readonly FoundImage[];
    exportName: string;
    readOnly: boolean;
    isSecure: boolean;
    sockets: ControlSockets;
    context: CommandContext;
  },
): void {
  const { images, exportName, readOnly, isSecure, sockets, context } = facts;
  const names = [...daemon.graph.nodes].filter((node) => node.file !== undefined).map((node) => node.name);
  const size = daemon.exports.entries[0]!.backend.size;
  const [address] = daemon.exports.addresses;
  const how = readOnly ? "read-only" : "for reading and writing";
  context.terminal.out(
    `${chainLine(names)}   ${formatSize(size)}, ${images.length === 1 ? "one image" : `${images.length} images`}, ${how}\n\n` +
      connectLines({ address: address!, exportName, readOnly, isSecure }) +
      `  control     ${sockets.qmp}\n\n` +
      `Try 'strata chain', 'strata stream' and 'strata monitor' from elsewhere; Ctrl-C ends this.\n\n`,
  );
}

/** What went wrong in passing goes to stderr; the rest is for those who debug. */
function warningsOnly({ terminal }: CommandContext): Logger {
  const tell = (message: string) => terminal.err(`strata: ${message}\n`);
  return { debug() {}, info() {}, warn: tell, error: tell };
}

// The daemon: everything that commands work on, and the order in which it ends.
//
//   1. Commands, from whatever monitor, change it through its parts; it owns no socket of a monitor itself.
//   2. It ends once: server and exports, then jobs, then nodes, which flushes them. What goes wrong is logged
//      and told.
//   3. Commands that are under way when the end begins are waited for, for a while; later ones are refused.
//      So nothing is opened or started behind the back of the end.
//   4. While the command line is carried out, commands and NBD clients wait: they see all of it, never a
//      part.

import type { Clock } from "../base/clock.ts";
import { BlockError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import type { BackingRoots } from "../block/backing-roots.ts";
import type { CorruptionReport } from "../block/driver.ts";
import { Graph } from "../block/graph.ts";
import type { BlockNode } from "../block/node.ts";
import { type DriverFactory, NodeOpener } from "../block/open.ts";
import { JobManager } from "../job/manager.ts";
import { ChardevTable } from "./chardev/table.ts";
import { EventBus } from "./event-bus.ts";
import { ExportTable } from "./export-table.ts";
import { CAREFUL, type ListeningRules } from "./exposure.ts";
import { linkRules } from "./link-options.ts";
import { MonitorNodes } from "./monitor-nodes.ts";
import { ObjectTable } from "./objects.ts";
import type { WallClock } from "./wall-clock.ts";

export interface DaemonParts {
  readonly drivers: readonly DriverFactory[];
  readonly clock: Clock;
  readonly wallClock: WallClock;
  readonly logger: Logger;
  /** Where images may name files; undefined: anywhere. */
  readonly backingRoots?: BackingRoots | undefined;
  /** Default: sockets for their owner alone, and warnings of listeners that are open to others. */
  readonly listening?: ListeningRules | undefined;
}

/** How long the end waits for commands that are under way. */
const COMMANDS_MS_MAX = 10_000;

/** The data of BLOCK_IMAGE_CORRUPTED. */
function imageCorrupted({ node, message, offset, bytes, fatal }: CorruptionReport) {
  return {
    device: "",
    msg: message,
    ...(offset === undefined ? {} : { offset }),
    "node-name": node,
    fatal,
    ...(bytes === undefined ? {} : { size: bytes }),
  };
}

export class Daemon {
  readonly clock: Clock;
  readonly logger: Logger;
  readonly events: EventBus;
  readonly graph: Graph;
  readonly opener: NodeOpener;
  readonly nodes: MonitorNodes;
  readonly jobs: JobManager;
  readonly exports: ExportTable;
  readonly objects: ObjectTable;
  readonly chardevs: ChardevTable;
  /** Settles when somebody has asked the daemon to end. */
  readonly quitRequested: Promise<void>;
  #requestQuit!: () => void;
  #shutdown: Promise<void> | undefined;
  readonly #commands = new Set<Promise<unknown>>();
  #admitted: Promise<void> | undefined;
  #admit = () => {};

  constructor({ drivers, clock, wallClock, logger, backingRoots, listening = CAREFUL }: DaemonParts) {
    this.clock = clock;
    this.logger = logger;
    this.objects = new ObjectTable(logger);
    this.events = new EventBus(wallClock);
    this.graph = new Graph(logger);
    this.opener = new NodeOpener(this.graph, drivers, logger, linkRules(backingRoots, logger));
    this.opener.onCorruption = (report) => this.events.emit("BLOCK_IMAGE_CORRUPTED", imageCorrupted(report));
    this.nodes = new MonitorNodes(this.graph, this.opener);
    this.jobs = new JobManager((event, data) => this.events.emit(event, data));
    this.exports = new ExportTable(this.graph, logger, listening, (id) =>
      this.events.emit("BLOCK_EXPORT_DELETED", { id }),
    );
    this.chardevs = new ChardevTable(logger, clock, listening);
    this.quitRequested = new Promise((resolve) => {
      this.#requestQuit = resolve;
    });
  }

  /** Asks the program to end; it does so when it is ready. */
  quit(): void {
    this.#requestQuit();
  }

  /**
   * A node by any of the names that QMP's `device` takes: node name, or what an export is called by.
   * @throws BlockError NODE_NOT_FOUND in QEMU's words
   */
  nodeOrDevice(name: string): BlockNode {
    const node = this.graph.find(name) ?? this.exports.find(name)?.backend.node ?? this.#exportNamed(name);
    return node ?? this.graph.get(name);
  }

  /** What a node is served as; undefined when it is not. */
  deviceNameOf(node: BlockNode): string | undefined {
    return this.exports.entries.find((entry) => entry.backend.node === node)?.id;
  }

  /** A node name that is free: `prefix` and a number. */
  freeNodeName(prefix: string): string {
    for (let number = 0; ; number++) {
      if (this.graph.find(`${prefix}${number}`) === undefined) return `${prefix}${number}`;
    }
  }

  #exportNamed(name: string): BlockNode | undefined {
    return this.exports.entries.find((entry) => entry.name === name)?.backend.node;
  }

  /**
   * Members `device` and `node-name` of a command, of which one is given. @throws BlockError in QEMU's words
   */
  lookUp(device: string | undefined, nodeName: string | undefined): BlockNode {
    const byNode = nodeName === undefined ? undefined : this.graph.find(nodeName);
    const byDevice =
      device === undefined
        ? undefined
        : (this.exports.find(device)?.backend.node ?? this.#exportNamed(device));
    const node = byNode ?? byDevice;
    if (node !== undefined) return node;
    throw new BlockError(
      "NODE_NOT_FOUND",
      `Cannot find device='${device ?? ""}' nor node-name='${nodeName ?? ""}'`,
    );
  }

  /** Commands and NBD clients wait from now on, until `admitClients` or the end. */
  holdClients(): void {
    this.exports.holdClients();
    this.#admitted = new Promise((resolve) => {
      this.#admit = resolve;
    });
  }

  admitClients(): void {
    this.#admitted = undefined;
    this.#admit();
    this.exports.admitClients();
  }

  /**
   * Runs a command that changes or looks at the daemon. @throws BlockError ESHUTDOWN when the end has begun
   */
  async during<T>(run: () => Promise<T>): Promise<T> {
    if (this.#admitted !== undefined) await this.#admitted;
    if (this.#shutdown !== undefined) throw new BlockError("ESHUTDOWN", "the daemon is shutting down");
    const running = run();
    this.#commands.add(running);
    try {
      return await running;
    } finally {
      this.#commands.delete(running);
    }
  }

  /**
   * Ends everything once; later calls wait for the same end. The first error is handed up when all is done.
   */
  shutDown(): Promise<void> {
    this.#shutdown ??= this.#endAll();
    this.admitClients();
    return this.#shutdown;
  }

  async #endAll(): Promise<void> {
    let failure: { error: unknown } | undefined;
    const step = async (what: string, end: () => Promise<void>) => {
      try {
        await end();
      } catch (error) {
        failure ??= { error };
        this.logger.error(`while ending ${what}: ${String(error)}`);
      }
    };
    await this.#commandsEnded();
    if (this.exports.isServerRunning) await step("the NBD server", () => this.exports.stopServer());
    await step("jobs", () => this.jobs.cancelAll());
    await step("nodes", () => this.nodes.releaseAll());
    if (failure !== undefined) throw failure.error;
  }

  /** A command may wait for something that never comes (a peer of a socket): it is not waited for long. */
  async #commandsEnded(): Promise<void> {
    if (this.#commands.size === 0) return;
    let cancel = () => {};
    const patience = new Promise<void>((resolve) => {
      cancel = this.clock.after(COMMANDS_MS_MAX, resolve);
    });
    await Promise.race([Promise.allSettled(this.#commands), patience]);
    cancel();
  }
}

// The life of the daemon process: options, ready, until it is asked to end, the end.
//
//   1. Options are carried out in order; at the first that fails, what was opened is closed and the exit code
//      is 1.
//   2. SIGTERM, SIGINT and SIGHUP end it like `quit`: server, jobs, nodes (flushed), then sockets and the pid
//      file.
//   3. A second signal does not hurry it: what a guest was told to be on disk has to get there.

import { MessageChannel } from "node:worker_threads";
import { systemClock } from "../base/clock.ts";
import { BlockError, errorMessage } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import { BackingRoots } from "../block/backing-roots.ts";
import { background, isBackgroundProcess, startInBackground } from "./background.ts";
import { Daemon } from "./daemon.ts";
import { type DaemonOptions, helpText, parseDaemonOptions } from "./daemon-options.ts";
import { objectHelp, runStep } from "./daemon-steps.ts";
import { DRIVERS } from "./drivers.ts";
import { createLogger } from "./log.ts";
import { type PidFile, writePidFile } from "./pid-file.ts";
import { parseRights } from "./socket-rights.ts";
import { QEMU_VERSION, VERSION } from "./version.ts";
import { systemWallClock } from "./wall-clock.ts";

const PROGRAM = "strata-storage-daemon";
const SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP"] as const;

/** Runs the program (`args` without node and script, which is at `script`); settles to the exit code. */
export async function runDaemonProgram(args: readonly string[], script: string): Promise<number> {
  const inBackground = isBackgroundProcess(process.env);
  const tell = inBackground ? background.say : (text: string) => process.stderr.write(text);
  try {
    const options = parseDaemonOptions(args);
    const shown = textInstead(options);
    if (shown !== undefined) {
      process.stdout.write(shown);
      return 0;
    }
    if (options.daemonize && !inBackground) return await startInBackground(script, args, tell);
    await serve(options, inBackground);
    return 0;
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    tell(`${PROGRAM}: ${errorMessage(error)}\n`);
    return 1;
  }
}

/** What is shown instead of running: help, version, help on objects. */
function textInstead({ show, steps }: DaemonOptions): string | undefined {
  if (show === "help") return helpText(PROGRAM);
  const { major, minor, micro } = QEMU_VERSION;
  if (show === "version") {
    return `${PROGRAM} version ${VERSION} (follows qemu-storage-daemon ${major}.${minor}.${micro})\n`;
  }
  const asking = steps
    .filter(({ option }) => option === "object")
    .map(({ argument }) => objectHelp(argument));
  return asking.find((text) => text !== undefined);
}

async function serve(options: DaemonOptions, inBackground: boolean): Promise<void> {
  const logger = createLogger(options.verbose);
  const backingRoots = options.backingRoots.length === 0 ? undefined : new BackingRoots(options.backingRoots);
  const daemon = new Daemon({
    drivers: DRIVERS,
    clock: systemClock,
    wallClock: systemWallClock,
    logger,
    backingRoots,
    listening: {
      rights: parseRights(options.socketMode, options.socketGroup),
      insecure: options.insecure,
    },
  });
  const stopWatching = endOnSignals(daemon, logger);
  let pidFile: PidFile | undefined;
  try {
    await untilQuit(daemon, runSteps(daemon, options));
    if (options.pidfile !== undefined) pidFile = writePidFile(options.pidfile, process.pid);
    if (inBackground) background.ready();
    await staysAlive(daemon.quitRequested);
  } finally {
    try {
      await daemon.shutDown();
    } finally {
      await daemon.chardevs.closeAll();
      pidFile?.remove();
      stopWatching();
    }
  }
}

async function runSteps(daemon: Daemon, { steps }: DaemonOptions): Promise<void> {
  daemon.holdClients();
  for (const step of steps) await runStep(daemon, step);
  daemon.admitClients();
}

/** A step may wait for a peer for ever; a signal ends that. */
async function untilQuit(daemon: Daemon, work: Promise<void>): Promise<void> {
  await staysAlive(Promise.race([work, daemon.quitRequested]));
}

/** Waits with a port held open, so that the process lives on where nothing else is open. */
async function staysAlive(awaited: Promise<void>): Promise<void> {
  const { port1 } = new MessageChannel();
  port1.ref();
  try {
    await awaited;
  } finally {
    port1.close();
  }
}

function endOnSignals(daemon: Daemon, logger: Logger): () => void {
  const end = (signal: NodeJS.Signals) => {
    logger.info(`${signal}: ending`);
    daemon.quit();
  };
  for (const signal of SIGNALS) process.on(signal, end);
  return () => {
    for (const signal of SIGNALS) process.off(signal, end);
  };
}

import { systemClock } from "../../base/clock.ts";
import { silentLogger } from "../../base/logger.ts";
import { BackingRoots } from "../../block/backing-roots.ts";
import { Daemon } from "../daemon.ts";
import { parseDaemonOptions } from "../daemon-options.ts";
import { runStep } from "../daemon-steps.ts";
import { DRIVERS } from "../drivers.ts";
import { createLogger } from "../log.ts";
import { systemWallClock } from "../wall-clock.ts";

/** A daemon in this process, from a command line. Who asks for it ends it. */
export async function startDaemon(args: readonly string[]): Promise<Daemon> {
  const logger = process.env["STRATA_TEST_LOG"] === "1" ? createLogger(true) : silentLogger;
  const { steps, backingRoots } = parseDaemonOptions(args);
  const daemon = new Daemon({
    drivers: DRIVERS,
    clock: systemClock,
    wallClock: systemWallClock,
    logger,
    ...(backingRoots.length > 0 && { backingRoots: new BackingRoots(backingRoots) }),
  });
  try {
    for (const step of steps) await runStep(daemon, step);
  } catch (error) {
    await endDaemon(daemon);
    throw error;
  }
  return daemon;
}

export async function endDaemon(daemon: Daemon): Promise<void> {
  await daemon.shutDown().finally(() => daemon.chardevs.closeAll());
}

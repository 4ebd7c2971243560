import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import { BlockError, errorMessage } from "../../base/errors.ts";
import {
  deviceIndexes,
  deviceState,
  type ExclusiveDevice,
  type NbdHost,
  nbdIndex,
  openExclusively,
  realNbdHost,
  usersOf,
} from "../../sys/nbd-device.ts";
import { type AttachRecord, readRecord } from "../attach/attach-record.ts";
import { openKernelDriver } from "../attach/kernel-driver.ts";
import { releaseDaemon } from "../attach/release-daemon.ts";
import { type CommandContext, examples } from "../command-context.ts";

interface DetachFlags {
  readonly force?: boolean;
  readonly json?: boolean;
}

/**
 * The kernel frees a device when the last one who has it open closes it: udev may look at it for a moment.
 */
const FREE_MS_MAX = 5000;
const LOOK_MS = 20;

export function addDetach(program: Command, context: CommandContext): void {
  program
    .command("detach <device>")
    .description(
      "end what 'strata attach' began: writes what is left to write, frees the device, ends its daemon",
    )
    .option("--force", "also while the device is mounted or in use: whoever uses it gets I/O errors")
    .option("--json", "what was ended, for scripts")
    .addHelpText("after", examples("strata detach /dev/nbd0"))
    .action((device: string, flags: DetachFlags) => detach(nbdIndex(device), flags, context));
}

async function detach(index: number, flags: DetachFlags, context: CommandContext): Promise<void> {
  const host = realNbdHost;
  const device = `/dev/nbd${index}`;
  const driver = openKernelDriver(host, "detach");
  // Half a detach is no use to anybody; Ctrl-C at a server that hangs is what --force is for.
  try {
    const state = deviceState(host, index);
    const record = readRecord(context.environment, index);
    if (state?.connected !== true && record === undefined) {
      throw new BlockError("EINVAL", `${device} is not attached${attachedText(host)}`);
    }
    let isFree = true;
    if (state?.connected === true) {
      const hold = takeAway(host, index, flags.force === true, context);
      try {
        driver.disconnect(index);
      } finally {
        hold?.close();
      }
      isFree = await becomesFree(host, index);
    }
    const ended = record !== undefined && (await releaseDaemon(host, context.environment, { index, record }));
    tell({ device, isFree, ended: ended ? record : undefined }, flags, context);
  } finally {
    driver.close();
  }
}

/**
 * Makes sure that nobody uses the device and that nobody begins to, and that all that was written to it is
 * with the server. @throws BlockError EBUSY that names who uses it
 */
function takeAway(
  host: NbdHost,
  index: number,
  force: boolean,
  { terminal }: CommandContext,
): ExclusiveDevice | undefined {
  const users = usersOf(host, index);
  if (force) {
    for (const user of users) terminal.err(`strata: ${user}, and is detached all the same\n`);
    return undefined;
  }
  const hint = "end that first, or use --force, which gives it I/O errors";
  if (users.length > 0) throw new BlockError("EBUSY", `${users.join("; ")}: ${hint}`);
  const hold = openExclusively(host, index);
  if (hold === undefined) {
    throw new BlockError(
      "EBUSY",
      `/dev/nbd${index} is in use by another program or in another namespace: ${hint}`,
    );
  }
  try {
    hold.sync();
  } catch (error) {
    hold.close();
    throw new BlockError("EIO", `${errorMessage(error)}; --force gives up what could not be written`, error);
  }
  return hold;
}

async function becomesFree(host: NbdHost, index: number): Promise<boolean> {
  for (let waitedMs = 0; deviceState(host, index)?.connected === true; waitedMs += LOOK_MS) {
    if (waitedMs >= FREE_MS_MAX) return false;
    await sleep(LOOK_MS);
  }
  return true;
}

function attachedText(host: NbdHost): string {
  const others = deviceIndexes(host).filter((index) => deviceState(host, index)?.connected === true);
  return others.length === 0 ? "" : ` (there are: ${others.map((index) => `/dev/nbd${index}`).join(", ")})`;
}

function tell(
  { device, isFree, ended }: { device: string; isFree: boolean; ended: AttachRecord | undefined },
  flags: DetachFlags,
  { terminal }: CommandContext,
): void {
  if (flags.json === true) {
    terminal.out(JSON.stringify({ device, free: isFree, daemon: ended?.pid ?? null }, undefined, 2) + "\n");
    return;
  }
  terminal.out(
    `${device} is detached${ended === undefined ? "" : `, and the daemon of ${ended.disk} has ended`}\n`,
  );
  if (!isFree) terminal.err(`strata: ${device} becomes free when those who still have it open close it\n`);
}

// A `strata serve` that goes on when the command that started it has ended.
//
//   1. It is ready when its QMP socket answers, which it opens last.
//   2. What it says goes to NAME.log beside its sockets, since nobody reads a pipe later.
//   3. Two that start at the same time for disks of one name get names of their own: the log file is made by
//      one of them only, and is there for as long as the daemon is.

import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync, readFileSync, rmSync } from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { BlockError, errorMessage } from "../../base/errors.ts";
import {
  type ControlEnvironment,
  controlDirectory,
  isAlive,
  makeControlDirectory,
  refuseLongPath,
  socketStem,
  socketsOf,
} from "../control-directory.ts";
import { deviceOfImage, viewDaemon } from "../daemon-view.ts";
import { QmpClient } from "../qmp-client.ts";
import type { AttachRecord } from "./attach-record.ts";

const LOOK_MS = 20;
/** Disks of one name that are served at the same time. */
const NAMES_MAX = 1000;
/** An orderly end writes what is left to write, and that takes as long as the host's disk takes. */
const END_MS_MAX = 120_000;

type DaemonFiles = Pick<AttachRecord, "qmp" | "log">;

export interface DaemonPlan {
  readonly disk: string;
  readonly format: string | undefined;
  readonly readOnly: boolean;
  readonly backingRoots?: readonly string[] | undefined;
  readonly environment: ControlEnvironment;
  /** What to start in place of this program's own script. */
  readonly script?: string | undefined;
  /** Path of its QMP socket; otherwise one after the disk's name. */
  readonly qmp?: string | undefined;
  /** Throws when the user has had enough. */
  checkInterrupt(): void;
}

/** Starts it and waits until clients can come. @throws BlockError with its words when it does not start */
export async function startDaemon(plan: DaemonPlan): Promise<AttachRecord> {
  if (plan.qmp !== undefined) return startAt(plan, { qmp: plan.qmp, log: logOf(plan.qmp) });
  const directory = controlDirectory(plan.environment);
  makeControlDirectory(directory, plan.environment.uid);
  const stem = path.join(directory, socketStem(plan.disk));
  for (let number = 1; ; number++) {
    const { qmp, hmp } = socketsOf(`${number === 1 ? stem : `${stem}-${number}`}.qmp`);
    refuseLongPath(hmp);
    if (!(await claim(qmp))) continue;
    try {
      return await startAt(plan, { qmp, log: logOf(qmp) });
    } catch (error) {
      // A 'strata serve' that a person started at this very moment.
      if (number === NAMES_MAX || !/address already in use/i.test(errorMessage(error))) throw error;
    }
  }
}

/** Takes a name: whoever makes the log file has it, and it is gone when the daemon has ended. */
async function claim(qmp: string): Promise<boolean> {
  if (await isAlive(qmp)) return false;
  try {
    closeSync(openSync(logOf(qmp), "wx", 0o600));
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

function logOf(qmp: string): string {
  return `${qmp.replace(/\.qmp$/, "")}.log`;
}

async function startAt(plan: DaemonPlan, files: DaemonFiles): Promise<AttachRecord> {
  const disk = path.resolve(plan.disk);
  const child = spawnServe(plan, disk, files);
  try {
    const uri = await readyUri(plan, child, files);
    child.unref();
    return { disk, uri, pid: child.pid!, ...files };
  } catch (error) {
    await endChild(child);
    rmSync(files.log, { force: true });
    throw error;
  }
}

function spawnServe(plan: DaemonPlan, disk: string, files: DaemonFiles): ChildProcess {
  const args = ["serve", disk, "--control", files.qmp];
  if (plan.format !== undefined) args.push("--format", plan.format);
  if (plan.readOnly) args.push("--read-only");
  // It works in another folder.
  for (const root of plan.backingRoots ?? []) args.push("--backing-root", path.resolve(root));
  const fd = openSync(files.log, "w", 0o600);
  try {
    // A session of its own: the end of this terminal is not the end of the disk. And no folder is kept busy.
    return spawn(process.execPath, [plan.script ?? process.argv[1]!, ...args], {
      detached: true,
      cwd: "/",
      stdio: ["ignore", fd, fd],
    });
  } finally {
    closeSync(fd);
  }
}

async function readyUri(plan: DaemonPlan, child: ChildProcess, files: DaemonFiles): Promise<string> {
  let failure: string | undefined;
  const refused = (error: Error) => {
    failure = `cannot start a daemon: ${error.message}`;
  };
  const ended = () => {
    failure ??= lastWords(files.log) || `the daemon for '${plan.disk}' ended at once`;
  };
  child.once("error", refused).once("exit", ended);
  try {
    for (;;) {
      plan.checkInterrupt();
      if (failure !== undefined) throw new BlockError("EIO", failure);
      const uri = await uriAt(files.qmp, plan.disk);
      if (uri !== undefined) return uri;
      await sleep(LOOK_MS);
    }
  } finally {
    child.off("exit", ended);
  }
}

/** undefined also when it is another disk that somebody began to serve there. */
async function uriAt(qmp: string, disk: string): Promise<string | undefined> {
  try {
    const client = await QmpClient.connect(qmp);
    try {
      return deviceOfImage(await viewDaemon(client), disk)?.uri;
    } finally {
      client.close();
    }
  } catch {
    return undefined;
  }
}

/** The daemon's error, as it would stand on a terminal. */
function lastWords(log: string): string {
  const lines = readFileSync(log, "utf8").trim().split("\n");
  return lines.at(-1)!.replace(/^strata: /, "");
}

async function endChild(child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  child.kill("SIGTERM");
  await ended;
}

/**
 * Asks a daemon to end and waits until it has: then its images are closed and free for others. One that is
 * gone already is fine. @throws BlockError EBUSY when it does not end
 */
export async function stopDaemon({ qmp, pid, log }: AttachRecord): Promise<void> {
  let client: QmpClient;
  try {
    client = await QmpClient.connect(qmp);
  } catch {
    rmSync(log, { force: true });
    return;
  }
  try {
    await client.execute("quit");
  } catch {
    // It may hang up before it has answered.
  } finally {
    client.close();
  }
  for (let waitedMs = 0; isRunning(pid); waitedMs += LOOK_MS) {
    if (waitedMs >= END_MS_MAX) {
      throw new BlockError("EBUSY", `the daemon (pid ${pid}) does not end; what it says stands in ${log}`);
    }
    await sleep(LOOK_MS);
  }
  rmSync(log, { force: true });
}

/** One that has ended and that nobody has asked about yet, a zombie, does not run. */
function isRunning(pid: number): boolean {
  try {
    // pid (name) state ...; the name may hold anything.
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    return !/^[ZX]/.test(stat.slice(stat.lastIndexOf(")") + 2));
  } catch {
    return false;
  }
}

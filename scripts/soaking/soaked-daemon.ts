// One life of the daemon, as shipped: started, watched from outside, and ended in one of three ways.

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { QmpClient, type QmpEvent } from "../../src/cli/qmp-client.ts";

/** From dist/scripts/soaking. */
const PROGRAM = fileURLToPath(new URL("../../../bin/strata-storage-daemon.cjs", import.meta.url));
const START_MS_MAX = 30_000;
/** After SIGTERM and `quit`; a busy machine may take its time. */
const END_MS_MAX = 30_000;
const LOOK_MS = 20;

/** How a life ends. */
export type Ending = "terminate" | "kill" | "quit";

/** What the kernel tells of the process. */
export interface Footprint {
  readonly memoryBytes: number;
  readonly threads: number;
  /** Open descriptors of files in the folder of images, by file name, one entry each. */
  readonly openImages: readonly string[];
  /** All other descriptors, but for io_uring's. */
  readonly otherDescriptors: number;
}

export class SoakedDaemon {
  readonly qmp: QmpClient;
  /** Every event so far that tells of a job or an export. */
  readonly events: QmpEvent[] = [];
  readonly #folder: string;
  readonly #child: ChildProcess;
  readonly #ended: Promise<number | NodeJS.Signals>;
  readonly #killAtExit = () => this.#child.kill("SIGKILL");
  #endsNow = false;

  private constructor(folder: string, child: ChildProcess, qmp: QmpClient, onDeath: (how: string) => void) {
    this.#folder = folder;
    this.#child = child;
    this.qmp = qmp;
    qmp.onEvent((event) => this.events.push(event));
    process.on("exit", this.#killAtExit);
    this.#ended = new Promise((resolve) => child.once("exit", (code, signal) => resolve(signal ?? code!)));
    this.#ended.then((how) => {
      if (!this.#endsNow) onDeath(`the daemon ended by itself with ${how}: ${this.lastWords()}`);
    });
  }

  /**
   * Starts it on sockets in `folder` with these options more. `onDeath` hears of an end that nobody asked
   * for.
   */
  static async start(
    folder: string,
    options: readonly string[],
    onDeath: (how: string) => void,
  ): Promise<SoakedDaemon> {
    const monitors = ["control", "watch"].flatMap((name) => [
      ...["--chardev", `socket,id=${name},path=${socketPath(folder, name)},server=on,wait=off`],
      ...["--monitor", `chardev=${name}`],
    ]);
    const server = ["--nbd-server", `addr.type=unix,addr.path=${socketPath(folder, "nbd")}`];
    for (const name of ["control", "watch", "nbd"]) fs.rmSync(socketPath(folder, name), { force: true });
    const log = fs.openSync(logFile(folder), "w");
    const child = spawn(process.execPath, [PROGRAM, ...server, ...options, ...monitors], {
      stdio: ["ignore", log, log],
    });
    fs.closeSync(log);
    try {
      const qmp = await firstContact(child, socketPath(folder, "control"));
      return new SoakedDaemon(folder, child, qmp, onDeath);
    } catch (error) {
      child.kill("SIGKILL");
      throw new Error(`the daemon does not start: ${fs.readFileSync(logFile(folder), "utf8").trim()}`, {
        cause: error,
      });
    }
  }

  uri(exportName: string): string {
    return `nbd+unix:///${exportName}?socket=${socketPath(this.#folder, "nbd")}`;
  }

  /** Where the monitor for onlookers is. */
  get watchSocket(): string {
    return socketPath(this.#folder, "watch");
  }

  /** Undefined when the process has just ended. */
  footprint(images: string): Footprint | undefined {
    const facts = `/proc/${this.#child.pid}`;
    try {
      const status = fs.readFileSync(`${facts}/status`, "utf8");
      const openImages: string[] = [];
      let otherDescriptors = 0;
      for (const descriptor of fs.readdirSync(`${facts}/fd`)) {
        const target = linkTarget(`${facts}/fd/${descriptor}`);
        if (target?.startsWith(`${images}/`)) openImages.push(path.basename(target));
        // Made when it is first needed, with an eventfd: neither counts.
        else if (target === "anon_inode:[io_uring]") otherDescriptors--;
        else if (target !== undefined) otherDescriptors++;
      }
      return {
        memoryBytes: statusNumber(status, "VmRSS") * 1024,
        threads: statusNumber(status, "Threads"),
        openImages,
        otherDescriptors,
      };
    } catch {
      return undefined;
    }
  }

  /** No file that it writes may get longer than this; undefined takes the limit away. */
  limitFileBytes(bytes: number | undefined): void {
    execFileSync("prlimit", ["--pid", String(this.#child.pid), `--fsize=${bytes ?? "unlimited"}:unlimited`]);
  }

  /** Ends it. @throws when it does not end in peace though it was asked to */
  async end(ending: Ending): Promise<void> {
    this.#endsNow = true;
    if (ending === "quit") this.qmp.execute("quit").catch(() => undefined);
    else this.#child.kill(ending === "kill" ? "SIGKILL" : "SIGTERM");
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<"late">((resolve) => {
      timer = setTimeout(() => resolve("late"), END_MS_MAX);
    });
    const how = await Promise.race([this.#ended, late]);
    clearTimeout(timer);
    process.off("exit", this.#killAtExit);
    this.qmp.close();
    if (ending === "kill" || how === 0) return;
    this.#child.kill("SIGKILL");
    throw new Error(`asked to end (${ending}) the daemon ended with ${how}: ${this.lastWords()}`);
  }

  /** The end of what it wrote to its standard output and error. */
  lastWords(): string {
    return fs.readFileSync(logFile(this.#folder), "utf8").trim().slice(-2000);
  }
}

function socketPath(folder: string, name: string): string {
  return path.join(folder, `${name}.sock`);
}

function logFile(folder: string): string {
  return path.join(folder, "daemon.log");
}

/** QMP answers when the command line has been carried out. */
async function firstContact(child: ChildProcess, socket: string): Promise<QmpClient> {
  const start = performance.now();
  for (;;) {
    try {
      return await QmpClient.connect(socket);
    } catch (error) {
      const hasEnded = child.exitCode !== null || child.signalCode !== null;
      if (hasEnded || performance.now() - start > START_MS_MAX) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
}

function linkTarget(link: string): string | undefined {
  try {
    return fs.readlinkSync(link);
  } catch {
    // Closed since it was listed.
    return undefined;
  }
}

function statusNumber(status: string, name: string): number {
  return Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(status)?.[1] ?? Number.NaN);
}

import { type ChildProcess, spawn } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import type { DiskImage, PeerKind } from "./peer-kinds.ts";
import { QmpClient } from "./qmp-client.ts";

const CLOCK_TICKS_PER_SECOND = 100;

/** One disk of a daemon: the name of its node and of its export, and where clients find it. */
export interface Disk {
  readonly name: string;
  readonly uri: string;
}

/** A daemon that serves disks on a Unix socket. */
export class Peer {
  readonly #socket: string;
  readonly #child: ChildProcess;
  readonly #qmp: QmpClient | undefined;
  readonly #killAtExit = () => this.#child.kill("SIGKILL");

  private constructor(child: ChildProcess, qmp: QmpClient | undefined, socket: string) {
    this.#child = child;
    this.#qmp = qmp;
    this.#socket = socket;
    process.on("exit", this.#killAtExit);
  }

  static async start(kind: PeerKind, folder: string, disks: readonly DiskImage[]): Promise<Peer> {
    const sockets = {
      nbd: path.join(folder, `${kind.name}.nbd`),
      qmp: path.join(folder, `${kind.name}.qmp`),
      pid: path.join(folder, `${kind.name}.pid`),
    };
    for (const stale of Object.values(sockets)) fs.rmSync(stale, { force: true });
    const [program, ...args] = kind.command(sockets, disks);
    const output = kind.output === undefined ? "ignore" : fs.openSync(kind.output, "w");
    const child = spawn(program!, args, {
      stdio: ["ignore", output, "inherit"],
      env: { ...process.env, ...kind.environment },
    });
    if (typeof output === "number") fs.closeSync(output);
    // QMP answers when the rest is set up. QSD may close a connection that follows one that was given up at
    // once, so it is tried with the one that stays.
    const qmp = await untilThere(child, async () => {
      if (kind.hasQmp) return await QmpClient.connect(sockets.qmp);
      await fs.promises.access(sockets.pid);
      return undefined;
    });
    return new Peer(child, qmp, sockets.nbd);
  }

  disk(name: string): Disk {
    return { name, uri: `nbd+unix:///${name}?socket=${this.#socket}` };
  }

  get qmp(): QmpClient {
    if (this.#qmp === undefined) throw new Error(`${this.#child.spawnfile} has no QMP`);
    return this.#qmp;
  }

  /** User and system time that the daemon has used so far, in microseconds. */
  cpuMicroseconds(): number {
    const stat = fs.readFileSync(`/proc/${this.#child.pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return ((Number(fields[11]) + Number(fields[12])) * 1e6) / CLOCK_TICKS_PER_SECOND;
  }

  /** The most memory that it has held, in bytes. */
  peakMemoryBytes(): number {
    return this.#statusBytes("VmHWM");
  }

  /** The memory that it holds now, in bytes. */
  memoryBytes(): number {
    return this.#statusBytes("VmRSS");
  }

  #statusBytes(name: string): number {
    const status = fs.readFileSync(`/proc/${this.#child.pid}/status`, "utf8");
    return Number(new RegExp(`${name}:\\s+(\\d+)`).exec(status)?.[1] ?? 0) * 1024;
  }

  async stop(): Promise<void> {
    process.off("exit", this.#killAtExit);
    this.#qmp?.close();
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const ended = new Promise((resolve) => this.#child.once("exit", resolve));
    this.#child.kill("SIGTERM");
    await ended;
  }
}

/** Tries until it succeeds: the file of a socket is there a moment before somebody listens. */
async function untilThere<T>(child: ChildProcess, attempt: () => Promise<T>): Promise<T> {
  let failure: Error | undefined;
  child.once("error", (error) => {
    failure = error;
  });
  for (;;) {
    try {
      return await attempt();
    } catch {
      // Not there yet, or never.
    }
    if (failure !== undefined) throw failure;
    const end = child.exitCode ?? child.signalCode;
    if (end !== null) throw new Error(`${child.spawnfile} ended with ${end}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

// The daemon of the demo: strata-storage-daemon as a process of its own, controlled over QMP.

import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import type { Clock } from "../../base/clock.ts";
import { BlockError } from "../../base/errors.ts";
import { QmpClient } from "../qmp-client.ts";

/** The program as it stands beside this file when both are built. */
const PROGRAM = fileURLToPath(new URL("../../control/strata-storage-daemon.js", import.meta.url));
const START_MS_MAX = 20_000;
const LOOK_INTERVAL_MS = 20;

export class DemoDaemon {
  readonly client: QmpClient;
  readonly nbdSocket: string;
  readonly hmpSocket: string;
  readonly #child: ChildProcess;
  readonly #ended: Promise<number | null>;

  private constructor(
    client: QmpClient,
    sockets: { nbd: string; hmp: string },
    child: ChildProcess,
    ended: Promise<number | null>,
  ) {
    this.client = client;
    this.nbdSocket = sockets.nbd;
    this.hmpSocket = sockets.hmp;
    this.#child = child;
    this.#ended = ended;
  }

  /**
   * Starts the daemon in `directory` with these options on top of its sockets. @throws with its last words
   */
  static async start(directory: string, clock: Clock, options: readonly string[]): Promise<DemoDaemon> {
    const [qmp, hmp, nbd] = ["qmp", "hmp", "nbd"].map((name) => path.join(directory, `${name}.sock`));
    const args = [
      ...["--nbd-server", `addr.type=unix,addr.path=${nbd}`],
      ...options,
      ...["--chardev", `socket,id=hmp,path=${hmp},server=on,wait=off`],
      ...["--monitor", "chardev=hmp,mode=readline"],
      ...["--chardev", `socket,id=qmp,path=${qmp},server=on,wait=off`, "--monitor", "chardev=qmp"],
    ];
    const child = spawn(process.execPath, [PROGRAM, ...args], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    let words = "";
    child.stderr!.setEncoding("utf8").on("data", (text: string) => {
      words += text;
    });
    const ended = new Promise<number | null>((resolve) => child.once("close", resolve));
    try {
      await waitForSocket(qmp!, clock, child, () => words);
      return new DemoDaemon(await QmpClient.connect(qmp!), { nbd: nbd!, hmp: hmp! }, child, ended);
    } catch (error) {
      child.kill("SIGKILL");
      throw error;
    }
  }

  /** Asks it to quit and waits until it has. @throws BlockError when it did not end in peace */
  async quit(): Promise<void> {
    await this.client.execute("quit");
    const code = await this.#ended;
    if (code !== 0) throw new BlockError("EIO", `the daemon ended with exit code ${code}`);
  }

  /** Ends it whatever it does; nothing happens when it has ended. */
  async kill(): Promise<void> {
    this.client.close();
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.kill("SIGKILL");
    await this.#ended;
  }
}

/** The monitor's socket is the last thing that the daemon makes. */
async function waitForSocket(
  socket: string,
  clock: Clock,
  child: ChildProcess,
  words: () => string,
): Promise<void> {
  const start = clock.nowMs();
  while (!existsSync(socket)) {
    const problem =
      child.exitCode !== null || child.signalCode !== null
        ? "ended at once"
        : clock.nowMs() - start > START_MS_MAX
          ? `was not ready after ${START_MS_MAX / 1000} s`
          : undefined;
    if (problem !== undefined) throw new BlockError("EIO", `the daemon ${problem}: ${words().trim()}`);
    await new Promise<void>((resolve) => setTimeout(resolve, LOOK_INTERVAL_MS));
  }
}

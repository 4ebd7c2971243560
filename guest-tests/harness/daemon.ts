// A storage daemon under test, with a QMP monitor of the harness.
//
//   1. The daemon connects to us: its greeting says that every option of its command line has been carried
//      out.
//   2. A daemon that ends when nobody asked it to makes every command that waits for it fail, with its last
//      words.
//   3. STRATA_TEST_DAEMON names another program with the same command line, such as the reference itself.

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { createServer, type Socket } from "node:net";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { onTestFinished } from "vitest";
import { HmpClient } from "./hmp-client.ts";
import { within } from "./patience.ts";
import { QmpClient } from "./qmp-client.ts";
import { runAnyhow } from "./tool.ts";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const CHECKOUT = path.resolve(HERE, "../..");

/** The daemon's program as run from a checkout. */
export const DAEMON_SCRIPT = path.join(CHECKOUT, "scripts/strata-storage-daemon");

/**
 * Program and leading arguments. The script would look for changed sources at each start; once is enough
 * here.
 */
export const DAEMON_COMMAND: readonly string[] = daemonCommand();

function daemonCommand(): string[] {
  const other = process.env["STRATA_TEST_DAEMON"];
  if (other !== undefined) return other.split(" ");
  execFileSync(path.join(CHECKOUT, "scripts/build"), { stdio: ["ignore", "inherit", "inherit"] });
  return [process.execPath, path.join(CHECKOUT, "dist/src/control/strata-storage-daemon.js")];
}

/** Whether the reference is being tested: it has no HMP monitor, and some faults that ours must not have. */
export const IS_REFERENCE = path.basename(DAEMON_COMMAND[0]!) === "qemu-storage-daemon";

export interface Ending {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export class Daemon {
  readonly directory: string;
  readonly qmp: QmpClient;
  readonly pid: number;
  readonly ended: Promise<Ending>;
  readonly #output: () => string;
  readonly #child: ChildProcess;

  constructor(
    directory: string,
    qmp: QmpClient,
    child: ChildProcess,
    ended: Promise<Ending>,
    output: () => string,
  ) {
    this.directory = directory;
    this.qmp = qmp;
    this.pid = child.pid!;
    this.ended = ended;
    this.#child = child;
    this.#output = output;
  }

  /** What the daemon wrote to its standard output and error so far. */
  get output(): string {
    return this.#output();
  }

  /** NBD URI of an export on this daemon's unix socket. */
  uri(exportName: string): string {
    return `nbd+unix:///${encodeURIComponent(exportName)}?socket=${this.directory}/nbd.sock`;
  }

  get nbdSocket(): string {
    return `${this.directory}/nbd.sock`;
  }

  /** A person at the HMP monitor; the daemon was started with HMP_ARGUMENTS. */
  hmp(): Promise<HmpClient> {
    return HmpClient.connect(`${this.directory}/hmp.sock`);
  }

  /** Asks it to quit and waits until it has. @throws when it did not end in peace */
  async quit(): Promise<void> {
    await this.qmp.execute("quit");
    const ending = await within(this.ended, () => `the daemon did not quit\n${this.output}`);
    if (ending.code !== 0) throw new Error(`the daemon ended with ${JSON.stringify(ending)}\n${this.output}`);
  }

  /** Ends it as a power cut would end the process: nothing is written any more. */
  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.ended;
  }

  /** Whether the process is there. A test of bad input ends with this. */
  async isAlive(): Promise<boolean> {
    const status = (await this.qmp.execute("query-jobs")) as unknown;
    return Array.isArray(status) && this.#child.exitCode === null;
  }
}

/** An HMP monitor on a socket of the daemon's directory. */
export function hmpArguments(directory: string): string[] {
  const chardev = `socket,id=hmp0,path=${directory}/hmp.sock,server=on,wait=off`;
  return ["--chardev", chardev, "--monitor", "chardev=hmp0,mode=readline"];
}

export function nbdServerArguments(directory: string): string[] {
  return ["--nbd-server", `addr.type=unix,addr.path=${directory}/nbd.sock`];
}

/**
 * Starts the daemon and waits until it has carried out its command line. @throws with its words when it
 * refuses
 */
export async function startDaemon(directory: string, args: readonly string[]): Promise<Daemon> {
  const socketPath = path.join(directory, `monitor-${process.pid}-${nextNumber++}.sock`);
  const { connected, close } = listenOnce(socketPath);
  const monitor = [
    "--chardev",
    `socket,id=harness,path=${socketPath},server=off`,
    "--monitor",
    "chardev=harness",
  ];
  const [program, ...leading] = DAEMON_COMMAND;
  const child = spawn(program!, [...leading, ...args, ...monitor], { stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      output += text;
    });
  }
  const ended = new Promise<Ending>((resolve) => {
    child.on("error", (error) => {
      output += `cannot start ${program}: ${error.message}`;
      resolve({ code: -1, signal: null });
    });
    child.on("close", (code, signal) => resolve({ code, signal }));
  });
  onTestFinished(() => {
    close();
    child.kill("SIGKILL");
  });
  const refusal = ended.then(() => {
    throw new Error(`the daemon ended at its start: ${output.trim()}`);
  });
  const missing = () => `the daemon is not ready\n${output}`;
  const socket = await within(Promise.race([connected, refusal]), missing).finally(close);
  const qmp = new QmpClient(socket, () => output.trim());
  await within(Promise.race([qmp.greeting, refusal]), missing);
  refusal.catch(() => undefined);
  await qmp.execute("qmp_capabilities");
  return new Daemon(directory, qmp, child, ended, () => output);
}

/** Starts a daemon that must refuse its command line; gives what it says. */
export async function startRefused(args: readonly string[]): Promise<string> {
  const [program, ...leading] = DAEMON_COMMAND;
  const run = runAnyhow(program!, ...leading, ...args);
  const outcome = await within(run, () => `the daemon took ${args.join(" ")}`);
  if (outcome.code <= 0) throw new Error(`exit code ${outcome.code}: ${outcome.stderr}`);
  return outcome.stderr;
}

let nextNumber = 0;

function listenOnce(socketPath: string): { connected: Promise<Socket>; close: () => void } {
  const server = createServer();
  const connected = new Promise<Socket>((resolve) => server.once("connection", resolve));
  server.listen(socketPath);
  return { connected, close: () => server.close() };
}

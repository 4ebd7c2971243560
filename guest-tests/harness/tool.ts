// Runs foreign programs: qemu-img, qemu-io, nbdinfo, nbdcopy, fio. A failure shows the whole command and its
// output.

import { type ChildProcess, spawn } from "node:child_process";
import { onTestFinished } from "vitest";

export interface Outcome {
  /** Exit code; -1 when a signal ended the program. */
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** A foreign program that did not do what the test needs of it. */
export class ToolError extends Error {
  override readonly name = "ToolError";
  readonly outcome: Outcome;

  constructor(command: string, outcome: Outcome) {
    const said = `${outcome.stdout}${outcome.stderr}`.trim();
    super(`${command}\nended with code ${outcome.code} and said:\n${said}`);
    this.outcome = outcome;
  }
}

/** A program that runs while the test goes on; killed at the end of the test if it is still there. */
export class RunningTool {
  readonly done: Promise<Outcome>;
  readonly #child: ChildProcess;
  #ended = false;

  constructor(program: string, args: readonly string[], directory?: string) {
    const child = spawn(program, args, { cwd: directory, stdio: ["ignore", "pipe", "pipe"] });
    this.#child = child;
    let stdout = "";
    let stderr = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    this.done = new Promise((resolve, reject) => {
      child.on("error", (error) => reject(new Error(`cannot start ${program}: ${error.message}`)));
      child.on("close", (code) => {
        this.#ended = true;
        resolve({ code: code ?? -1, stdout, stderr });
      });
    });
    onTestFinished(() => {
      if (!this.#ended) this.#child.kill("SIGKILL");
    });
  }

  /** Whether the program is still at work. */
  get isRunning(): boolean {
    return !this.#ended;
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }
}

/** Runs a program to its end, whatever its exit code. */
export function runAnyhow(program: string, ...args: readonly string[]): Promise<Outcome> {
  return new RunningTool(program, args).done;
}

/** Runs a program to its end and gives its standard output. @throws ToolError when its exit code is not 0 */
export async function run(program: string, ...args: readonly string[]): Promise<string> {
  const outcome = await runAnyhow(program, ...args);
  if (outcome.code !== 0) throw new ToolError(`${program} ${args.join(" ")}`, outcome);
  return outcome.stdout;
}

/** Runs a program that must fail; gives everything that it said. */
export async function runToFailure(program: string, ...args: readonly string[]): Promise<string> {
  const outcome = await runAnyhow(program, ...args);
  if (outcome.code === 0) throw new Error(`${program} ${args.join(" ")}\nsucceeded, though it must not`);
  return outcome.stdout + outcome.stderr;
}

/** qemu-io that has an image open for writing, until it is told to let go. */
export class HeldImage {
  readonly #child: ChildProcess;
  readonly #closed: Promise<void>;

  private constructor(child: ChildProcess) {
    this.#child = child;
    this.#closed = new Promise((resolve) => child.on("close", () => resolve()));
    onTestFinished(() => {
      child.kill("SIGKILL");
    });
  }

  static async hold(filename: string): Promise<HeldImage> {
    const child = spawn("qemu-io", ["-f", "qcow2", filename], { stdio: ["pipe", "pipe", "inherit"] });
    const held = new HeldImage(child);
    // Its prompt comes when the image is open.
    await new Promise<void>((resolve, reject) => {
      child.stdout.once("data", () => resolve());
      child.once("error", reject);
    });
    return held;
  }

  async release(): Promise<void> {
    this.#child.stdin!.end("quit\n");
    await this.#closed;
  }
}

// `strata` as a person runs it from a checkout: one command at a time, or a server in the background.

import { type ChildProcess, spawn } from "node:child_process";
import { mkdirSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { onTestFinished } from "vitest";
import { within } from "./patience.ts";
import type { Outcome } from "./tool.ts";

const CHECKOUT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
/** STRATA_TEST_PROGRAM names another build, such as one that is installed. */
const STRATA = process.env["STRATA_TEST_PROGRAM"] ?? path.join(CHECKOUT, "scripts/strata");

/** A run that may still be going on. */
export class StrataRun {
  readonly done: Promise<Outcome>;
  readonly child: ChildProcess;
  #said = "";
  #wake: (() => void) | undefined;

  constructor(program: string, args: readonly string[], options: { cwd: string; env: NodeJS.ProcessEnv }) {
    this.child = spawn(program, args, { ...options, stdio: ["pipe", "pipe", "pipe"] });
    let stdout = "";
    let stderr = "";
    this.child.stdout!.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
      this.#hear(text);
    });
    this.child.stderr!.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
      this.#hear(text);
    });
    this.child.stdin!.on("error", () => undefined);
    this.done = new Promise((resolve) => {
      this.child.on("close", (code) => {
        resolve({ code: code ?? -1, stdout, stderr });
        this.#wake?.();
      });
    });
    onTestFinished(async () => {
      this.child.kill("SIGKILL");
      await this.done;
    });
  }

  #hear(text: string): void {
    this.#said += text;
    this.#wake?.();
  }

  /** Everything said so far. */
  get said(): string {
    return this.#said;
  }

  type(text: string): void {
    this.child.stdin!.write(text);
  }

  /** Waits until it has said something that fits. */
  async until(pattern: RegExp): Promise<void> {
    const heard = (async () => {
      while (!pattern.test(this.#said)) {
        if (this.child.exitCode !== null)
          throw new Error(`it ended without saying ${pattern}:\n${this.#said}`);
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
      }
    })();
    await within(heard, () => `it did not say ${pattern}, but:\n${this.#said}`);
  }
}

/** Runs commands in one directory, with a directory of their own for control sockets. */
export class Strata {
  readonly directory: string;
  readonly #env: NodeJS.ProcessEnv;

  constructor(directory: string) {
    this.directory = directory;
    const runtime = path.join(directory, "run");
    mkdirSync(runtime, { recursive: true, mode: 0o700 });
    this.#env = { ...process.env, XDG_RUNTIME_DIR: runtime };
  }

  start(...args: readonly string[]): StrataRun {
    return new StrataRun(STRATA, args, { cwd: this.directory, env: this.#env });
  }

  /** At a terminal of its own: what it says comes back as the terminal shows it. */
  startAtTerminal(...args: readonly string[]): StrataRun {
    const line = [STRATA, ...args].map((word) => `'${word}'`).join(" ");
    const env = { ...this.#env, TERM: "xterm" };
    return new StrataRun("script", ["-qec", line, "/dev/null"], { cwd: this.directory, env });
  }

  /** Runs one command to its end; `input` is what it reads. */
  async run(args: readonly string[], input = ""): Promise<Outcome> {
    const run = this.start(...args);
    run.child.stdin!.end(input);
    return within(run.done, () => `strata ${args.join(" ")} does not end; it said:\n${run.said}`);
  }

  /** A command that must work; gives its standard output. */
  async ok(...args: readonly string[]): Promise<string> {
    const { code, stdout, stderr } = await this.run(args);
    if (code !== 0)
      throw new Error(`strata ${args.join(" ")}\nended with code ${code} and said:\n${stdout}${stderr}`);
    return stdout;
  }

  /** Serves a disk in the background; ready when the address is told. */
  async serve(...args: readonly string[]): Promise<StrataRun & { uri: string }> {
    const run = this.start("serve", ...args);
    await run.until(/address\s+\S+\n[\s\S]*\n\n/);
    return Object.assign(run, { uri: /address\s+(\S+)/.exec(run.said)![1]! });
  }
}

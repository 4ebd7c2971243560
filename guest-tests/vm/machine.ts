// A virtual machine under test: QEMU with a serial console that a test reads and types at.
//
//   test  -- run("mount ...") -->  console  -->  root shell of the guest
//         <-- status, output  --            <--  begin mark, output, end mark with the status
//
//   1. The serial console is QEMU's standard input and output; all of it is kept, and shown on failure.
//   2. A command travels in base64, in short lines: quotes and length do not matter to the guest's terminal.
//      Its marks are put together by the guest, so that an echo of what we type is never taken for one.
//   3. The kernel may print in the middle of any line. Its messages are taken out before marks are looked
//      for.
//   4. No machine outlives its test: it is killed with this process, and by stop(), whatever happened.

import { type ChildProcess, spawn } from "node:child_process";
import { accessSync, appendFileSync, constants, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { onTestFailed } from "vitest";
import { within } from "../harness/patience.ts";
import { QmpClient } from "../harness/qmp-client.ts";
import { findGuestKernel, findProgram } from "./kernel.ts";

export interface MachineSettings {
  /** The installed Debian cloud kernel, unless told otherwise; "" boots from a disk as a PC does. */
  readonly kernel?: string;
  /** Path of a cpio archive. */
  readonly initramfs?: string;
  /** Further words for the kernel; console=ttyS0 is added. */
  readonly append?: string;
  readonly memoryMiB?: number;
  readonly cpus?: number;
  /** Further arguments of QEMU. A network with virtio-net is there; the host is 10.0.2.2. */
  readonly arguments?: readonly string[];
  /** The console is kept there too. */
  readonly logFile?: string;
}

export interface CommandOutcome {
  readonly status: number;
  /** Standard output and error, without the kernel's messages; lines end with "\n", the last one without. */
  readonly output: string;
}

const COMMAND_PATIENCE_MS = 120_000;
/** A terminal takes lines of 4095 characters at most; longer ones lose their end. */
const TYPED_LINE_MAX = 2_000;
/** QEMU's descriptor for its monitor: a socket that it inherits, so that no file is left behind. */
const MONITOR = 3;
const TAIL_LINES = 60;
const KERNEL_MESSAGE = /\[ *\d+\.\d{6}\] [^\n]*\n/g;

export class Machine {
  readonly #child: ChildProcess;
  readonly #logFile: string | undefined;
  readonly #ended: Promise<void>;
  readonly #qmp: QmpClient;
  readonly #watchers = new Set<() => void>();
  #console = "";
  #isRunning = true;
  #isBusy = false;
  #commands = 0;

  private constructor(child: ChildProcess, logFile: string | undefined) {
    this.#child = child;
    this.#qmp = new QmpClient(child.stdio[MONITOR] as Socket, () => "QEMU has ended");
    this.#logFile = logFile;
    if (logFile !== undefined) writeFileSync(logFile, "");
    this.#ended = new Promise((resolve) => {
      child.on("error", (error) => this.#hear(`cannot start QEMU: ${error.message}\n`));
      child.on("close", (code, signal) => {
        this.#isRunning = false;
        this.#hear(`\n-- QEMU ended: ${signal ?? `code ${code}`} --\n`);
        resolve();
      });
    });
    for (const stream of [child.stdout!, child.stderr!])
      stream.setEncoding("utf8").on("data", (text: string) => this.#hear(text));
    child.stdin!.on("error", () => undefined);
  }

  /** Starts QEMU; the guest is still booting then, see waitFor. @throws Error with QEMU's words */
  static async start(settings: MachineSettings): Promise<Machine> {
    const child = spawnQemu(qemuArguments(settings));
    const machine = new Machine(child, settings.logFile);
    machine.#showOnFailure();
    const refusal = machine.#ended.then(() => Promise.reject(machine.#error("QEMU ended at its start")));
    try {
      await within(Promise.race([machine.#qmp.greeting, refusal]), () => "QEMU does not greet");
      refusal.catch(() => undefined);
      await machine.#qmp.execute("qmp_capabilities");
      return machine;
    } catch (error) {
      await machine.stop();
      throw error;
    }
  }

  /** All that the guest has printed; lines end with "\n". */
  get console(): string {
    return this.#console;
  }

  /** Whether QEMU is there; a guest that powers off ends it, and one that reboots too. */
  get isRunning(): boolean {
    return this.#isRunning;
  }

  /** Settles when QEMU has ended. */
  get ended(): Promise<void> {
    return this.#ended;
  }

  /**
   * Waits until the console has printed this, from its beginning on. @throws Error with the console's tail
   */
  waitFor(pattern: RegExp, timeoutMs: number): Promise<RegExpExecArray> {
    return this.#heard(() => pattern.exec(this.#console), `the console never said ${pattern}`, timeoutMs);
  }

  /** Runs a shell command at the root shell on the serial console, to its end; one at a time. */
  async run(command: string, timeoutMs = COMMAND_PATIENCE_MS): Promise<CommandOutcome> {
    if (this.#isBusy) throw new Error(`the guest's shell is busy; it cannot run: ${command}`);
    this.#isBusy = true;
    const from = this.#console.length;
    const number = ++this.#commands;
    this.#note(`# ${command}`);
    this.type(typedLines(command, number));
    const marked = new RegExp(`<<begin-${number}>>\n([\\s\\S]*?)<<end-${number}-(\\d+)>>`);
    const look = () => marked.exec(this.#console.slice(from).replace(KERNEL_MESSAGE, ""));
    const found = await this.#heard(look, `the guest did not finish: ${command}`, timeoutMs);
    this.#isBusy = false;
    return { status: Number(found[2]), output: found[1]!.trimEnd() };
  }

  /** Runs a command that must succeed; gives its output. @throws Error with the output */
  async must(command: string, timeoutMs?: number): Promise<string> {
    const { status, output } = await this.run(command, timeoutMs);
    if (status !== 0) throw new Error(`in the guest: ${command}\nended with ${status} and said:\n${output}`);
    return output;
  }

  /** Types at the console. */
  type(text: string): void {
    this.#child.stdin!.write(text);
  }

  /** A command for QEMU's own monitor. @throws QmpError */
  qmp(command: string, args?: object): Promise<unknown> {
    return this.#qmp.execute(command, args as Record<string, unknown> | undefined);
  }

  /** A power cut: QEMU is gone at once. */
  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#ended;
  }

  /** Ends the machine if it is still there, and tidies up. May be called at any time, and again. */
  async stop(): Promise<void> {
    await this.kill();
    running.delete(this.#child);
  }

  /** The last lines of the console, for errors. */
  tail(lines = TAIL_LINES): string {
    return this.#console.trimEnd().split("\n").slice(-lines).join("\n");
  }

  #hear(text: string): void {
    const plain = text.replaceAll("\r", "");
    this.#console += plain;
    if (this.#logFile !== undefined) appendFileSync(this.#logFile, plain);
    for (const watcher of [...this.#watchers]) watcher();
  }

  /** What the test does, beside what the guest says; not looked at by waitFor. */
  #note(text: string): void {
    if (this.#logFile !== undefined) appendFileSync(this.#logFile, `${text}\n`);
  }

  async #heard(
    look: () => RegExpExecArray | null,
    missing: string,
    timeoutMs: number,
  ): Promise<RegExpExecArray> {
    let watcher: () => void = () => undefined;
    const heard = new Promise<RegExpExecArray>((resolve, reject) => {
      watcher = () => {
        const found = look();
        if (found !== null) resolve(found);
        else if (!this.#isRunning) reject(this.#error(missing));
      };
      this.#watchers.add(watcher);
      watcher();
    });
    return within(heard, () => this.#error(`${missing} within ${timeoutMs} ms`).message, timeoutMs).finally(
      () => this.#watchers.delete(watcher),
    );
  }

  #error(what: string): Error {
    return new Error(`${what}; the end of the console:\n${this.tail()}`);
  }

  /** Prints the end of the console when the test fails, and keeps all of it. */
  #showOnFailure(): void {
    try {
      onTestFailed(() => {
        const kept = path.join(mkdtempSync(path.join(tmpdir(), "strata-console-")), "console.txt");
        writeFileSync(kept, this.#console);
        console.error(`-- console of the guest, its end; all of it is kept in ${kept} --\n${this.tail()}`);
      });
    } catch {
      // Started outside a test, by a hook: the errors of waitFor and run show the console as well.
    }
  }
}

/** Lines for the guest's shell. Only the second one runs the command, so that its faults stop there. */
function typedLines(command: string, number: number): string {
  const packed = Buffer.from(command).toString("base64");
  const lines = ["_c=; _s="];
  for (let at = 0; at < packed.length; at += TYPED_LINE_MAX)
    lines.push(`_c=$_c""${packed.slice(at, at + TYPED_LINE_MAX)}`);
  lines.push(`printf '\\n<<%s-%d>>\\n' begin ${number}`);
  lines.push(`eval "$(echo $_c | base64 -d)" </dev/null 2>&1; _s=$?`);
  lines.push(`printf '\\n<<%s-%d-%d>>\\n' end ${number} \${_s:-2}`);
  return `${lines.join("\n")}\n`;
}

function qemuArguments(settings: MachineSettings): string[] {
  const kernel = settings.kernel ?? findGuestKernel()?.image;
  if (kernel === undefined) throw new Error("no Debian cloud kernel is installed; see scripts/install-tools");
  const args = ["-machine", "q35", ...accelerator(), "-nodefaults", "-nographic", "-no-reboot"];
  args.push("-serial", "stdio", "-m", String(settings.memoryMiB ?? 512), "-smp", String(settings.cpus ?? 2));
  args.push("-chardev", `socket,id=qmp,fd=${MONITOR}`, "-mon", "chardev=qmp,mode=control");
  args.push("-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile=");
  if (kernel !== "") {
    const words = `console=ttyS0 panic=-1 ${settings.append ?? ""}`.trimEnd();
    args.push("-kernel", kernel, "-append", words);
  }
  if (settings.initramfs !== undefined) args.push("-initrd", settings.initramfs);
  return [...args, ...(settings.arguments ?? [])];
}

/**
 * The host's own virtualization where it can be used, and QEMU's translation where not. A host may have
 * /dev/kvm and no processor to go with it; no guest gets anywhere there.
 */
function accelerator(): string[] {
  // Without rdrand the guest waits half a minute for random numbers, as soon as something asks for a UUID.
  const translation = ["-accel", "tcg,thread=multi", "-cpu", "qemu64,+rdrand"];
  try {
    accessSync("/dev/kvm", constants.R_OK | constants.W_OK);
    const isCapable = /^flags\s*:.* (vmx|svm)\b/m.test(readFileSync("/proc/cpuinfo", "utf8"));
    return isCapable ? ["-accel", "kvm", "-cpu", "host"] : translation;
  } catch {
    return translation;
  }
}

const running = new Set<ChildProcess>();
process.on("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});

function spawnQemu(args: readonly string[]): ChildProcess {
  const qemu = findProgram("qemu-system-x86_64");
  if (qemu === undefined) throw new Error("qemu-system-x86_64 is not installed; see scripts/install-tools");
  // The kernel ends QEMU with us even when we are killed.
  const guard = findProgram("setpriv");
  const line = guard === undefined ? [qemu, ...args] : [guard, "--pdeathsig", "KILL", qemu, ...args];
  const child = spawn(line[0]!, line.slice(1), { stdio: ["pipe", "pipe", "pipe", "pipe"] });
  running.add(child);
  return child;
}

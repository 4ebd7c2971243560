import { spawn } from "node:child_process";
import fs from "node:fs";
import net from "node:net";
import path from "node:path";
import { createInterface } from "node:readline";

/** The programs that are compared: same command line, same QMP. */
export interface PeerKind {
  readonly name: string;
  readonly program: string;
  /** Options that make it as fast as it goes, in front of the others. */
  readonly options: readonly string[];
  /** Members for the `file` node and for the export. */
  readonly fileOptions: Record<string, unknown>;
  readonly exportOptions: Record<string, unknown>;
}

export function strata(program: string): PeerKind {
  return { name: "strata", program, options: [], fileOptions: {}, exportOptions: {} };
}

/** QSD at its best. With an iothread it aborts when a job ends, so jobs go without. */
export function qemuStorageDaemon(iothread: boolean): PeerKind {
  return {
    name: "qsd",
    program: "qemu-storage-daemon",
    options: iothread ? ["--object", "iothread,id=io0"] : [],
    fileOptions: { aio: "io_uring" },
    exportOptions: iothread ? { iothread: "io0" } : {},
  };
}

const CLOCK_TICKS_PER_SECOND = 100;

/** One disk of a daemon: where clients find it, and the name of its node and of its export. */
export interface Disk {
  readonly name: string;
  readonly uri: string;
}

/** A daemon that serves chains on a Unix socket. */
export class Peer {
  readonly #socket: string;
  readonly #child;
  readonly #qmp: net.Socket;
  readonly #lines: string[] = [];
  #arrived: (() => void) | undefined;

  private constructor(child: ReturnType<typeof spawn>, qmp: net.Socket, socket: string) {
    this.#child = child;
    this.#qmp = qmp;
    this.#socket = socket;
    createInterface({ input: qmp }).on("line", (line) => {
      this.#lines.push(line);
      this.#arrived?.();
    });
  }

  /** @param images the active image of each disk, by the disk's name */
  static async start(
    kind: PeerKind,
    folder: string,
    images: Readonly<Record<string, string>>,
  ): Promise<Peer> {
    const nbd = path.join(folder, `${kind.name}.nbd`);
    const qmpPath = path.join(folder, `${kind.name}.qmp`);
    for (const stale of [nbd, qmpPath]) fs.rmSync(stale, { force: true });
    const disks = Object.entries(images).flatMap(([name, image]) => [
      "--blockdev",
      JSON.stringify({
        driver: "qcow2",
        "node-name": name,
        discard: "unmap",
        file: { driver: "file", filename: image, discard: "unmap", ...kind.fileOptions },
      }),
    ]);
    const exports = Object.keys(images).flatMap((name) => [
      "--export",
      JSON.stringify({
        type: "nbd",
        id: name,
        "node-name": name,
        name,
        writable: true,
        ...kind.exportOptions,
      }),
    ]);
    const child = spawn(
      kind.program,
      [
        ...kind.options,
        ...disks,
        ...["--nbd-server", `addr.type=unix,addr.path=${nbd},max-connections=0`],
        ...exports,
        ...["--chardev", `socket,id=qmp,path=${qmpPath},server=on,wait=off`],
        ...["--monitor", "chardev=qmp"],
      ],
      { stdio: ["ignore", "ignore", "inherit"] },
    );
    await waitForFile(qmpPath, child);
    const peer = new Peer(child, net.connect(qmpPath), nbd);
    await peer.#next((message) => "QMP" in message);
    await peer.execute("qmp_capabilities", {});
    return peer;
  }

  disk(name: string): Disk {
    return { name, uri: `nbd+unix:///${name}?socket=${this.#socket}` };
  }

  async execute(command: string, args: Record<string, unknown>): Promise<unknown> {
    this.#qmp.write(JSON.stringify({ execute: command, arguments: args }) + "\n");
    const reply = await this.#next((message) => "return" in message || "error" in message);
    if ("error" in reply) throw new Error(`${command}: ${JSON.stringify(reply["error"])}`);
    return reply["return"];
  }

  event(name: string): Promise<Record<string, unknown>> {
    return this.#next((message) => message["event"] === name);
  }

  async #next(wanted: (message: Record<string, unknown>) => boolean): Promise<Record<string, unknown>> {
    for (;;) {
      while (this.#lines.length > 0) {
        const message = JSON.parse(this.#lines.shift()!) as Record<string, unknown>;
        if (wanted(message)) return message;
      }
      await new Promise<void>((resolve) => {
        this.#arrived = resolve;
      });
    }
  }

  /** User and system time that the daemon has used so far, in microseconds. */
  cpuMicroseconds(): number {
    const stat = fs.readFileSync(`/proc/${this.#child.pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return ((Number(fields[11]) + Number(fields[12])) * 1e6) / CLOCK_TICKS_PER_SECOND;
  }

  /** The most memory that it has held, in bytes. */
  peakMemoryBytes(): number {
    const status = fs.readFileSync(`/proc/${this.#child.pid}/status`, "utf8");
    return Number(/VmHWM:\s+(\d+)/.exec(status)?.[1] ?? 0) * 1024;
  }

  async stop(): Promise<void> {
    const ended = new Promise((resolve) => this.#child.once("exit", resolve));
    this.#qmp.destroy();
    this.#child.kill("SIGTERM");
    await ended;
  }
}

async function waitForFile(file: string, child: ReturnType<typeof spawn>): Promise<void> {
  while (!fs.existsSync(file)) {
    if (child.exitCode !== null) throw new Error(`${child.spawnfile} ended with exit code ${child.exitCode}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

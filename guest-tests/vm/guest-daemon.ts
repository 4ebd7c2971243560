// The daemon inside of a virtual machine, with its monitor and its disks in the hands of a test outside.
//
//   test  <-- QMP: the daemon connects to 10.0.2.2, which is the host --  daemon in the guest
//         -- NBD: a port of the host that QEMU forwards ------------->
//
// The guest is an initramfs with the disk of strata-disk.ts at /opt.

import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { onTestFinished } from "vitest";
import { freePort } from "../harness/free-port.ts";
import { within } from "../harness/patience.ts";
import { QmpClient } from "../harness/qmp-client.ts";
import { buildInitramfs, GUEST_READY } from "./initramfs.ts";
import { Machine } from "./machine.ts";
import { buildStrataDisk, mountStrata, nodeLibraries } from "./strata-disk.ts";

/** Node takes seconds to start where every instruction is translated. */
export const GUEST_PATIENCE_MS = 240_000;

const DAEMON = "/opt/node /opt/dist/src/control/strata-storage-daemon.js";
const GUEST_PORT = 10809;

export interface GuestSettings {
  /** Programs of the host and modules of its kernel; see initramfs.ts. */
  readonly programs: readonly string[];
  readonly modules: readonly string[];
  /** Path below /opt -> path on the host. */
  readonly files: Readonly<Record<string, string>>;
  /** Lengths of further disks: the first is /dev/vdb, and `disks[0]` on the host. */
  readonly disks: readonly number[];
}

/** A machine that can run the daemon. */
export class GuestWithStrata {
  readonly machine: Machine;
  /** Raw images of the further disks. */
  readonly disks: readonly string[];
  readonly #directory: string;
  readonly #port: number;
  #daemons = 0;

  private constructor(machine: Machine, disks: readonly string[], directory: string, port: number) {
    this.machine = machine;
    this.disks = disks;
    this.#directory = directory;
    this.#port = port;
  }

  static async boot(settings: GuestSettings): Promise<GuestWithStrata> {
    const directory = mkdtempSync(path.join(tmpdir(), "strata-guest-"));
    let machine: Machine | undefined;
    try {
      const { programs, modules, disks: lengths } = settings;
      const strata = buildStrataDisk(directory, settings.files);
      const files = nodeLibraries();
      const initramfs = await buildInitramfs(
        { programs, modules: ["ext4", ...modules], files, init: mountStrata("/dev/vda") },
        path.join(directory, "initramfs"),
      );
      const disks = lengths.map((_, index) => path.join(directory, `disk-${index}.raw`));
      for (const [index, disk] of disks.entries()) {
        writeFileSync(disk, "");
        truncateSync(disk, lengths[index]);
      }
      const drive = (file: string) => ["-drive", `file=${file},format=raw,if=virtio,cache=unsafe`];
      machine = await Machine.start({
        initramfs,
        memoryMiB: 768,
        arguments: [strata, ...disks].flatMap(drive),
      });
      const guest = new GuestWithStrata(machine, disks, directory, await freePort());
      await machine.waitFor(GUEST_READY, GUEST_PATIENCE_MS);
      const forward = `hostfwd_add net0 tcp:127.0.0.1:${guest.#port}-:${GUEST_PORT}`;
      const said = await machine.qmp("human-monitor-command", { "command-line": forward });
      if (said !== "") throw new Error(`QEMU does not forward a port: ${said}`);
      return guest;
    } catch (error) {
      await machine?.stop();
      rmSync(directory, { recursive: true, force: true });
      throw error;
    }
  }

  /** The disks stay, as the guest has synced them, until `remove`. */
  stop(): Promise<void> {
    return this.machine.stop();
  }

  async remove(): Promise<void> {
    await this.stop();
    rmSync(this.#directory, { recursive: true, force: true });
  }

  /**
   * Starts a daemon, and waits until it has carried out its command line; one at a time. `wrapper` is a
   * program of the guest that starts another one, with its arguments.
   */
  async serve(args: readonly string[], wrapper = ""): Promise<GuestDaemon> {
    const { port, connected, close } = await listenOnce();
    const here = `/tmp/daemon-${++this.#daemons}`;
    const line = [
      ...[wrapper, DAEMON, "--insecure", "--pidfile", `${here}.pid`],
      ...["--nbd-server", `addr.type=inet,addr.host=0.0.0.0,addr.port=${GUEST_PORT}`],
      ...args,
      ...["--chardev", `socket,id=harness,host=10.0.2.2,port=${port},server=off`],
      ...["--monitor", "chardev=harness"],
    ].join(" ");
    // The PID file is there when the command line has been carried out; a daemon that has ended is a zombie,
    // or gone.
    const pid = await this.machine.must(
      `${line} >${here}.log 2>&1 & p=$!
      until [ -e ${here}.pid ] || ! grep -q "State:.[^Z]" /proc/$p/status 2>/dev/null; do sleep 0.3; done
      if [ -e ${here}.pid ]; then echo $p; else cat ${here}.log; false; fi`,
      GUEST_PATIENCE_MS,
    );
    const qmp = new QmpClient(
      await within(connected, () => "no monitor"),
      () => `see ${here}.log in the guest`,
    );
    close();
    await within(qmp.greeting, () => "no greeting");
    await qmp.execute("qmp_capabilities");
    const daemon = new GuestDaemon(this.machine, qmp, Number(pid), this.#port);
    onTestFinished(() => daemon.kill());
    return daemon;
  }
}

export class GuestDaemon {
  readonly qmp: QmpClient;
  readonly #machine: Machine;
  readonly #pid: number;
  readonly #port: number;
  #isGone = false;

  constructor(machine: Machine, qmp: QmpClient, pid: number, port: number) {
    this.#machine = machine;
    this.qmp = qmp;
    this.#pid = pid;
    this.#port = port;
  }

  /** NBD URI of an export, for programs of the host. */
  uri(exportName: string): string {
    return `nbd://127.0.0.1:${this.#port}/${exportName}`;
  }

  /** Asks it to quit. @throws when it does not end with code 0 */
  async quit(): Promise<void> {
    await this.qmp.execute("quit");
    this.#isGone = true;
    await this.#machine.must(`wait ${this.#pid}`);
  }

  /** Ends it if it is still there. */
  async kill(): Promise<void> {
    if (this.#isGone) return;
    this.#isGone = true;
    await this.#machine.run(`kill -9 ${this.#pid}; wait ${this.#pid}`);
    this.qmp.close();
  }
}

async function listenOnce(): Promise<{ port: number; connected: Promise<Socket>; close: () => void }> {
  const server: Server = createServer();
  const connected = new Promise<Socket>((resolve) => server.once("connection", resolve));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { port: (server.address() as AddressInfo).port, connected, close: () => server.close() };
}

import type { Command } from "commander";
import { parseNbdUri } from "../../../nbd/uri.ts";
import { BlockError } from "../../base/errors.ts";
import { formatSize } from "../../base/units.ts";
import { deviceIndexes, deviceState, type NbdHost, nbdIndex, realNbdHost } from "../../sys/nbd-device.ts";
import { type AttachRecord, readRecord, removeRecord, writeRecord } from "../attach/attach-record.ts";
import { stopDaemon } from "../attach/background-daemon.ts";
import { type DiskSource, findSource } from "../attach/disk-source.ts";
import { type DevicePlan, type KernelDriver, openKernelDriver } from "../attach/kernel-driver.ts";
import { inUse } from "../attach/netlink-driver.ts";
import { releaseDaemon } from "../attach/release-daemon.ts";
import { UndoList } from "../attach/undo.ts";
import { type VerifiedDevice, verifyDevice, verifyUsedDevice } from "../attach/verify-device.ts";
import { type CommandContext, examples } from "../command-context.ts";
import { EXIT_CODES } from "../exit-codes.ts";
import { ExitRequest, usageError } from "../failure.ts";
import { repeatable } from "../repeatable-option.ts";

interface AttachFlags {
  readonly format?: string;
  readonly readOnly?: boolean;
  readonly connections: string;
  readonly timeout?: string;
  readonly deadTimeout?: string;
  readonly reconnect?: boolean;
  readonly control?: string;
  readonly json?: boolean;
  readonly backingRoot: readonly string[];
}

/** The kernel takes more, but a daemon has one event loop. */
const CONNECTIONS_MAX = 16;
const SECONDS_MAX = 86_400;

export function addAttach(program: Command, context: CommandContext): void {
  program
    .command("attach <disk> [device]")
    .description(
      "make a disk a block device of this machine: an image file, an NBD URI, or what a daemon serves",
    )
    .option("-f, --format <format>", "qcow2 or raw; a raw disk must be stated, it is not guessed")
    .option("--read-only", "let nobody write")
    .option("-c, --connections <count>", "connections of the kernel to the daemon", "1")
    .option("--timeout <seconds>", "give a connection up when it does not answer for so long; otherwise wait")
    .option(
      "--dead-timeout <seconds>",
      "when all connections are gone, let requests wait so long for --reconnect; otherwise they fail",
    )
    .option("--reconnect", "give the device new connections, when the daemon came back")
    .option("--control <control>", "the daemon that serves DISK: its name or the path of its QMP socket")
    .option("--json", "what was attached, for scripts")
    .addOption(
      repeatable("--backing-root <directory>", "for the daemon of an image file: as of 'strata serve'"),
    )
    .addHelpText(
      "after",
      examples(
        "strata attach disk.qcow2",
        "strata attach disk.qcow2 /dev/nbd3 --connections 2",
        "strata attach nbd://10.0.0.7/virtio0 --timeout 30 --dead-timeout 600",
        "strata attach virtio0 --read-only",
      ) +
        "\nWithout DEVICE the kernel chooses one that is free, and its name is told. An image file that no daemon\n" +
        "serves gets a daemon of its own, which 'strata detach' ends.\n",
    )
    .action((disk: string, device: string | undefined, flags: AttachFlags) =>
      new Attachment(disk, device, flags, context).run(),
    );
}

/** One run of the command: each step that leaves something behind says how to take it back. */
class Attachment {
  readonly #disk: string;
  readonly #index: number | undefined;
  readonly #flags: AttachFlags;
  readonly #wanted: Pick<DevicePlan, "connections" | "timeoutSeconds" | "deadSeconds" | "readOnly">;
  readonly #context: CommandContext;
  readonly #host: NbdHost = realNbdHost;
  readonly #undo = new UndoList();
  #interrupted = false;

  constructor(disk: string, device: string | undefined, flags: AttachFlags, context: CommandContext) {
    this.#disk = disk;
    this.#index = device === undefined ? undefined : nbdIndex(device);
    this.#flags = flags;
    this.#context = context;
    this.#wanted = {
      connections: wholeNumber("--connections", flags.connections, CONNECTIONS_MAX)!,
      timeoutSeconds: wholeNumber("--timeout", flags.timeout, SECONDS_MAX),
      deadSeconds: wholeNumber("--dead-timeout", flags.deadTimeout, SECONDS_MAX),
      readOnly: flags.readOnly === true,
    };
    if (flags.reconnect && this.#index === undefined)
      throw usageError("--reconnect needs the device: /dev/nbdN");
  }

  async run(): Promise<void> {
    const driver = openKernelDriver(this.#host, "attach");
    const forget = this.#context.onInterrupt(() => {
      this.#interrupted = true;
    });
    try {
      if (this.#flags.reconnect === true) await this.#reconnect(driver, this.#index!);
      else await this.#attach(driver);
    } catch (error) {
      for (const failure of await this.#undo.run()) this.#context.terminal.err(`strata: ${failure}\n`);
      throw error;
    } finally {
      forget();
      driver.close();
    }
  }

  async #attach(driver: KernelDriver): Promise<void> {
    this.#refuseUsedDevice();
    const source = await this.#findSource();
    if (source.started !== undefined) this.#undo.push(() => stopDaemon(source.started!));
    this.#refuseSecondDevice(source.uri);
    const plan = { ...this.#wanted, uri: source.uri, target: parseNbdUri(source.uri), index: this.#index };
    const index = await driver.connect(plan);
    this.#undo.push(() => driver.disconnect(index));
    this.#checkInterrupt();
    const verified = await verifyDevice(this.#host, index, plan);
    await this.#record(index, source);
    this.#checkInterrupt();
    this.#tell(index, source, verified, driver);
  }

  /** The daemon is there again: requests that wait go on, if the device's dead timeout is not over. */
  async #reconnect(driver: KernelDriver, index: number): Promise<void> {
    const state = deviceState(this.#host, index);
    if (state?.connected !== true) {
      throw new BlockError("EINVAL", `/dev/nbd${index} is not attached: leave --reconnect away to attach it`);
    }
    const source = await this.#findSource(readRecord(this.#context.environment, index));
    if (source.started !== undefined) this.#undo.push(() => stopDaemon(source.started!));
    if (state.backend !== undefined && state.backend !== source.uri) {
      throw new BlockError(
        "EINVAL",
        `/dev/nbd${index} was attached to ${state.backend}, not to ${source.uri}`,
      );
    }
    const plan = { ...this.#wanted, uri: source.uri, target: parseNbdUri(source.uri), index };
    // All that can be said before: what has been connected once may have been written to.
    await verifyUsedDevice(this.#host, index, plan);
    await driver.reconnect(plan);
    await this.#record(index, source);
    this.#tell(index, source, await verifyUsedDevice(this.#host, index, plan), driver);
  }

  /** Said before a daemon is started in vain; the kernel refuses as well. */
  #refuseUsedDevice(): void {
    const index = this.#index;
    if (index === undefined) return;
    const state = deviceState(this.#host, index);
    if (state?.connected === true) throw inUse(index, state.backend);
  }

  /** Two devices on one disk do not see each other's writes in time: file systems break that way. */
  #refuseSecondDevice(uri: string): void {
    if (this.#wanted.readOnly) return;
    for (const index of deviceIndexes(this.#host)) {
      const state = deviceState(this.#host, index);
      if (state?.connected !== true || state.backend !== uri) continue;
      throw new BlockError(
        "EBUSY",
        `${this.#disk} is attached already, to /dev/nbd${index}: end that with 'strata detach /dev/nbd${index}', or ` +
          "attach it a second time with --read-only",
      );
    }
  }

  #findSource(former?: AttachRecord): Promise<DiskSource> {
    return findSource({
      disk: this.#disk,
      format: this.#flags.format,
      readOnly: this.#wanted.readOnly,
      control: this.#flags.control,
      backingRoots: this.#flags.backingRoot,
      environment: this.#context.environment,
      qmp: former?.qmp,
      checkInterrupt: () => this.#checkInterrupt(),
    });
  }

  /** What an earlier attach left for this device is of no use to anybody: the device was free. */
  async #record(index: number, source: DiskSource): Promise<void> {
    const { environment } = this.#context;
    const former = readRecord(environment, index);
    // The daemon of that time serves this very disk, and goes on to be the one that detach ends.
    if (former?.uri === source.uri && source.started === undefined) return;
    if (former !== undefined && former.uri !== source.uri) {
      await releaseDaemon(this.#host, environment, { index, record: former });
    }
    if (source.started === undefined) {
      removeRecord(environment, index);
      return;
    }
    this.#undo.push(() => removeRecord(environment, index));
    writeRecord(environment, index, source.started);
  }

  #checkInterrupt(): void {
    if (this.#interrupted) throw new ExitRequest(EXIT_CODES.INTERRUPTED.code, "stopped; nothing is attached");
  }

  #tell(index: number, source: DiskSource, verified: VerifiedDevice, driver: KernelDriver): void {
    const device = `/dev/nbd${index}`;
    const { terminal } = this.#context;
    if (this.#flags.json === true) {
      const { size, readOnly, bytes } = verified;
      const { connections } = this.#wanted;
      const daemon = source.started === undefined ? null : source.started.pid;
      const told = { device, size, readOnly, connections, uri: source.uri, by: driver.name, bytes };
      terminal.out(JSON.stringify({ ...told, daemon, control: source.qmp ?? null }, undefined, 2) + "\n");
      return;
    }
    terminal.out(deviceText(device, verified, this.#wanted.connections));
    const daemon = source.started === undefined ? "" : `, by a daemon of its own (pid ${source.started.pid})`;
    terminal.out(`  disk        ${this.#disk}${daemon}\n  address     ${source.uri}\n`);
    if (source.qmp !== undefined) terminal.out(`  control     ${source.qmp}\n`);
    terminal.out(`  to end it   strata detach ${device}\n`);
    if (verified.bytes !== "equal" && this.#flags.reconnect !== true) {
      terminal.err("strata: others write to the disk all the time, so its bytes were not compared\n");
    }
  }
}

function deviceText(device: string, { size, readOnly }: VerifiedDevice, connections: number): string {
  const how = readOnly ? "read-only" : "for reading and writing";
  const links = connections === 1 ? "one connection" : `${connections} connections`;
  return `${device}   ${formatSize(size)}, ${links}, ${how}\n`;
}

/** @throws BlockError USAGE for what is no number from 1 to `max` */
function wholeNumber(option: string, text: string | undefined, max: number): number | undefined {
  if (text === undefined) return undefined;
  const value = Number(text);
  if (/^\d+$/.test(text) && value >= 1 && value <= max) return value;
  throw usageError(`${option} takes a whole number from 1 to ${max}, not '${text}'`);
}

import { spawnSync } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { BlockError } from "../../base/errors.ts";
import { deviceIndexes, deviceState, type NbdHost } from "../../sys/nbd-device.ts";
import type { DevicePlan, KernelDriver } from "./kernel-driver.ts";

/** nbd-client leaves the work to a process of its own, and that one may take a moment to begin. */
const START_TRIES = 100;
const START_PAUSE_MS = 50;

/** The kernel connected by nbd-client, with the old calls that need no netlink. */
export class NbdClientDriver implements KernelDriver {
  readonly name = "nbd-client";
  readonly #host: NbdHost;

  private constructor(host: NbdHost) {
    this.#host = host;
  }

  /** `why` says why it has to be this one. @throws BlockError ENOTSUP where it is not installed */
  static find(host: NbdHost, why: string): NbdClientDriver {
    if (spawnSync("nbd-client", ["-V"], { stdio: "ignore" }).error === undefined)
      return new NbdClientDriver(host);
    throw new BlockError(
      "ENOTSUP",
      `the kernel's nbd driver cannot be asked over netlink (${why}) and nbd-client is not there to take its place: ` +
        "install nbd-client",
    );
  }

  /**
   * A device that somebody else takes in the meantime is refused by the kernel; then the next one is tried.
   */
  async connect(plan: DevicePlan): Promise<number> {
    if (plan.deadSeconds !== undefined) {
      throw new BlockError("ENOTSUP", "--dead-timeout needs netlink, which is missing here");
    }
    const free = (index: number) => deviceState(this.#host, index)?.connected === false;
    const candidates = plan.index === undefined ? deviceIndexes(this.#host).filter(free) : [plan.index];
    let refusal = "all nbd devices are in use";
    for (const index of candidates) {
      const { status, stderr, stdout } = spawnSync("nbd-client", nbdClientArguments(plan, index), {
        encoding: "utf8",
      });
      if (status === 0 && (await this.#begins(index))) return index;
      refusal = (stderr.trim() || stdout.trim()).split("\n").at(-1)!;
    }
    throw new BlockError("EBUSY", `nbd-client could not connect ${plan.uri}: ${refusal}`);
  }

  async reconnect(): Promise<void> {
    throw new BlockError("ENOTSUP", "--reconnect needs netlink, which is missing here");
  }

  disconnect(index: number): void {
    const { status, stderr } = spawnSync("nbd-client", ["-d", `/dev/nbd${index}`], { encoding: "utf8" });
    if (status !== 0) throw new BlockError("EIO", `cannot disconnect /dev/nbd${index}: ${stderr.trim()}`);
  }

  close(): void {}

  async #begins(index: number): Promise<boolean> {
    for (let tries = 0; tries < START_TRIES; tries++) {
      const state = deviceState(this.#host, index);
      if (state?.connected === true && state.size > 0) return true;
      await sleep(START_PAUSE_MS);
    }
    return false;
  }
}

export function nbdClientArguments(plan: DevicePlan, index: number): string[] {
  const { address, exportName } = plan.target;
  const where = "path" in address ? ["-unix", address.path] : [address.host, String(address.port)];
  const args = [...where, `/dev/nbd${index}`, "-name", exportName, "-nonetlink"];
  if (plan.connections > 1) args.push("-connections", String(plan.connections));
  if (plan.timeoutSeconds !== undefined) args.push("-timeout", String(plan.timeoutSeconds));
  if (plan.readOnly) args.push("-readonly");
  return args;
}

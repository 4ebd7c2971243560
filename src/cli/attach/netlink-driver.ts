import { setTimeout as sleep } from "node:timers/promises";
import { connectForHandOver, type HandedConnection } from "../../../nbd/handed-connection.ts";
import { TransmissionFlags } from "../../../nbd/protocol.ts";
import { BlockError, errorCode, errorMessage } from "../../base/errors.ts";
import { deviceState, type NbdHost } from "../../sys/nbd-device.ts";
import type { NbdConnect, NbdNetlink } from "../../sys/nbd-netlink.ts";
import type { NetlinkCalls } from "../../sys/netlink-socket.ts";
import type { DevicePlan, KernelDriver } from "./kernel-driver.ts";

/** The flags that some kernel understands; others it would have to ignore. */
const KERNEL_FLAGS =
  TransmissionFlags.HAS_FLAGS |
  TransmissionFlags.READ_ONLY |
  TransmissionFlags.SEND_FLUSH |
  TransmissionFlags.SEND_FUA |
  TransmissionFlags.ROTATIONAL |
  TransmissionFlags.SEND_TRIM |
  TransmissionFlags.SEND_WRITE_ZEROES |
  TransmissionFlags.CAN_MULTI_CONN;

/** Sizes of a logical block that every kernel takes. */
const BLOCK_SIZE_MIN = 512;
const BLOCK_SIZE_MAX = 4096;

/** A device that is free may be open for a moment, by udev for one; the kernel calls that in use. */
const BUSY_TRIES = 40;
const BUSY_PAUSE_MS = 50;

export class NetlinkDriver implements KernelDriver {
  readonly name = "netlink";
  readonly #host: NbdHost;
  readonly #nbd: NbdNetlink;
  readonly #netlink: NetlinkCalls;

  constructor(host: NbdHost, nbd: NbdNetlink, netlink: NetlinkCalls) {
    this.#host = host;
    this.#nbd = nbd;
    this.#netlink = netlink;
  }

  connect(plan: DevicePlan): Promise<number> {
    return withConnections(plan, (connections) => this.#connect(kernelPlan(plan, connections)));
  }

  reconnect(plan: DevicePlan & { readonly index: number }): Promise<void> {
    return withConnections(plan, async (connections) => {
      this.#nbd.reconnect({ ...kernelPlan(plan, connections), index: plan.index });
    });
  }

  disconnect(index: number): void {
    this.#nbd.disconnect(index);
  }

  close(): void {
    this.#netlink.close();
  }

  async #connect(plan: NbdConnect): Promise<number> {
    for (let tries = 1; ; tries++) {
      try {
        return this.#nbd.connect(plan);
      } catch (error) {
        if (errorCode(error) === "EPERM") throw noRights(error);
        const { index } = plan;
        if (index === undefined || errorCode(error) !== "EBUSY") throw error;
        const isConnected = deviceState(this.#host, index)?.connected === true;
        if (isConnected || tries === BUSY_TRIES) throw inUse(index);
        await sleep(BUSY_PAUSE_MS);
      }
    }
  }
}

function noRights(error: unknown): BlockError {
  const hint = "the kernel lets only root of the host do that, not root of a container";
  return new BlockError("EPERM", `${errorMessage(error)}: ${hint}`, error);
}

export function inUse(index: number, backend?: string): BlockError {
  const by = backend === undefined ? "" : `: it is attached to ${backend}`;
  return new BlockError(
    "EBUSY",
    `/dev/nbd${index} is in use${by}; name another one, or none for any that is free, or end this one with ` +
      `'strata detach /dev/nbd${index}'`,
  );
}

/** The kernel holds what it took when `action` is done; our descriptors are closed in any case. */
async function withConnections<T>(
  plan: DevicePlan,
  action: (connections: readonly HandedConnection[]) => Promise<T>,
): Promise<T> {
  const connections: HandedConnection[] = [];
  try {
    while (connections.length < plan.connections) {
      const connection = await connectForHandOver(plan.target);
      connections.push(connection);
      if (connections.length === 1) refuseSeveral(plan, connection);
      if (connection.details.size !== connections[0]!.details.size) {
        throw new BlockError("EIO", `${plan.uri} changed its size between two connections: try again`);
      }
    }
    return await action(connections);
  } finally {
    for (const connection of connections) connection.release();
  }
}

function refuseSeveral({ connections, uri }: DevicePlan, { details }: HandedConnection): void {
  if (connections === 1 || (details.flags & TransmissionFlags.CAN_MULTI_CONN) !== 0) return;
  throw new BlockError(
    "ENOTSUP",
    `the server of ${uri} does not promise that several connections see the same: leave --connections away`,
  );
}

/** @throws BlockError for a disk that cannot be a block device */
export function kernelPlan(
  plan: DevicePlan,
  connections: readonly Pick<HandedConnection, "details" | "descriptor">[],
): NbdConnect {
  const { size, flags, blockSize } = connections[0]!.details;
  if (size < BLOCK_SIZE_MIN) {
    throw new BlockError("EINVAL", `${plan.uri} has ${size} bytes: too few for a block device`);
  }
  if (blockSize.minimum > BLOCK_SIZE_MAX) {
    throw new BlockError(
      "ENOTSUP",
      `${plan.uri} wants blocks of at least ${blockSize.minimum} bytes, the kernel has at most ${BLOCK_SIZE_MAX}`,
    );
  }
  return {
    index: plan.index,
    size,
    blockSize: Math.max(BLOCK_SIZE_MIN, blockSize.minimum),
    serverFlags: (flags & KERNEL_FLAGS) | (plan.readOnly ? TransmissionFlags.READ_ONLY : 0),
    descriptors: connections.map(({ descriptor }) => descriptor),
    timeoutSeconds: plan.timeoutSeconds,
    deadSeconds: plan.deadSeconds,
    backend: plan.uri,
  };
}

// How the kernel gets its connections: over netlink where that can be, otherwise through nbd-client.
//
//   netlink     our own handshake, then the descriptors go to the kernel; nobody stays behind
//   nbd-client  where foreign calls are missing, or netlink shows no nbd (a network namespace of a
//   container);
//               a process of it stays for as long as the device is connected

import { spawnSync } from "node:child_process";
import type { NbdTarget } from "../../../nbd/uri.ts";
import { BlockError } from "../../base/errors.ts";
import { hasDriver, mayConnectDevices, type NbdHost } from "../../sys/nbd-device.ts";
import { NbdNetlink } from "../../sys/nbd-netlink.ts";
import { type NetlinkCalls, openNetlink } from "../../sys/netlink-socket.ts";
import { NbdClientDriver } from "./nbd-client-driver.ts";
import { NetlinkDriver } from "./netlink-driver.ts";

/** A device as it is wanted. */
export interface DevicePlan {
  readonly target: NbdTarget;
  /** The target as a URI; the kernel keeps it as the device's backend. */
  readonly uri: string;
  /** N of /dev/nbdN; undefined: any that is free. */
  readonly index: number | undefined;
  readonly connections: number;
  readonly readOnly: boolean;
  readonly timeoutSeconds: number | undefined;
  readonly deadSeconds: number | undefined;
}

export interface KernelDriver {
  /** What it works with, for people. */
  readonly name: "netlink" | "nbd-client";
  /** Makes the device; gives its index. @throws BlockError; no connection is left then */
  connect(plan: DevicePlan): Promise<number>;
  /** Gives a device whose connections are dead new ones. */
  reconnect(plan: DevicePlan & { readonly index: number }): Promise<void>;
  disconnect(index: number): void;
  close(): void;
}

/** @throws BlockError that says what is missing and what to do */
export function openKernelDriver(host: NbdHost, command: string): KernelDriver {
  if (!mayConnectDevices(host)) {
    throw new BlockError("EPERM", `only root connects /dev/nbd devices: sudo strata ${command} ...`);
  }
  const netlink = openNetlink();
  const found = findNbd(netlink) ?? (hasDriver(host) ? undefined : loadModule(host, netlink));
  if (found !== undefined) return new NetlinkDriver(host, found, netlink as NetlinkCalls);
  if (typeof netlink !== "string") netlink.close();
  const why =
    typeof netlink === "string" ? netlink : "the driver is not reachable from this network namespace";
  return NbdClientDriver.find(host, why);
}

function findNbd(netlink: NetlinkCalls | string): NbdNetlink | undefined {
  return typeof netlink === "string" ? undefined : NbdNetlink.find(netlink);
}

function loadModule(host: NbdHost, netlink: NetlinkCalls | string): NbdNetlink | undefined {
  const { error, stderr } = spawnSync("modprobe", ["nbd"], { encoding: "utf8" });
  const found = findNbd(netlink);
  if (found !== undefined || hasDriver(host)) return found;
  const said = (error?.message ?? stderr).trim().split("\n")[0]!;
  throw new BlockError(
    "ENOTSUP",
    `this kernel has no nbd driver, and 'modprobe nbd' did not load it${said === "" ? "" : ` (${said})`}: install the ` +
      "package with your kernel's modules, or use a kernel with CONFIG_BLK_DEV_NBD; in a container load it on the host",
  );
}

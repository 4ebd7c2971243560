// What a daemon tells of its nodes, exports and jobs, and how a name that a person types is found in it.

import { statSync } from "node:fs";
import path from "node:path";
import { BlockError } from "../base/errors.ts";
import type { QmpConnection } from "./qmp-client.ts";

/** Members of QAPI's BlockDeviceInfo that we look at. */
export interface NodeView {
  readonly "node-name": string;
  readonly drv: string;
  readonly file: string;
  readonly ro: boolean;
  readonly image: {
    readonly filename: string;
    readonly "virtual-size": number;
    readonly "full-backing-filename"?: string;
  };
}

/** What is served: `name` is what clients ask for, `id` what commands call it. */
export interface DeviceView {
  readonly name: string;
  readonly id: string;
  readonly "node-name": string;
  readonly writable?: boolean;
  /** Where clients find it. */
  readonly uri?: string;
}

/** Members of QAPI's BlockJobInfo that we look at; bytes. */
export interface JobView {
  readonly device: string;
  readonly type: string;
  readonly status: string;
  readonly offset: number;
  readonly len: number;
  readonly speed: number;
  readonly paused: boolean;
  readonly "io-status": string;
  readonly error?: string;
}

export interface DaemonView {
  readonly nodes: readonly NodeView[];
  readonly devices: readonly DeviceView[];
}

export async function viewDaemon(client: QmpConnection): Promise<DaemonView> {
  const nodes = (await client.execute("query-named-block-nodes", { flat: true })) as NodeView[];
  const devices = (await client.execute("x-strata-query-devices")) as DeviceView[];
  return { nodes, devices };
}

export async function viewJobs(client: QmpConnection): Promise<JobView[]> {
  return (await client.execute("query-block-jobs")) as JobView[];
}

/** Drivers below an image: they bear its file name too, but are not what a person means. */
const PROTOCOLS = new Set(["file", "host_device"]);

/**
 * The node that a person means by `name`: a device, a node or a file, or the only device where nothing is
 * named. @throws BlockError that lists what there is
 */
export function findNode(view: DaemonView, name: string | undefined): NodeView {
  if (name === undefined) return onlyDevice(view);
  const device = view.devices.find((one) => one.name === name) ?? view.devices.find((one) => one.id === name);
  const wanted = device === undefined ? name : device["node-name"];
  const node = view.nodes.find((one) => one["node-name"] === wanted) ?? findFile(view, name);
  if (node !== undefined) return node;
  throw new BlockError("NODE_NOT_FOUND", `no device, node or file is called '${name}': ${choices(view)}`);
}

function findFile(view: DaemonView, name: string): NodeView | undefined {
  const images = view.nodes.filter((node) => !PROTOCOLS.has(node.drv));
  const exact = images.find((node) => node.file === name || path.resolve(node.file) === path.resolve(name));
  if (exact !== undefined || name.includes("/")) return exact;
  // The bare name will do where only one image has it.
  const alike = images.filter((node) => path.basename(node.file) === name);
  return alike.length === 1 ? alike[0] : undefined;
}

/** The device whose top image is this file. */
export function deviceOfImage(view: DaemonView, file: string): DeviceView | undefined {
  return view.devices.find((device) => {
    const node = view.nodes.find((one) => one["node-name"] === device["node-name"]);
    return node !== undefined && isSameFile(node.file, file);
  });
}

function isSameFile(one: string, other: string): boolean {
  try {
    const [a, b] = [statSync(one), statSync(other)];
    return a.dev === b.dev && a.ino === b.ino;
  } catch {
    return false;
  }
}

function onlyDevice(view: DaemonView): NodeView {
  const [first] = view.devices;
  if (first !== undefined && view.devices.length === 1) return findNode(view, first["node-name"]);
  throw new BlockError("EINVAL", `which device? ${choices(view)}`);
}

function choices(view: DaemonView): string {
  const devices = view.devices.map((one) => one.name);
  const nodes = view.nodes.filter((node) => !PROTOCOLS.has(node.drv)).map((node) => node["node-name"]);
  return `there are devices ${devices.join(", ") || "(none)"}, nodes ${nodes.join(", ") || "(none)"}`;
}

/** Name under which a node is served, if it is. */
export function deviceOf(view: DaemonView, node: NodeView): string | undefined {
  return view.devices.find((one) => one["node-name"] === node["node-name"])?.name;
}

/** A job's id from what it works on: made of what an id may hold. */
export function jobIdFor(type: string, node: string): string {
  return `${type}-${node.replace(/[^A-Za-z0-9._-]/g, "")}`;
}

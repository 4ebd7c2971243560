// blockdev-reopen: nodes get new options while they are in use. What can be changed is read-only and backing.

import { BlockError } from "../base/errors.ts";
import { chainOf } from "../block/chain.ts";
import { refuseCycle } from "../block/graph.ts";
import type { BlockNode } from "../block/node.ts";
import type { NodeOptions } from "../block/node-options.ts";
import { Permission } from "../block/permissions.ts";
import type { Daemon } from "./daemon.ts";

interface Reopening {
  readonly node: BlockNode;
  readonly options: NodeOptions;
  readonly backing: BlockNode | undefined;
}

/** All nodes are checked before the first one is touched. @throws BlockError in QEMU's words */
export function reopenNodes(daemon: Daemon, all: readonly NodeOptions[]): Promise<void> {
  return daemon.graph.exclusively(async () => {
    const reopenings = all.map((options) => planReopening(daemon, options));
    for (const reopening of reopenings) await reopen(daemon, reopening);
  });
}

function planReopening(daemon: Daemon, options: NodeOptions): Reopening {
  const name = options["node-name"];
  if (name === undefined) throw new BlockError("EINVAL", "node-name not specified");
  const node = daemon.graph.find(name);
  if (node === undefined) {
    throw new BlockError("NODE_NOT_FOUND", `Failed to find node with node-name='${name}'`);
  }
  const before = daemon.nodes.optionsOf(node) ?? { driver: node.driverName };
  if (options.backing === undefined && (node.backing !== undefined || before.backing !== undefined)) {
    throw new BlockError("EINVAL", `backing is missing for '${name}'`);
  }
  if (options.driver !== node.driverName) throw cannotChange("driver");
  refuseOtherChanges(node, before, options);
  return { node, options, backing: newBacking(daemon, node, options) };
}

const CHANGEABLE: readonly string[] = [
  "driver",
  "node-name",
  "read-only",
  "auto-read-only",
  "backing",
  "file",
];

function refuseOtherChanges(node: BlockNode, before: NodeOptions, options: NodeOptions): void {
  for (const name of new Set([...Object.keys(before), ...Object.keys(options)])) {
    if (CHANGEABLE.includes(name)) continue;
    if (JSON.stringify(before[name]) !== JSON.stringify(options[name])) throw cannotChange(name);
  }
  const { file } = options;
  if (file === undefined || file === node.file?.name) return;
  if (typeof file === "string" || file["filename"] !== node.file?.filename) throw cannotChange("file");
}

function cannotChange(option: string): BlockError {
  return new BlockError("EINVAL", `Cannot change the option '${option}'`);
}

function newBacking(daemon: Daemon, node: BlockNode, options: NodeOptions): BlockNode | undefined {
  const { backing } = options;
  if (backing === undefined || backing === null || backing === "") return undefined;
  if (typeof backing !== "string") {
    if (backing["node-name"] === node.backing?.name) return node.backing;
    throw new BlockError("ENOTSUP", "A new backing node is given by its name: add it first");
  }
  const found = daemon.graph.get(backing);
  refuseCycle(node, found);
  return found;
}

async function reopen(daemon: Daemon, { node, options, backing }: Reopening): Promise<void> {
  const writable = options["read-only"] !== true;
  if (node.backing !== backing) {
    for (const each of chainOf(node)) each.refuseBlocked();
    await daemon.graph.replaceBacking(node, backing);
  }
  if (writable === node.readOnly) {
    if (!writable) refuseWhileWritten(daemon, node);
    await daemon.graph.setWritable(node, writable);
  }
  daemon.nodes.reopened(node, options);
}

const WRITES = Permission.WRITE | Permission.WRITE_UNCHANGED;

function refuseWhileWritten(daemon: Daemon, node: BlockNode): void {
  const writer = daemon.graph.usesOf(node).find((use) => (use.needs & WRITES) !== 0);
  if (writer === undefined) return;
  throw new BlockError(
    "EBUSY",
    `Cannot make block node read-only, there is a writer on it: ${writer.user} (as '${writer.role}')`,
  );
}

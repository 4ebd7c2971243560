// blockdev-reopen: nodes get new options while they are in use. What can be changed is read-only and backing.

import { BlockError } from "../base/errors.ts";
import { chainOf } from "../block/chain.ts";
import { type BackingChange, refuseCycle } from "../block/graph.ts";
import type { BlockNode } from "../block/node.ts";
import type { NodeOptions } from "../block/node-options.ts";
import { writerOf } from "../block/node-use.ts";
import type { Daemon } from "./daemon.ts";

interface Reopening {
  readonly node: BlockNode;
  readonly options: NodeOptions;
  readonly backing: BlockNode | undefined;
}

/**
 * All nodes get their new options, or none does: all are checked before the first one is touched, rights
 * change first, and all backing links at one moment. @throws BlockError in QEMU's words
 */
export function reopenNodes(daemon: Daemon, all: readonly NodeOptions[]): Promise<void> {
  return daemon.graph.exclusively(async () => {
    const reopenings = all.map((options) => planReopening(daemon, options));
    for (const { node, options } of reopenings) if (!isWritable(options)) refuseWhileWritten(node);
    refuseBlocked(reopenings);
    const changed: BlockNode[] = [];
    try {
      for (const { node, options } of reopenings) {
        if (await changeRights(daemon, node, isWritable(options))) changed.push(node);
      }
      // A job may begin while the nodes are drained.
      await daemon.graph.replaceBackings(backingChanges(reopenings), () => refuseBlocked(reopenings));
    } catch (error) {
      for (const node of changed.reverse()) await restoreRights(daemon, node);
      throw error;
    }
    for (const { node, options } of reopenings) daemon.nodes.reopened(node, options);
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

function backingChanges(reopenings: readonly Reopening[]): BackingChange[] {
  return reopenings
    .filter(({ node, backing }) => node.backing !== backing)
    .map(({ node, backing }) => ({ overlay: node, backing }));
}

/** @throws BlockError EBUSY while a job holds a chain that is to be changed */
function refuseBlocked(reopenings: readonly Reopening[]): void {
  for (const { overlay } of backingChanges(reopenings)) {
    for (const each of chainOf(overlay)) each.refuseBlocked();
  }
}

function isWritable(options: NodeOptions): boolean {
  return options["read-only"] !== true;
}

/** Tells whether they were others before. @throws BlockError EBUSY while somebody writes */
async function changeRights(daemon: Daemon, node: BlockNode, writable: boolean): Promise<boolean> {
  if (writable !== node.readOnly) return false;
  const changed = await daemon.graph.setWritable(node, writable);
  if (!writable && !node.readOnly) refuseWhileWritten(node);
  return changed;
}

async function restoreRights(daemon: Daemon, node: BlockNode): Promise<void> {
  const writable = node.readOnly;
  try {
    await daemon.graph.setWritable(node, writable);
  } catch (error) {
    const now = writable ? "reading only" : "writing";
    daemon.logger.warn(`node '${node.name}' stays open for ${now}: ${String(error)}`);
  }
}

function refuseWhileWritten(node: BlockNode): void {
  const writer = node.readOnly ? undefined : writerOf(node);
  if (writer === undefined) return;
  throw new BlockError(
    "EBUSY",
    `Cannot make block node read-only, there is a writer on it: ${writer.user} (as '${writer.role}')`,
  );
}

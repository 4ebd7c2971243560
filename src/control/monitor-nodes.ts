// The nodes that the monitor holds: what was added by name stays until it is deleted by name.

import { settleAll } from "../base/completion.ts";
import { BlockError } from "../base/errors.ts";
import type { Graph } from "../block/graph.ts";
import type { BlockNode } from "../block/node.ts";
import type { NodeOptions } from "../block/node-options.ts";
import type { NodeUse } from "../block/node-use.ts";
import type { NodeOpener } from "../block/open.ts";
import { ALL_PERMISSIONS } from "../block/permissions.ts";

/** The role by which the monitor's uses are told from others. */
const MONITOR_ROLE = "monitor reference";

interface Held {
  readonly use: NodeUse;
  readonly options: NodeOptions;
}

export class MonitorNodes {
  readonly #graph: Graph;
  readonly #opener: NodeOpener;
  readonly #held = new Map<BlockNode, Held>();

  constructor(graph: Graph, opener: NodeOpener) {
    this.#graph = graph;
    this.#opener = opener;
  }

  /** Opens a node and holds it. @throws BlockError */
  async add(options: NodeOptions): Promise<BlockNode> {
    if (options["node-name"] === undefined) {
      throw new BlockError("EINVAL", "'node-name' must be specified for the root node");
    }
    const node = await this.#opener.open(options);
    this.hold(node, options);
    return node;
  }

  hold(node: BlockNode, options: NodeOptions): void {
    const use = this.#graph.use(node, {
      user: "the monitor",
      role: MONITOR_ROLE,
      needs: 0,
      shares: ALL_PERMISSIONS,
      staysAtNode: true,
    });
    this.#held.set(node, { use, options });
  }

  isHeld(node: BlockNode): boolean {
    return this.#held.has(node);
  }

  optionsOf(node: BlockNode): NodeOptions | undefined {
    return this.#held.get(node)?.options;
  }

  /** What a reopen has changed the options to. */
  reopened(node: BlockNode, options: NodeOptions): void {
    const held = this.#held.get(node);
    if (held !== undefined) this.#held.set(node, { use: held.use, options });
  }

  /** Lets go of a node that nobody else uses, which closes it. @throws BlockError in QEMU's words */
  async remove(name: string): Promise<void> {
    const node = this.#graph.find(name);
    if (node === undefined)
      throw new BlockError("NODE_NOT_FOUND", `Failed to find node with node-name='${name}'`);
    const others = this.#graph.usesOf(node).filter((use) => use.role !== MONITOR_ROLE);
    if (others.some((use) => use.role === "root")) {
      throw new BlockError("NODE_IN_USE", `Node ${name} is in use`);
    }
    node.refuseBlocked();
    refuseBacking(this.#graph, node);
    const held = this.#held.get(node);
    if (held === undefined) throw new BlockError("EINVAL", `Node ${name} is not owned by the monitor`);
    if (others.length > 0) throw new BlockError("NODE_IN_USE", `Block device ${name} is in use`);
    this.#held.delete(node);
    await this.#graph.release(held.use);
  }

  /** Lets go of a node that others use: it is closed when the last of them does so. */
  async letGo(node: BlockNode): Promise<void> {
    const held = this.#held.get(node);
    if (held === undefined) return;
    this.#held.delete(node);
    await this.#graph.release(held.use);
  }

  /**
   * Lets go of everything, newest first; what others still hold stays open. None waits for another one: a
   * disk that hangs keeps no other image from being closed. The first error is handed up.
   */
  async releaseAll(): Promise<void> {
    const held = [...this.#held.values()].reverse();
    this.#held.clear();
    await settleAll(held.map(({ use }) => this.#graph.release(use)));
  }
}

/** @throws BlockError EBUSY when the node is below another one */
export function refuseBacking(graph: Graph, node: BlockNode): void {
  const link = graph.usesOf(node).findLast((use) => use.role === "backing");
  if (link === undefined) return;
  throw new BlockError(
    "EBUSY",
    `Node '${node.name}' is busy: node is used as backing hd of '${link.parent!.name}'`,
  );
}

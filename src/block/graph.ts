// The graph: nodes by name, who uses them, and the few ways in which backing links change.
//
//   1. A node lives as long as somebody uses it; the last use to go closes it, and that releases its
//      children.
//   2. Links change only while the overlay is drained, and what was looked up before an await is looked up
//      again.
//   3. A use can be moved to another node (live snapshot): who holds a use asks it for its node at every
//      request.
//   4. Changes of the graph run one at a time (`exclusively`), so that two never see each other half done.
//   5. A change of several links is made in one turn of the loop, with all their nodes drained: all or none.

import { assert } from "../base/assert.ts";
import { BlockError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import { silentLogger } from "../base/logger.ts";
import { CHAIN_LENGTH_MAX, chainOf } from "./chain.ts";
import type { BlockNode } from "./node.ts";
import {
  holdsBytes,
  movingUses,
  NodeUse,
  showsImage,
  type UseRequest,
  usesOf,
  WRITES,
  writesThrough,
} from "./node-use.ts";
import type { Claim } from "./permissions.ts";
import { ALL_PERMISSIONS, checkClaim, Permission } from "./permissions.ts";
import { WritingRights } from "./writing-rights.ts";

/** `role`: the name of the option; permissions beyond what every such link has. */
export interface FileLinkOptions {
  readonly role?: "file" | "image";
  readonly takes?: number;
  readonly denies?: number;
}

/** An overlay that goes on top of a node. */
export interface Addition {
  readonly node: BlockNode;
  readonly overlay: BlockNode;
}

/** A node that gets another backing node, or none. */
export interface BackingChange {
  readonly overlay: BlockNode;
  readonly backing: BlockNode | undefined;
}

const NODE_NAME = /^[A-Za-z][A-Za-z0-9._-]*$/;
const NODE_NAME_BYTES_MAX = 31;

export class Graph {
  /** Requests that clients have made so far. Background work looks whether there are any, and steps back. */
  guestRequests = 0;
  readonly #nodes = new Map<string, BlockNode>();
  readonly #reserved = new Set<string>();
  readonly #rights = new WritingRights();
  readonly #logger: Logger;
  #generated = 100;
  #changing: Promise<unknown> = Promise.resolve();

  constructor(logger: Logger = silentLogger) {
    this.#logger = logger;
  }

  // --- names -------------------------------------------------------------------------------------

  /** All nodes, newest last. */
  get nodes(): IterableIterator<BlockNode> {
    return this.#nodes.values();
  }

  find(name: string): BlockNode | undefined {
    return this.#nodes.get(name);
  }

  /** @throws BlockError NODE_NOT_FOUND in QEMU's words */
  get(name: string): BlockNode {
    const node = this.#nodes.get(name);
    if (node !== undefined) return node;
    throw new BlockError("NODE_NOT_FOUND", `Cannot find device='${name}' nor node-name='${name}'`);
  }

  /** Keeps a name for a node that is being opened; generates one where none is given. */
  reserveName(wanted: string | undefined): string {
    const name = wanted ?? this.#generateName();
    if (wanted !== undefined && !isNodeName(wanted)) {
      throw new BlockError("EINVAL", `Invalid node-name: '${wanted}'`);
    }
    if (this.#nodes.has(name) || this.#reserved.has(name)) {
      throw new BlockError("EEXIST", `Duplicate nodes with node-name='${name}'`);
    }
    this.#reserved.add(name);
    return name;
  }

  unreserveName(name: string): void {
    this.#reserved.delete(name);
  }

  #generateName(): string {
    for (;;) {
      const name = `#block${this.#generated++}`;
      if (!this.#nodes.has(name)) return name;
    }
  }

  /** Adds an opened node under the name reserved for it. Its children are claimed already. */
  add(node: BlockNode): void {
    assert(this.#reserved.delete(node.name), "a node is added under a reserved name");
    this.#nodes.set(node.name, node);
  }

  // --- uses --------------------------------------------------------------------------------------

  /**
   * Takes hold of `node`. @throws BlockError EPERM when it is read-only or others forbid what is needed;
   * EBUSY when it is closed
   */
  use(node: BlockNode, request: UseRequest): NodeUse {
    this.#refuseClosed(node);
    if ((request.needs & WRITES) !== 0 && !this.#rights.isWritable(node)) {
      throw new BlockError("EPERM", "Block node is read-only");
    }
    checkClaim(node.name, request, node.claims as Set<Claim>);
    const use = new NodeUse(node, request);
    node.claims.add(use);
    return use;
  }

  #refuseClosed(node: BlockNode): void {
    if (this.find(node.name) === node) return;
    throw new BlockError("EBUSY", `Node '${node.name}' was closed meanwhile`);
  }

  /** Lets go; who was last closes the node, and the error of closing, if any, is his. */
  async release(use: NodeUse): Promise<void> {
    const node = use.node;
    if (!node.claims.delete(use)) return;
    if (node.claims.size === 0) await this.#close(node);
  }

  /** The uses of `node`, each with its user's name. */
  usesOf(node: BlockNode): NodeUse[] {
    return usesOf(node);
  }

  /** Overlays and other nodes that hold `node`. */
  parentsOf(node: BlockNode): BlockNode[] {
    return this.usesOf(node).flatMap((use) => (use.parent === undefined ? [] : [use.parent]));
  }

  async #close(node: BlockNode): Promise<void> {
    this.#nodes.delete(node.name);
    const children = this.#childUses(node);
    await this.#rights.settled(node);
    await node.quiesce();
    let failure: { error: unknown } | undefined;
    try {
      await node.driver.close();
    } catch (error) {
      failure = { error };
      this.#logger.error(`closing node '${node.name}' (${node.filename}): ${String(error)}`);
    }
    await this.#releaseAll(children).catch((error: unknown) => {
      failure ??= { error };
    });
    if (failure !== undefined) throw failure.error;
  }

  #childUses(node: BlockNode): NodeUse[] {
    const children = [node.file, node.backing].filter((child) => child !== undefined);
    return children.flatMap((child) => this.usesOf(child).filter((use) => use.parent === node));
  }

  // --- links -------------------------------------------------------------------------------------

  /** Runs one change of the graph after the other. */
  exclusively<T>(change: () => Promise<T>): Promise<T> {
    const result = this.#changing.then(change, change);
    this.#changing = result.catch(() => undefined);
    return result;
  }

  /** Lets `child` be what `parent` holds its bytes in. */
  linkFile(
    parent: BlockNode,
    child: BlockNode,
    { role = "file", takes = 0, denies = 0 }: FileLinkOptions = {},
  ): NodeUse {
    const writes = parent.readOnly ? 0 : writesThrough(role);
    return this.use(child, {
      user: `node '${parent.name}'`,
      role,
      parent,
      needs: Permission.CONSISTENT_READ | writes | takes,
      shares: (Permission.CONSISTENT_READ | Permission.WRITE_UNCHANGED) & ~denies,
    });
  }

  /**
   * Makes `backing` the backing node of `overlay`, which is drained or not yet in use. The old link is
   * returned.
   */
  linkBacking(overlay: BlockNode, backing: BlockNode | undefined): NodeUse | undefined {
    if (backing !== undefined && !overlay.driver.supportsBacking) {
      throw new BlockError(
        "ENOTSUP",
        `Driver '${overlay.driverName}' of node '${overlay.name}' does not support backing files`,
      );
    }
    if (backing !== undefined) refuseCycle(overlay, backing);
    const before = this.backingUse(overlay);
    if (backing !== undefined) {
      this.use(backing, {
        user: `node '${overlay.name}'`,
        role: "backing",
        parent: overlay,
        needs: Permission.CONSISTENT_READ,
        shares: ALL_PERMISSIONS & ~(Permission.WRITE | Permission.RESIZE),
      });
    }
    overlay.setBacking(backing);
    return before;
  }

  /** The use by which `overlay` holds its backing node. */
  backingUse(overlay: BlockNode): NodeUse | undefined {
    const backing = overlay.backing;
    if (backing === undefined) return undefined;
    return this.usesOf(backing).find((use) => use.parent === overlay && use.role === "backing");
  }

  /** As `appendAll`, of one overlay. */
  append(node: BlockNode, overlay: BlockNode): Promise<void> {
    return this.appendAll([{ node, overlay }]);
  }

  /**
   * Puts each `overlay` on top of its `node`, all at one moment: everybody who used the node uses the overlay
   * from then on, but for jobs and the monitor. Guest requests wait meanwhile. On an error nothing has
   * changed. `refuseUnfit` is asked right before each of them, and throws. Runs inside `exclusively`.
   */
  async appendAll(
    additions: readonly Addition[],
    refuseUnfit: (addition: Addition) => void = () => {},
  ): Promise<void> {
    for (const { node, overlay } of additions) this.refuseUnfitOverlay(node, overlay);
    const drained = new Set<BlockNode>();
    try {
      const wanted = () =>
        additions.flatMap(({ node, overlay }) => [
          ...(drained.has(node) ? [] : this.parentsOf(node)),
          node,
          overlay,
        ]);
      for (let each = nextToDrain(drained, wanted()); each !== undefined; ) {
        await drain(each, drained);
        // Before the ones below are drained: a filter's flush passes through them.
        if (additions.some(({ node }) => node === each)) await each.driver.flush();
        each = nextToDrain(drained, wanted());
      }
      allOrNone(additions, (addition) => {
        // Others may have come and gone during these waits; and one of them may not fit together with
        // another.
        refuseUnfit(addition);
        this.refuseUnfitOverlay(addition.node, addition.overlay);
        return this.#insertAbove(addition, drained);
      });
      // What the guest sent meanwhile belongs above the snapshot: below, it would be lost to a copy-on-write
      // in flight.
      for (const { node, overlay } of additions) overlay.adoptWaiting(node);
    } finally {
      for (const each of [...drained].reverse()) each.resume();
    }
    // A backing image is open for reading only: its tables are written and its locks let others read it.
    for (const { node } of additions) {
      await this.setWritable(node, false).catch((error: unknown) => {
        this.#logger.warn(`node '${node.name}' stays open for writing below its overlay: ${String(error)}`);
      });
    }
  }

  /** What is returned takes it back, in the same turn of the loop. */
  #insertAbove({ node, overlay }: Addition, drained: ReadonlySet<BlockNode>): () => void {
    const moving = movingUses(this.usesOf(node));
    if (moving.some((use) => use.parent !== undefined && !drained.has(use.parent))) {
      throw new BlockError("EBUSY", `Node '${node.name}' got another overlay at the same time`);
    }
    for (const use of moving) checkClaim(overlay.name, use, overlay.claims);
    const move = (from: BlockNode, to: BlockNode) => {
      for (const use of moving) {
        from.claims.delete(use);
        use.node = to;
        to.claims.add(use);
      }
    };
    move(node, overlay);
    try {
      this.linkBacking(overlay, node);
    } catch (error) {
      move(overlay, node);
      throw error;
    }
    showInstead(moving, overlay);
    return () => {
      this.#unlinkBacking(overlay, undefined);
      move(overlay, node);
      showInstead(moving, node);
    };
  }

  /** Takes back a `linkBacking`; `before` is what was linked before it. */
  #unlinkBacking(overlay: BlockNode, before: BlockNode | undefined): void {
    const link = this.backingUse(overlay);
    link?.node.claims.delete(link);
    overlay.setBacking(before);
  }

  /** As `replaceBackings`, of one link. */
  replaceBacking(overlay: BlockNode, backing: BlockNode | undefined): Promise<void> {
    return this.replaceBackings([{ overlay, backing }]);
  }

  /**
   * Gives each `overlay` another backing node (or none), all at one moment, and lets go of the old ones. On
   * an error nothing has changed. `refuseUnfit` is asked while all of them are drained, and throws. Inside
   * `exclusively`.
   */
  async replaceBackings(
    changes: readonly BackingChange[],
    refuseUnfit: () => void = () => {},
  ): Promise<void> {
    const drained = new Set<BlockNode>();
    const before: NodeUse[] = [];
    try {
      const wanted = changes.map(({ overlay }) => overlay);
      for (let each = nextToDrain(drained, wanted); each !== undefined; ) {
        await drain(each, drained);
        each = nextToDrain(drained, wanted);
      }
      refuseUnfit();
      allOrNone(changes, ({ overlay, backing }) => {
        const old = overlay.backing;
        const link = this.linkBacking(overlay, backing);
        if (link !== undefined) before.push(link);
        return () => this.#unlinkBacking(overlay, old);
      });
    } finally {
      for (const each of [...drained].reverse()) each.resume();
    }
    await this.#releaseAll(before);
  }

  /** All of them, whatever becomes of one. The first error is handed up. */
  async #releaseAll(uses: readonly NodeUse[]): Promise<void> {
    let failure: { error: unknown } | undefined;
    for (const use of uses) {
      await this.release(use).catch((error: unknown) => {
        failure ??= { error };
      });
    }
    if (failure !== undefined) throw failure.error;
  }

  /** See WritingRights. */
  setWritable(node: BlockNode, writable: boolean): Promise<boolean> {
    return this.#rights.setWritable(node, writable);
  }

  /** See WritingRights. */
  claimResize(node: BlockNode): () => void {
    return this.#rights.claimResize(node);
  }

  /**
   * What `append` asks first, for callers that want to know before they change anything. @throws BlockError
   */
  refuseUnfitOverlay(node: BlockNode, overlay: BlockNode): void {
    if (overlay === node) throw new BlockError("EINVAL", "The overlay is already in use");
    for (const each of [node, overlay]) {
      each.refuseBlocked();
      this.#refuseClosed(each);
    }
    const uses = this.usesOf(node);
    const holder = uses.find((use) => holdsBytes(use) && !showsImage(use));
    if (holder !== undefined) {
      throw new BlockError(
        "EINVAL",
        `Node '${node.name}' holds the bytes of ${holder.user}: give that one an overlay`,
      );
    }
    if (overlay.backing !== undefined) {
      throw new BlockError("EINVAL", "The overlay already has a backing image");
    }
    refuseCycle(overlay, node);
    // A filter that shows the node will show the overlay, which must not stand on that filter.
    if (reaches(overlay, node)) throw cycle(overlay, node);
    const moving = movingUses(uses);
    if (overlay.readOnly && moving.some((use) => (use.needs & Permission.WRITE) !== 0)) {
      throw new BlockError("EPERM", "Block node is read-only");
    }
    if (overlay.size < node.size) {
      throw new BlockError(
        "EINVAL",
        `The overlay '${overlay.name}' (${overlay.size} bytes) is smaller than ` +
          `'${node.name}' (${node.size} bytes)`,
      );
    }
  }
}

/** Upper nodes come first: what is in flight there may still need the nodes below. */
function nextToDrain(drained: ReadonlySet<BlockNode>, wanted: readonly BlockNode[]): BlockNode | undefined {
  const left = wanted.filter((each) => !drained.has(each));
  return left.find((each) => !left.some((other) => other !== each && reaches(other, each)));
}

async function drain(node: BlockNode, drained: Set<BlockNode>): Promise<void> {
  drained.add(node);
  await node.quiesce();
}

/**
 * Makes each change in turn, at once; what it returns takes it back. An error takes back all that were made.
 */
function allOrNone<T>(changes: readonly T[], make: (change: T) => () => void): void {
  const undo: (() => void)[] = [];
  try {
    for (const change of changes) undo.push(make(change));
  } catch (error) {
    for (const step of undo.reverse()) step();
    throw error;
  }
}

/** Lets the nodes above, whose uses these are, show or stand on `node`. */
function showInstead(uses: readonly NodeUse[], node: BlockNode): void {
  for (const use of uses) {
    if (showsImage(use)) use.parent!.setFiltered(node);
    else use.parent?.setBacking(node);
  }
}

/** Whether `node` is `below`, or stands on it in any way: by files, filters, backing images. */
function reaches(node: BlockNode, below: BlockNode, seen = new Set<BlockNode>()): boolean {
  if (node === below) return true;
  if (seen.has(node)) return false;
  seen.add(node);
  return [node.file, node.backing].some((child) => child !== undefined && reaches(child, below, seen));
}

function cycle(overlay: BlockNode, backing: BlockNode): BlockError {
  return new BlockError(
    "EINVAL",
    `Making '${backing.name}' a backing child of '${overlay.name}' would create a cycle`,
  );
}

/** @throws BlockError EINVAL in QEMU's words when `overlay` is something that `backing` stands on */
export function refuseCycle(overlay: BlockNode, backing: BlockNode): void {
  if (reaches(backing, overlay)) throw cycle(overlay, backing);
  const below = chainOf(backing);
  if (below.length >= CHAIN_LENGTH_MAX) {
    throw new BlockError(
      "EINVAL",
      `the chain of '${overlay.name}' would have more than ${CHAIN_LENGTH_MAX} images`,
    );
  }
}

/** Node names as QEMU takes them: a letter, then letters, digits, '-', '.', '_'; 31 bytes at most. */
export function isNodeName(name: string): boolean {
  return name.length <= NODE_NAME_BYTES_MAX && NODE_NAME.test(name);
}

// The graph: nodes by name, who uses them, and the few ways in which backing links change.
//
//   1. A node lives as long as somebody uses it; the last use to go closes it, and that releases its
//      children.
//   2. Links change only while the overlay is drained, and what was looked up before an await is looked up
//      again.
//   3. A use can be moved to another node (live snapshot): who holds a use asks it for its node at every
//      request.
//   4. Changes of the graph run one at a time (`exclusively`), so that two never see each other half done.

import { assert } from "../base/assert.ts";
import { BlockError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import { silentLogger } from "../base/logger.ts";
import { CHAIN_LENGTH_MAX, chainOf } from "./chain.ts";
import type { BlockNode } from "./node.ts";
import type { Claim } from "./permissions.ts";
import { ALL_PERMISSIONS, checkClaim, Permission } from "./permissions.ts";

/** One user's hold on a node. */
export class NodeUse implements Claim {
  readonly user: string;
  readonly role: string;
  readonly shares: number;
  needs: number;
  node: BlockNode;
  /** The node that holds this one, where the user is a node. */
  readonly parent: BlockNode | undefined;
  /** Stays where it is when the node gets an overlay: jobs, and the monitor's own reference. */
  readonly staysAtNode: boolean;

  constructor(node: BlockNode, claim: UseRequest) {
    this.node = node;
    this.user = claim.user;
    this.role = claim.role;
    this.needs = claim.needs;
    this.shares = claim.shares;
    this.parent = claim.parent;
    this.staysAtNode = claim.staysAtNode ?? false;
  }
}

export interface UseRequest extends Claim {
  readonly parent?: BlockNode;
  readonly staysAtNode?: boolean;
}

/** `role`: the name of the option; permissions beyond what every such link has. */
export interface FileLinkOptions {
  readonly role?: "file" | "image";
  readonly takes?: number;
  readonly denies?: number;
}

const NODE_NAME = /^[A-Za-z][A-Za-z0-9._-]*$/;
const NODE_NAME_BYTES_MAX = 31;

export class Graph {
  /** Requests that clients have made so far. Background work looks whether there are any, and steps back. */
  guestRequests = 0;
  readonly #nodes = new Map<string, BlockNode>();
  readonly #reserved = new Set<string>();
  /** Nodes that are being reopened, until it is over. */
  readonly #reopening = new Map<BlockNode, Promise<unknown>>();
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

  /** Takes hold of `node`. @throws BlockError EPERM when it is read-only or others forbid what is needed */
  use(node: BlockNode, request: UseRequest): NodeUse {
    if (node.readOnly && (request.needs & (Permission.WRITE | Permission.WRITE_UNCHANGED)) !== 0) {
      throw new BlockError("EPERM", "Block node is read-only");
    }
    checkClaim(node.name, request, node.claims as Set<Claim>);
    const use = new NodeUse(node, request);
    node.claims.add(use);
    return use;
  }

  /** Lets go; who was last closes the node, and the error of closing, if any, is his. */
  async release(use: NodeUse): Promise<void> {
    const node = use.node;
    if (!node.claims.delete(use)) return;
    if (node.claims.size === 0) await this.#close(node);
  }

  /** The uses of `node`, each with its user's name. */
  usesOf(node: BlockNode): NodeUse[] {
    return [...node.claims] as NodeUse[];
  }

  /** Overlays and other nodes that hold `node`. */
  parentsOf(node: BlockNode): BlockNode[] {
    return this.usesOf(node).flatMap((use) => (use.parent === undefined ? [] : [use.parent]));
  }

  async #close(node: BlockNode): Promise<void> {
    this.#nodes.delete(node.name);
    const children = this.#childUses(node);
    while (this.#reopening.has(node)) await this.#reopening.get(node);
    await node.quiesce();
    let failure: { error: unknown } | undefined;
    try {
      await node.driver.close();
    } catch (error) {
      failure = { error };
      this.#logger.error(`closing node '${node.name}' (${node.filename}): ${String(error)}`);
    }
    for (const use of children) {
      await this.release(use).catch((error: unknown) => {
        failure ??= { error };
      });
    }
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

  /**
   * Puts `overlay` on top of `node`: everybody who used `node` uses the overlay from then on, but for jobs
   * and the monitor. Guest requests wait meanwhile. On an error nothing has changed. Runs inside
   * `exclusively`.
   */
  async append(node: BlockNode, overlay: BlockNode): Promise<void> {
    this.refuseUnfitOverlay(node, overlay);
    const drained = new Set<BlockNode>();
    try {
      await this.#drainFromAbove(node, overlay, drained);
      await node.driver.flush();
      // Others may have come and gone during these waits.
      this.refuseUnfitOverlay(node, overlay);
      this.#insertAbove(node, overlay, drained);
    } finally {
      for (const each of [...drained].reverse()) each.resume();
    }
    // A backing image is open for reading only: its tables are written and its locks let others read it.
    await this.setWritable(node, false).catch((error: unknown) => {
      this.#logger.warn(`node '${node.name}' stays open for writing below its overlay: ${String(error)}`);
    });
  }

  /** Upper nodes first: what is in flight there may still need the node below. */
  async #drainFromAbove(node: BlockNode, overlay: BlockNode, drained: Set<BlockNode>): Promise<void> {
    const drain = async (each: BlockNode) => {
      drained.add(each);
      await each.quiesce();
    };
    for (;;) {
      const parent = this.parentsOf(node).find((each) => !drained.has(each));
      if (parent === undefined) break;
      await drain(parent);
    }
    await drain(node);
    await drain(overlay);
  }

  #insertAbove(node: BlockNode, overlay: BlockNode, drained: ReadonlySet<BlockNode>): void {
    const moving = movingUses(this.usesOf(node));
    if (moving.some((use) => use.parent !== undefined && !drained.has(use.parent))) {
      throw new BlockError("EBUSY", `Node '${node.name}' got another overlay at the same time`);
    }
    for (const use of moving) node.claims.delete(use);
    try {
      this.linkBacking(overlay, node);
    } catch (error) {
      for (const use of moving) node.claims.add(use);
      throw error;
    }
    for (const use of moving) {
      use.node = overlay;
      overlay.claims.add(use);
      if (showsImage(use)) use.parent!.setFiltered(overlay);
      else use.parent?.setBacking(overlay);
    }
    // What the guest sent meanwhile belongs above the snapshot: below, it would be lost to a copy-on-write in
    // flight.
    overlay.adoptWaiting(node);
  }

  /**
   * Drains `overlay`, gives it another backing node (or none) and lets go of the old one. Inside
   * `exclusively`.
   */
  async replaceBacking(overlay: BlockNode, backing: BlockNode | undefined): Promise<void> {
    await overlay.quiesce();
    let before: NodeUse | undefined;
    try {
      before = this.linkBacking(overlay, backing);
    } finally {
      overlay.resume();
    }
    if (before !== undefined) await this.release(before);
  }

  /**
   * Reopens a node, and the file below it, for writing or for reading only. On an error it stays as it was.
   * One after the other: who asks next finds what came of the one before. Tells whether anything was to be
   * changed.
   */
  async setWritable(node: BlockNode, writable: boolean): Promise<boolean> {
    const alongside = () => [node, ...this.#linksReopenedWith(node).map((link) => link.node)];
    for (;;) {
      const busy = alongside().find((each) => this.#reopening.has(each));
      if (busy === undefined) break;
      await this.#reopening.get(busy);
    }
    const nodes = alongside();
    const reopening = this.#reopen(node, writable);
    const settled = reopening.catch(() => undefined);
    for (const each of nodes) this.#reopening.set(each, settled);
    try {
      return await reopening;
    } finally {
      for (const each of nodes) this.#reopening.delete(each);
    }
  }

  async #reopen(node: BlockNode, writable: boolean): Promise<boolean> {
    if (node.readOnly !== writable) return false;
    const links = this.#linksReopenedWith(node);
    // Others may write to what a filter shows.
    const shared = writable ? -1 : links.findIndex((link) => this.#isWrittenBesides(link));
    const stays = shared < 0 ? undefined : links[shared]!.node;
    if (shared >= 0) links.length = shared + 1;
    const before = links.map(({ needs }) => needs);
    try {
      // Claimed before the first await, so that nobody else becomes its writer meanwhile.
      if (writable) for (const link of links) this.#claimMore(link, writesThrough(link.role));
      await node.setWritable(writable, stays);
    } catch (error) {
      for (const [index, link] of links.entries()) link.needs = before[index]!;
      throw error;
    }
    if (!writable) for (const link of links) link.needs &= ~(Permission.WRITE | Permission.RESIZE);
    return true;
  }

  /**
   * Lets `node` be resized, and the image that it shows where it is a filter, until the function that is
   * returned was called. @throws BlockError EBUSY, EPERM
   */
  claimResize(node: BlockNode): () => void {
    const links: NodeUse[] = [];
    const giveBack = () => {
      for (const link of links) link.needs &= ~Permission.RESIZE;
    };
    try {
      for (let at = node; at.filtered !== undefined; at = at.filtered) {
        const link = this.usesOf(at.filtered).find((use) => use.parent === at)!;
        at.filtered.refuseBlocked();
        if ((link.needs & Permission.RESIZE) !== 0) continue;
        this.#claimMore(link, Permission.RESIZE);
        links.push(link);
      }
    } catch (error) {
      giveBack();
      throw error;
    }
    return giveBack;
  }

  #isWrittenBesides(link: NodeUse): boolean {
    const writes = Permission.WRITE | Permission.WRITE_UNCHANGED;
    return this.usesOf(link.node).some((use) => use !== link && (use.needs & writes) !== 0);
  }

  /** From `node` down to the file of the host, through filters that are reopened along. */
  #linksReopenedWith(node: BlockNode): NodeUse[] {
    const links: NodeUse[] = [];
    for (let at = node; at.file !== undefined; at = at.file) {
      const link = this.usesOf(at.file).find((use) => use.parent === at && holdsBytes(use));
      if (link !== undefined) links.push(link);
      if (at.file.readOnly !== node.readOnly) break;
    }
    return links;
  }

  #claimMore(link: NodeUse, more: number): void {
    const { node, user, role, shares } = link;
    const needs = link.needs | more;
    const others = this.usesOf(node).filter((use) => use !== link);
    checkClaim(node.name, { user, role, shares, needs }, others);
    link.needs = needs;
  }

  /**
   * What `append` asks first, for callers that want to know before they change anything. @throws BlockError
   */
  refuseUnfitOverlay(node: BlockNode, overlay: BlockNode): void {
    if (overlay === node) throw new BlockError("EINVAL", "The overlay is already in use");
    for (const each of [node, overlay]) {
      each.refuseBlocked();
      if (this.find(each.name) !== each)
        throw new BlockError("EBUSY", `Node '${each.name}' was closed meanwhile`);
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

/** Those that a new overlay takes over. */
function movingUses(uses: readonly NodeUse[]): NodeUse[] {
  return uses.filter((use) => !use.staysAtNode);
}

/** The link of a node to the one that holds its bytes. */
function holdsBytes({ role }: NodeUse): boolean {
  return role === "file" || role === "image";
}

/** The link of a filter to the image that it shows. */
function showsImage(use: NodeUse): boolean {
  return holdsBytes(use) && use.parent?.filtered !== undefined;
}

/** What a node that is open for writing needs of the one with its bytes; a filter resizes on demand only. */
function writesThrough(role: string): number {
  return role === "image" ? Permission.WRITE : Permission.WRITE | Permission.RESIZE;
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

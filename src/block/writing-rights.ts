// Which nodes are open for writing: a node and what is below it are reopened together.
//
//   1. One after the other: who asks next finds what came of the one before.
//   2. A node is open for writing as long as somebody needs that: it is closed for writing in a turn of the
//      loop in which nobody does, and nobody begins to until that is over.

import type { BlockNode } from "./node.ts";
import { holdsBytes, type NodeUse, usesOf, WRITES, writerOf, writesThrough } from "./node-use.ts";
import { checkClaim, Permission } from "./permissions.ts";

export class WritingRights {
  /** Nodes that are being reopened, until it is over. */
  readonly #reopening = new Map<BlockNode, Promise<unknown>>();
  /** Those of them that are being closed for writing. */
  readonly #closing = new Set<BlockNode>();

  /** Whether somebody may begin to write. */
  isWritable(node: BlockNode): boolean {
    return !node.readOnly && !this.#closing.has(node);
  }

  /** Done when nobody reopens the node any more. */
  async settled(node: BlockNode): Promise<void> {
    while (this.#reopening.has(node)) await this.#reopening.get(node);
  }

  /**
   * Reopens a node, and the file below it, for writing or for reading only. On an error it stays as it was.
   * One after the other: who asks next finds what came of the one before. Where somebody needs to write, it
   * stays open for that. Tells whether anything was changed.
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
    if (node.readOnly !== writable || (!writable && writerOf(node) !== undefined)) return false;
    const links = this.#linksReopenedWith(node);
    // Others may write to what a filter shows.
    const shared = writable ? -1 : links.findIndex((link) => this.#isWrittenBesides(link));
    const stays = shared < 0 ? undefined : links[shared]!.node;
    if (shared >= 0) links.length = shared + 1;
    const before = links.map(({ needs }) => needs);
    if (!writable) this.#closing.add(node);
    try {
      // Claimed before the first await, so that nobody else becomes its writer meanwhile.
      if (writable) for (const link of links) this.#claimMore(link, writesThrough(link.role));
      await node.setWritable(writable, stays);
    } catch (error) {
      for (const [index, link] of links.entries()) link.needs = before[index]!;
      throw error;
    } finally {
      this.#closing.delete(node);
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
        const link = usesOf(at.filtered).find((use) => use.parent === at)!;
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
    return usesOf(link.node).some((use) => use !== link && (use.needs & WRITES) !== 0);
  }

  /** From `node` down to the file of the host, through filters that are reopened along. */
  #linksReopenedWith(node: BlockNode): NodeUse[] {
    const links: NodeUse[] = [];
    for (let at = node; at.file !== undefined; at = at.file) {
      const link = usesOf(at.file).find((use) => use.parent === at && holdsBytes(use));
      if (link !== undefined) links.push(link);
      if (at.file.readOnly !== node.readOnly) break;
    }
    return links;
  }

  #claimMore(link: NodeUse, more: number): void {
    const { node, user, role, shares } = link;
    const needs = link.needs | more;
    const others = usesOf(node).filter((use) => use !== link);
    checkClaim(node.name, { user, role, shares, needs }, others);
    link.needs = needs;
  }
}

// Who holds a node, and what for.

import type { BlockNode } from "./node.ts";
import { type Claim, Permission } from "./permissions.ts";

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

/** The uses of `node`, each with its user's name. */
export function usesOf(node: BlockNode): NodeUse[] {
  return [...node.claims] as NodeUse[];
}

/** Those that a new overlay takes over. */
export function movingUses(uses: readonly NodeUse[]): NodeUse[] {
  return uses.filter((use) => !use.staysAtNode);
}

/** The link of a node to the one that holds its bytes. */
export function holdsBytes({ role }: NodeUse): boolean {
  return role === "file" || role === "image";
}

/** The link of a filter to the image that it shows. */
export function showsImage(use: NodeUse): boolean {
  return holdsBytes(use) && use.parent?.filtered !== undefined;
}

/** What a node that is open for writing needs of the one with its bytes; a filter resizes on demand only. */
export function writesThrough(role: string): number {
  return role === "image" ? Permission.WRITE : Permission.WRITE | Permission.RESIZE;
}

/** What only a node that is open for writing can give. */
export const WRITES = Permission.WRITE | Permission.WRITE_UNCHANGED;

/** Somebody who needs `node` to be open for writing. */
export function writerOf(node: BlockNode): NodeUse | undefined {
  return usesOf(node).find((use) => (use.needs & WRITES) !== 0);
}

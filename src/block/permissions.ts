// Who may do what to a node while others use it: QEMU's permission system, with its names and words.
//
//   1. Each use says what it needs (`needs`) and what it lets the others do (`shares`).
//   2. A use is granted when nobody else forbids what it needs and it forbids nothing that others need.
//   3. A backing image is never written by a guest: an overlay shares no WRITE and no RESIZE on it. A job
//      that copies what the overlay would see anyway needs WRITE_UNCHANGED only.

import { BlockError } from "../base/errors.ts";

export const Permission = {
  CONSISTENT_READ: 1,
  WRITE: 2,
  WRITE_UNCHANGED: 4,
  RESIZE: 8,
} as const;

export const ALL_PERMISSIONS = 15;

const NAMES: readonly [number, string][] = [
  [Permission.CONSISTENT_READ, "consistent read"],
  [Permission.WRITE, "write"],
  [Permission.WRITE_UNCHANGED, "write unchanged"],
  [Permission.RESIZE, "resize"],
];

/** What one user does with a node. */
export interface Claim {
  /** The user, in QEMU's words: "node 'E'", "block device 'exp0'", "stream job 'job0'". */
  readonly user: string;
  /** The role that the node plays for it: "backing", "file", "root", "main node". */
  readonly role: string;
  readonly needs: number;
  readonly shares: number;
}

export function permissionNames(permissions: number): string {
  return NAMES.filter(([bit]) => (permissions & bit) !== 0)
    .map(([, name]) => name)
    .join(", ");
}

/** @throws BlockError EPERM in QEMU's words when `wanted` and one of `present` exclude each other. */
export function checkClaim(nodeName: string, wanted: Claim, present: Iterable<Claim>): void {
  for (const other of present) {
    refuseConflict(nodeName, wanted, other);
    refuseConflict(nodeName, other, wanted);
  }
}

function refuseConflict(nodeName: string, needing: Claim, sharing: Claim): void {
  const refused = needing.needs & ~sharing.shares;
  if (refused === 0) return;
  throw new BlockError(
    "EPERM",
    `Permission conflict on node '${nodeName}': permissions '${permissionNames(refused)}' are both ` +
      `required by ${needing.user} (uses node '${nodeName}' as '${needing.role}' child) and unshared by ` +
      `${sharing.user} (uses node '${nodeName}' as '${sharing.role}' child).`,
  );
}

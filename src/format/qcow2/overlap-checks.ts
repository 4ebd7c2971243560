// The options `overlap-check` and `overlap-check.template`: which metadata no write may touch.

import { MetadataKind } from "./metadata-places.ts";

/** QEMU's sets of checks; `cached` is what it does unless told otherwise. */
const { INACTIVE_L1, INACTIVE_L2, ACTIVE_L2, REFCOUNT_BLOCK } = MetadataKind;
const CONSTANT =
  MetadataKind.MAIN_HEADER |
  MetadataKind.ACTIVE_L1 |
  MetadataKind.REFCOUNT_TABLE |
  MetadataKind.SNAPSHOT_TABLE |
  MetadataKind.BITMAP_DIRECTORY;
const CACHED = CONSTANT | ACTIVE_L2 | REFCOUNT_BLOCK | INACTIVE_L1;
const TEMPLATES: Readonly<Record<string, number>> = {
  none: 0,
  constant: CONSTANT,
  cached: CACHED,
  all: CACHED | INACTIVE_L2,
};

/** The members of QAPI's Qcow2OverlapCheckFlags. */
const FLAGS: readonly (readonly [string, number])[] = [
  ["main-header", MetadataKind.MAIN_HEADER],
  ["active-l1", MetadataKind.ACTIVE_L1],
  ["active-l2", ACTIVE_L2],
  ["refcount-table", MetadataKind.REFCOUNT_TABLE],
  ["refcount-block", REFCOUNT_BLOCK],
  ["snapshot-table", MetadataKind.SNAPSHOT_TABLE],
  ["inactive-l1", INACTIVE_L1],
  ["inactive-l2", INACTIVE_L2],
  ["bitmap-directory", MetadataKind.BITMAP_DIRECTORY],
];

export const OVERLAP_CHECKS_DEFAULT = CACHED;

/** The kinds that QAPI's Qcow2OverlapChecks names: a template, or flags upon one. It fits the schema. */
export function overlapChecks(option: unknown): number {
  if (option === undefined) return OVERLAP_CHECKS_DEFAULT;
  if (typeof option === "string") return TEMPLATES[option] ?? OVERLAP_CHECKS_DEFAULT;
  const flags = option as Readonly<Record<string, unknown>>;
  let checks = overlapChecks(flags["template"]);
  for (const [name, kind] of FLAGS) {
    if (flags[name] === true) checks |= kind;
    if (flags[name] === false) checks &= ~kind;
  }
  return checks;
}

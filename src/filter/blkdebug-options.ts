// Options of a `blkdebug` node, in QAPI's spelling: checked here once more, since a name in a backing link is
// not checked against the schema.

import { BlockError, errorCode, errorMessage } from "../base/errors.ts";
import { DEBUG_EVENTS, type DebugEvent } from "../block/debug-event.ts";
import type { NodeOptions } from "../block/node-options.ts";
import { Permission } from "../block/permissions.ts";
import { readWholeFile } from "../sys/whole-file.ts";
import { parseBlkdebugConfig } from "./blkdebug-config.ts";
import { BlkdebugRules, type InjectError, IO_TYPES, type SetState } from "./blkdebug-rules.ts";
import { checkLimits, type RequestLimits } from "./request-limits.ts";

const CONFIG_BYTES_MAX = 1024 * 1024;
const ERRNO_MAX = 4095;

/** Steps of QEMU's drivers that ours do not have: a rule for one would wait for ever. */
const NEVER: Readonly<Partial<Record<DebugEvent, string>>> = {
  l2_update_compressed: "compressed clusters are read, but not written",
  write_compressed: "compressed clusters are read, but not written",
  cluster_alloc_bytes: "compressed clusters are read, but not written",
  cluster_alloc_space: "new clusters are not zeroed ahead",
  vmstate_load: "there is no state of a machine in images",
  vmstate_save: "there is no state of a machine in images",
  empty_image_prepare: "images are not emptied",
  l1_shrink_write_table: "images are not made smaller",
  l1_shrink_free_l2_clusters: "images are not made smaller",
};

/** @throws BlockError for a file that cannot be read and for rules that could never do what they say */
export function rulesOf(options: NodeOptions): BlkdebugRules {
  const configured = readConfig(options["config"]);
  const injections = [...configured["inject-error"], ...listOf(options, "inject-error")];
  const changes = [...configured["set-state"], ...listOf(options, "set-state")];
  return new BlkdebugRules(injections.map(injection), changes.map(change));
}

function readConfig(config: unknown) {
  if (config === undefined) return parseBlkdebugConfig("");
  const path = String(config);
  try {
    return parseBlkdebugConfig(readWholeFile(path, CONFIG_BYTES_MAX).toString("utf8"));
  } catch (error) {
    const what = "Could not read blkdebug config file";
    throw new BlockError(errorCode(error), `${what} '${path}': ${errorMessage(error)}`, error);
  }
}

type Members = Readonly<Record<string, unknown>>;

function listOf(options: NodeOptions, name: string): readonly Members[] {
  const list = options[name] ?? [];
  if (!Array.isArray(list) || list.some((rule) => typeof rule !== "object" || rule === null)) {
    throw new BlockError("EINVAL", `Invalid parameter type for '${name}', expected: array of objects`);
  }
  return list;
}

function injection(rule: Members): InjectError {
  const { errno } = rule;
  if (errno !== undefined && !(Number.isInteger(errno) && 0 <= Number(errno) && Number(errno) <= ERRNO_MAX)) {
    throw new BlockError("EINVAL", `Parameter 'errno' expects a number from 0 to ${ERRNO_MAX}`);
  }
  if (rule["iotype"] !== undefined && !(IO_TYPES as readonly unknown[]).includes(rule["iotype"])) {
    throw new BlockError("EINVAL", `invalid parameter value: ${String(rule["iotype"])}`);
  }
  return { ...rule, event: eventOf(rule) } as InjectError;
}

function change(rule: Members): SetState {
  const { new_state: newState = 0 } = rule;
  return { ...rule, new_state: Number(newState), event: eventOf(rule) };
}

function eventOf({ event }: Members): DebugEvent {
  if (event === undefined) throw new BlockError("EINVAL", "Missing event name for rule");
  if (!(DEBUG_EVENTS as readonly unknown[]).includes(event)) {
    throw new BlockError("EINVAL", `invalid parameter value: ${String(event)}`);
  }
  const known = event as DebugEvent;
  const why = NEVER[known];
  if (why !== undefined)
    throw new BlockError("ENOTSUP", `blkdebug: event '${known}' never happens here: ${why}`);
  return known;
}

/** @throws BlockError EINVAL in QEMU's words */
export function limitsOf(options: NodeOptions): RequestLimits {
  const limit = (name: string) => {
    const value = options[name] ?? 0;
    if (Number.isSafeInteger(value) && Number(value) >= 0) return Number(value);
    throw new BlockError("EINVAL", `Value '${String(value)}' is out of range for parameter '${name}'`);
  };
  const limits = {
    align: limit("align"),
    maxTransfer: limit("max-transfer"),
    optWriteZero: limit("opt-write-zero"),
    maxWriteZero: limit("max-write-zero"),
    optDiscard: limit("opt-discard"),
    maxDiscard: limit("max-discard"),
  };
  checkLimits(limits);
  return limits;
}

const PERMISSIONS: Readonly<Record<string, number>> = {
  "consistent-read": Permission.CONSISTENT_READ,
  write: Permission.WRITE,
  "write-unchanged": Permission.WRITE_UNCHANGED,
  resize: Permission.RESIZE,
};

/** Permissions that the node takes on its child, or denies to others, beyond its own need. */
export function permissionsOf(
  options: NodeOptions,
  name: "take-child-perms" | "unshare-child-perms",
): number {
  const names = options[name] ?? [];
  if (!Array.isArray(names)) {
    throw new BlockError("EINVAL", `Invalid parameter type for '${name}', expected: array`);
  }
  let bits = 0;
  for (const permission of names) {
    const bit = Object.hasOwn(PERMISSIONS, permission) ? PERMISSIONS[permission] : undefined;
    if (bit === undefined) throw new BlockError("EINVAL", `invalid parameter value: ${String(permission)}`);
    bits |= bit;
  }
  return bits;
}

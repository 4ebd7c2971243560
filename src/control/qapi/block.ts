// Options of block nodes, in QAPI's names. Members stand in QAPI's order: errors come in it.

import { DEBUG_EVENTS } from "../../block/debug-event.ts";
import type { NodeOptions } from "../../block/node-options.ts";
import { IO_TYPES } from "../../filter/blkdebug-rules.ts";
import {
  type AlternateType,
  alternate,
  array,
  bool,
  enumeration,
  int,
  int32,
  nil,
  str,
  struct,
  type UnionType,
  union,
} from "./types.ts";

export const blockdevDriver = enumeration("BlockdevDriver", ["blkdebug", "file", "raw", "qcow2"]);

export const onOffAuto = enumeration("OnOffAuto", ["auto", "on", "off"]);

export const detectZeroes = enumeration("BlockdevDetectZeroesOptions", ["off", "on", "unmap"]);

const cacheOptions = struct("BlockdevCacheOptions", "How the host's page cache is used.", {
  "?direct": bool,
  "?no-flush": bool,
});

const base = struct("BlockdevOptionsBase", "What every driver takes.", {
  driver: blockdevDriver,
  "?node-name": str,
  "?discard": enumeration("BlockdevDiscardOptions", ["ignore", "unmap"]),
  "?cache": cacheOptions,
  "?active": bool,
  "?read-only": bool,
  "?auto-read-only": bool,
  "?force-share": bool,
  "?detect-zeroes": detectZeroes,
});

const fileOptions = struct("BlockdevOptionsFile", "A regular file of the host.", {
  filename: str,
  "?pr-manager": str,
  "?locking": onOffAuto,
  "?aio": enumeration("BlockdevAioOptions", ["threads", "native", "io_uring"]),
  "?aio-max-batch": int,
  "?drop-cache": bool,
  "?x-check-cache-dropped": bool,
});

/** Options of a node, or the name of one that is there. */
export const blockdevRef: AlternateType<string | NodeOptions> = alternate(
  "BlockdevRef",
  "Options of a new node, or the name of an existing one.",
  () => [blockdevOptions, str],
);

export const blockdevRefOrNull: AlternateType<string | null | NodeOptions> = alternate(
  "BlockdevRefOrNull",
  "As BlockdevRef; null says that there is none.",
  () => [blockdevOptions, str, nil],
);

const rawOptions = struct("BlockdevOptionsRaw", "The bytes of its file as they are, or a window of them.", {
  file: () => blockdevRef,
  "?offset": int,
  "?size": int,
});

const overlapMode = enumeration("Qcow2OverlapCheckMode", ["none", "constant", "cached", "all"]);

const overlapFlags = struct("Qcow2OverlapCheckFlags", "Which tables are checked before each write.", {
  "?template": overlapMode,
  "?main-header": bool,
  "?active-l1": bool,
  "?active-l2": bool,
  "?refcount-table": bool,
  "?refcount-block": bool,
  "?snapshot-table": bool,
  "?inactive-l1": bool,
  "?inactive-l2": bool,
  "?bitmap-directory": bool,
});

const overlapChecks = alternate("Qcow2OverlapChecks", "A mode, or each check by itself.", () => [
  overlapFlags,
  overlapMode,
]);

const qcow2Options = struct("BlockdevOptionsQcow2", "A qcow2 image.", {
  file: () => blockdevRef,
  "?backing": () => blockdevRefOrNull,
  "?lazy-refcounts": bool,
  "?pass-discard-request": bool,
  "?pass-discard-snapshot": bool,
  "?pass-discard-other": bool,
  "?discard-no-unref": bool,
  "?overlap-check": () => overlapChecks,
  "?cache-size": int,
  "?l2-cache-size": int,
  "?l2-cache-entry-size": int,
  "?refcount-cache-size": int,
  "?cache-clean-interval": int,
  "?data-file": () => blockdevRef,
});

const blkdebugEvent = enumeration("BlkdebugEvent", DEBUG_EVENTS);

const injectError = struct("BlkdebugInjectErrorOptions", "Requests that fail once an event was seen.", {
  event: blkdebugEvent,
  "?state": int,
  "?iotype": enumeration("BlkdebugIOType", IO_TYPES),
  "?errno": int,
  "?sector": int,
  "?once": bool,
  "?immediately": bool,
});

const setState = struct("BlkdebugSetStateOptions", "An event that changes the state of the rules.", {
  event: blkdebugEvent,
  "?state": int,
  new_state: int,
});

const blockPermission = enumeration("BlockPermission", [
  "consistent-read",
  "write",
  "write-unchanged",
  "resize",
]);

const blkdebugOptions = struct("BlockdevOptionsBlkdebug", "A filter that lets requests fail, for tests.", {
  image: () => blockdevRef,
  "?config": str,
  "?align": int,
  "?max-transfer": int32,
  "?opt-write-zero": int32,
  "?max-write-zero": int32,
  "?opt-discard": int32,
  "?max-discard": int32,
  "?inject-error": array(injectError),
  "?set-state": array(setState),
  "?take-child-perms": array(blockPermission),
  "?unshare-child-perms": array(blockPermission),
});

/** What `blockdev-add` takes. */
export const blockdevOptions: UnionType<NodeOptions> = union(
  "BlockdevOptions",
  "Options of a block node; those of its driver beside those of all.",
  base,
  "driver",
  { blkdebug: blkdebugOptions, file: fileOptions, qcow2: qcow2Options, raw: rawOptions },
) as UnionType<NodeOptions>;

// --- creation ----------------------------------------------------------------------------------------------

const preallocMode = enumeration("PreallocMode", ["off", "metadata", "falloc", "full"]);

const createFile = struct("BlockdevCreateOptionsFile", "A new file of the host.", {
  filename: str,
  size: int,
  "?preallocation": preallocMode,
  "?nocow": bool,
  "?extent-size-hint": int,
});

const createQcow2 = struct("BlockdevCreateOptionsQcow2", "A qcow2 image in a file that exists.", {
  file: () => blockdevRef,
  "?data-file": () => blockdevRef,
  "?data-file-raw": bool,
  "?extended-l2": bool,
  size: int,
  "?version": enumeration("BlockdevQcow2Version", ["v2", "v3"]),
  "?backing-file": str,
  "?backing-fmt": blockdevDriver,
  "?cluster-size": int,
  "?preallocation": preallocMode,
  "?lazy-refcounts": bool,
  "?refcount-bits": int,
  "?compression-type": enumeration("Qcow2CompressionType", ["zlib", "zstd"]),
});

/** What `blockdev-create` takes as its options. */
export const createOptions = union(
  "BlockdevCreateOptions",
  "What image to make.",
  struct("BlockdevCreateOptionsBase", "", { driver: blockdevDriver }),
  "driver",
  { file: createFile, qcow2: createQcow2 },
);

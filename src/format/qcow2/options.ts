// Options of the driver, and how they are spelled in a block device's options.

import type { Clock } from "../../base/clock.ts";
import { BlockError } from "../../base/errors.ts";
import type { Logger } from "../../base/logger.ts";
import type { CorruptionReport } from "../../block/driver.ts";

export interface Qcow2Options {
  readonly readOnly: boolean;
  /** Bounds of the table caches in bytes; 8 MiB and 2 MiB unless given. */
  readonly l2CacheBytes?: number;
  readonly refcountCacheBytes?: number;
  /**
   * What a discard of the guest does: nothing (`ignore`, `off`), or give the space up (`unmap`, `on`; the
   * default).
   */
  readonly discard?: "ignore" | "unmap" | "off" | "on";
  /** The kinds of metadata that no write may touch (overlap-checks.ts); QEMU's `cached` unless given. */
  readonly overlapChecks?: number;
  readonly logger?: Logger;
  readonly clock?: Clock;
  /** Who is told when damage is met. */
  readonly onCorruption?: ((report: CorruptionReport) => void) | undefined;
}

type CacheSizes = Pick<Qcow2Options, "l2CacheBytes" | "refcountCacheBytes">;

/**
 * Reads `l2-cache-size`, `refcount-cache-size` and `cache-size` with QEMU's meaning: of the common size the
 * L2 tables get what the refcounts leave.
 * @throws BlockError EINVAL in QEMU's words
 */
export function cacheSizes(options: Readonly<Record<string, unknown>>): CacheSizes {
  const l2 = sizeOption(options, "l2-cache-size");
  const refcounts = sizeOption(options, "refcount-cache-size");
  const all = sizeOption(options, "cache-size");
  if (all === undefined) return { l2CacheBytes: l2, refcountCacheBytes: refcounts } as CacheSizes;
  if (l2 !== undefined && refcounts !== undefined) {
    throw new BlockError(
      "EINVAL",
      "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
    );
  }
  if ((l2 ?? 0) > all) throw new BlockError("EINVAL", "l2-cache-size may not exceed cache-size");
  if ((refcounts ?? 0) > all) throw new BlockError("EINVAL", "refcount-cache-size may not exceed cache-size");
  if (l2 !== undefined) return { l2CacheBytes: l2, refcountCacheBytes: all - l2 };
  const forRefcounts = refcounts ?? Math.floor(all / 5);
  return { l2CacheBytes: all - forRefcounts, refcountCacheBytes: forRefcounts };
}

function sizeOption(options: Readonly<Record<string, unknown>>, name: string): number | undefined {
  const value = options[name];
  if (typeof value !== "number") return undefined;
  if (value >= 0) return value;
  throw new BlockError("EINVAL", `Value '${value}' is out of range for parameter '${name}'`);
}

// What the daemon asks of links in images (see block/link-options.ts): the schema holds for them as well.

import { BlockError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import type { BackingRoots } from "../block/backing-roots.ts";
import type { NodeOptions } from "../block/node-options.ts";
import type { LinkRules } from "../block/open.ts";
import type { JsonValue } from "./json-value.ts";
import { adaptNodeOptions } from "./node-options.ts";
import { blockdevOptions } from "./qapi/block.ts";
import { visit } from "./qapi/visitor.ts";

/** Images are made of these; what else the daemon knows is for its users, not for an image. */
const DRIVERS: readonly string[] = ["file", "host_device", "raw", "qcow2"];

export function linkRules(roots: BackingRoots | undefined, logger: Logger): LinkRules {
  return { roots, checkOptions: (options) => checkLinkOptions(options, logger) };
}

/** @throws BlockError in QAPI's words */
function checkLinkOptions(options: NodeOptions, logger: Logger): NodeOptions {
  refuseOtherDrivers(options);
  // Others write numbers and booleans as strings there, which is what key=value is checked for.
  const checked = visit(blockdevOptions, asStrings(options), true) as NodeOptions;
  return adaptNodeOptions(checked, logger);
}

function refuseOtherDrivers(options: NodeOptions): void {
  const { driver } = options;
  if (driver !== undefined && !DRIVERS.includes(driver)) {
    throw new BlockError(
      "ENOTSUP",
      `Unknown driver '${String(driver)}' in a backing file: there are raw and qcow2`,
    );
  }
  for (const value of Object.values(options)) {
    if (typeof value === "object" && value !== null) refuseOtherDrivers(value as NodeOptions);
  }
}

function asStrings(value: unknown): JsonValue {
  // An image without a backing file: "" says so in both forms.
  if (value === null) return "";
  if (typeof value !== "object") return String(value);
  if (Array.isArray(value)) return value.map(asStrings);
  return Object.fromEntries(Object.entries(value).map(([key, member]) => [key, asStrings(member)]));
}

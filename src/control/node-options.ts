// Options of nodes that fit the schema but that this program takes in its own way, or not at all.

import { BlockError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import type { NodeOptions } from "../block/node-options.ts";

/**
 * The options as they are opened: what a node hands down to its file is written there.
 * @throws BlockError for what would change what a guest gets; warns of what makes no difference
 */
export function adaptNodeOptions(options: NodeOptions, logger: Logger): NodeOptions {
  checkNodeOptions(options, logger);
  const { file, image, backing } = options;
  const shares = options["force-share"] === true ? { "force-share": true } : {};
  return {
    ...options,
    ...(typeof file === "object" ? { file: { ...shares, ...adaptNodeOptions(file, logger) } } : {}),
    ...(typeof image === "object" ? { image: { ...shares, ...adaptNodeOptions(image, logger) } } : {}),
    ...(typeof backing === "object" && backing !== null
      ? { backing: adaptNodeOptions(backing, logger) }
      : {}),
  };
}

function checkNodeOptions(options: NodeOptions, logger: Logger): void {
  const name = options["node-name"] ?? options.driver;
  const refuse = (message: string) => {
    throw new BlockError("ENOTSUP", message);
  };
  const { cache } = options as {
    readonly cache?: { readonly direct?: boolean; readonly "no-flush"?: boolean };
  };
  if (cache?.direct === true) {
    logger.warn(`node '${name}': cache.direct=on is taken as off: the page cache is used, flushes are kept`);
  }
  if (cache?.["no-flush"] === true) logger.warn(`node '${name}': cache.no-flush=on is taken as off`);
  if (options["active"] === false) refuse(`node '${name}': inactive nodes are not supported`);
  if (options["pr-manager"] !== undefined) {
    refuse(`No persistent reservation manager with id '${String(options["pr-manager"])}'`);
  }
  if (options["data-file"] !== undefined) refuse(`node '${name}': external data files are not supported`);
  if (options["force-share"] === true && options["read-only"] !== true) {
    throw new BlockError("EINVAL", "force-share=on can only be used with read-only images");
  }
  const { "detect-zeroes": detect } = options;
  if (detect !== undefined && detect !== "off") {
    logger.warn(
      `node '${name}': detect-zeroes=${String(detect)} is taken as off: zeros are written as they come`,
    );
  }
}

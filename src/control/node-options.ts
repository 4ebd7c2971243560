// Options of nodes that fit the schema but that this program takes in its own way, or not at all.

import { BlockError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import type { NodeOptions } from "../block/open.ts";

/** @throws BlockError for what would change what a guest gets; warns of what makes no difference */
export function checkNodeOptions(options: NodeOptions, logger: Logger): void {
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
  for (const child of [options.file, options.backing]) {
    if (typeof child === "object" && child !== null) checkNodeOptions(child, logger);
  }
}

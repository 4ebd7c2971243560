// The qcow2 driver as block devices are opened: options in QAPI's spelling.

import type { NodeOptions } from "../../block/node-options.ts";
import type { DriverFactory } from "../../block/open.ts";
import { openQcow2 } from "./driver.ts";
import { cacheSizes, type Qcow2Options } from "./options.ts";
import { overlapChecks } from "./overlap-checks.ts";

export const qcow2Factory: DriverFactory = {
  driverName: "qcow2",
  leaf: false,
  async open(host, options, context) {
    const driver = await openQcow2(host, {
      ...cacheSizes(options),
      readOnly: context.readOnly,
      discard: discardOption(options),
      overlapChecks: overlapChecks(options["overlap-check"]),
      logger: context.logger,
      onCorruption: context.onCorruption,
    });
    return driver;
  },
};

function discardOption(options: NodeOptions): NonNullable<Qcow2Options["discard"]> {
  const value = options["discard"];
  return value === "ignore" || value === "off" ? value : "unmap";
}

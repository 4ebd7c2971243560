// The drivers that the daemon opens nodes with.

import type { DriverFactory } from "../block/open.ts";
import { blkdebugFactory } from "../filter/blkdebug.ts";
import { qcow2Factory } from "../format/qcow2/factory.ts";
import { RawDriver } from "../format/raw/raw-driver.ts";
import { openFileDriver } from "../protocol/file/file-driver.ts";

const fileFactory: DriverFactory = {
  driverName: "file",
  leaf: true,
  filename: (options) => String(options["filename"]),
  open: (_host, options, context) =>
    openFileDriver(String(options["filename"]), {
      writable: !context.readOnly,
      shareWrite: options["force-share"] === true,
      locking: options["locking"] !== "off",
      threads: options["aio"] === "threads",
      logger: context.logger,
    }),
};

const rawFactory: DriverFactory = {
  driverName: "raw",
  leaf: false,
  open: async (host, options) =>
    new RawDriver(host, options as { readonly offset?: number; readonly size?: number }),
};

export const DRIVERS: readonly DriverFactory[] = [fileFactory, rawFactory, qcow2Factory, blkdebugFactory];

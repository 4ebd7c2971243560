import type { DriverFactory } from "../../block/open.ts";
import { FileDriver } from "../../protocol/file/file-driver.ts";
import type { HostFile } from "../../sys/host-file.ts";

/** Opens this file under any name. */
export function leafFactory(file: HostFile, growable: boolean): DriverFactory {
  return {
    driverName: "file",
    leaf: true,
    filename: (options) => String(options["filename"]),
    open: async () => new FileDriver(file, { growable }),
  };
}

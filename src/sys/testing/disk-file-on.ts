// A DiskFile with chosen parts: the host's answers are the test's.

import { openSync } from "node:fs";
import { systemClock } from "../../base/clock.ts";
import { Descriptor } from "../descriptor.ts";
import { DiskFile, type DiskFileParts } from "../disk-file.ts";

/** A new, empty file at `path`, on a disk unless `parts` say otherwise, without locks and without a ring. */
export function diskFileOn(
  path: string,
  parts: Partial<DiskFileParts> & Pick<DiskFileParts, "calls">,
): DiskFile {
  return new DiskFile({
    path,
    descriptor: parts.descriptor ?? new Descriptor(openSync(path, "w+")),
    writable: true,
    size: 0,
    blockDevice: false,
    inMemory: false,
    cachesWrites: true,
    fileSystem: { type: 0, device: 0 },
    ring: () => undefined,
    clock: systemClock,
    locking: false,
    ...parts,
  });
}

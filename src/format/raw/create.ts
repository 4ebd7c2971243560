import { BlockError } from "../../base/errors.ts";
import { alignUp } from "../../base/units.ts";
import { createHostFile, type Preallocation } from "../../sys/create-host-file.ts";

export interface RawCreateOptions {
  /** Length of the disk in bytes; rounded up to whole sectors of 512, as qemu-img does. */
  readonly size: number;
  readonly preallocation?: Preallocation;
  /** Fails where there is a file already. */
  readonly exclusive?: boolean;
}

/**
 * Makes a raw image of zeros, durably.
 * @throws BlockError; IMAGE_LOCKED when an image stands there that is in use
 */
export async function createRaw(path: string, options: RawCreateOptions): Promise<void> {
  const size = alignUp(options.size, 512);
  if (!Number.isSafeInteger(size) || size < 0) {
    throw new BlockError("EINVAL", `A disk of ${options.size} bytes is not possible`);
  }
  const file = await createHostFile(path, { ...options, size });
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

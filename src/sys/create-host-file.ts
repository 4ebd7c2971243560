import { BlockError } from "../base/errors.ts";
import { MiB } from "../base/units.ts";
import type { DiskFile } from "./disk-file.ts";
import { type OpenOptions, openHostFile } from "./open-host-file.ts";
import { syncDirectoryOf } from "./whole-file.ts";

/** QEMU's names: nothing is set aside; space is reserved; zeros are written. */
export type Preallocation = "off" | "falloc" | "full";

export interface CreateOptions extends Omit<OpenOptions, "writable" | "create"> {
  /** Bytes. */
  readonly size: number;
  readonly preallocation?: Preallocation;
  /** Fails where there is a file already instead of replacing what it holds. */
  readonly exclusive?: boolean;
}

/**
 * Makes a file of `size` zero bytes and hands it over open for writing and locked, its name already durable.
 * A file that stands there already is emptied, but not while another process uses it as an image.
 * @throws BlockError IMAGE_LOCKED, ENOSPC, EEXIST ...
 */
export async function createHostFile(path: string, options: CreateOptions): Promise<DiskFile> {
  const { size, preallocation = "off", exclusive = false, ...rest } = options;
  const file = openHostFile(path, { ...rest, writable: true, create: exclusive ? "exclusive" : true });
  try {
    file.lock({ write: true, shareWrite: false });
    if (file.blockDevice) await clearDevice(file, size);
    else {
      await file.truncate(0);
      await preallocate(file, size, preallocation);
    }
    syncDirectoryOf(path);
    return file;
  } catch (error) {
    await file.close();
    throw error;
  }
}

async function preallocate(file: DiskFile, size: number, preallocation: Preallocation): Promise<void> {
  if (preallocation === "falloc") await file.writeZeroes(0, size, { unmap: false, cheapOnly: true });
  if (preallocation === "full") await writeAllZeros(file, size);
  await file.truncate(size);
}

async function writeAllZeros(file: DiskFile, size: number): Promise<void> {
  const zeros = Buffer.alloc(Math.min(size, 4 * MiB));
  for (let done = 0; done < size; done += zeros.length) {
    await file.write(done, Math.min(zeros.length, size - done), zeros, 0);
  }
}

async function clearDevice(file: DiskFile, size: number): Promise<void> {
  if (file.size < size) {
    throw new BlockError("ENOSPC", `'${file.path}' has ${file.size} bytes, ${size} are needed`);
  }
  // Whatever was there must not be taken for an image.
  const head = Math.min(file.size, 1 * MiB);
  await file.write(0, head, Buffer.alloc(head), 0);
}

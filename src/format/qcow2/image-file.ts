import type { Completion } from "../../base/completion.ts";
import type { HostFile } from "../../sys/host-file.ts";

/**
 * The bytes of an image for work that is done on it as a whole (create, check, repair): a node that can grow,
 * or a host file that no graph knows. Buffers are borrowed until the completion settles.
 */
export interface ImageFile {
  readonly size: number;
  /** Past the end of the file it fills zeros. */
  read(offset: number, bytes: number, buffer: Buffer, at: number): Completion;
  write(offset: number, bytes: number, buffer: Buffer, at: number): Completion;
  /** The range reads as zeros and has its space on the host. */
  writeZeroes(offset: number, bytes: number, flags: number): Completion;
  discard(offset: number, bytes: number): Completion;
  flush(): Completion;
  truncate(size: number): Completion;
}

/** A host file as an {@link ImageFile}. */
export function hostImageFile(file: HostFile): ImageFile {
  return {
    get size() {
      return file.size;
    },
    read: (offset, bytes, buffer, at) => file.read(offset, bytes, buffer, at),
    write: (offset, bytes, buffer, at) => file.write(offset, bytes, buffer, at),
    writeZeroes: (offset, bytes) => file.writeZeroes(offset, bytes, { unmap: false, cheapOnly: false }),
    discard: (offset, bytes) => file.discard(offset, bytes),
    flush: () => file.sync(),
    truncate: (size) => file.truncate(size),
  };
}

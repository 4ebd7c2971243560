// Data and holes of a host file: SEEK_DATA, SEEK_HOLE. All is data where the host cannot tell.
//
// Finding the end of a long stretch of data costs tmpfs 5 us per MiB, so the last one is kept. It is
// forgotten when the owner makes holes; when another process does, "data" is still true, only less than could
// be said.

import { Errno } from "./host-error.ts";
import type { HostExtent } from "./host-file.ts";
import { SeekFrom, type SystemCalls } from "./system-calls.ts";

export class FileExtents {
  readonly #calls: SystemCalls;
  /** The stretch of data that was found last. */
  #dataFrom = 0;
  #dataTo = 0;

  constructor(calls: SystemCalls) {
    this.#calls = calls;
  }

  /** The stretch that begins at `offset` of a file of `size` bytes. */
  at(fd: number, offset: number, size: number): HostExtent {
    if (offset >= this.#dataFrom && offset < this.#dataTo)
      return { bytes: this.#dataTo - offset, data: true };
    const data = this.#calls.seek(fd, offset, SeekFrom.DATA);
    // ENXIO: no data from here on. What lies past the end reads as zeros too.
    if (data === -Errno.ENXIO) return { bytes: Number.MAX_SAFE_INTEGER - offset, data: false };
    if (data > offset) return { bytes: data - offset, data: false };
    const hole = data === offset ? this.#calls.seek(fd, offset, SeekFrom.HOLE) : -1;
    if (hole > offset) {
      this.#dataFrom = offset;
      this.#dataTo = hole;
      return { bytes: hole - offset, data: true };
    }
    return offset < size
      ? { bytes: size - offset, data: true }
      : { bytes: Number.MAX_SAFE_INTEGER - offset, data: false };
  }

  /** There may be new holes. */
  forget(): void {
    this.#dataTo = 0;
  }
}

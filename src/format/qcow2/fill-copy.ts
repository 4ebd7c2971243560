// What stands around the payload of a first write, copied by the host at once: from the file of the layer
// that holds it into our own, without a buffer of ours.
//
//      a file below   | ... head ...                  ... tail ... |
//                           |                              |          copy_file_range, once for each
//      our file       | ... head ... | payload | ... tail ... |       one cluster, claimed, not linked yet
//
//   1. Only in memory file systems. On disks it costs as much as reading and writing, and would have to wait.
//   2. Only what is known at once to be one piece of data in the file of a layer that nobody may write to
//      (owner-index.ts), and never past a filter: it sees its reads and writes. No filter hears of places
//      (`placeOf`), and none copies.
//   3. Not where the larger of the two begins with zeros: it may be all zeros, which take no space in a fresh
//      cluster. A second look costs as much as the zeros of a smaller piece are worth.
//   4. Small pieces cost more calls than the copy saves; large ones would keep the loop too long.
//   5. When the host refuses, or stops half way, the caller reads and writes the same bytes to the same
//      place, and meets the host's error there.
//
// Measured by calls alone on tmpfs, us for 60 KiB around 4: read and written 32.5, copied 27.3, 28.7 with a
// look at each piece.

import { KiB } from "../../base/units.ts";
import type { OwnerIndex } from "../../block/owner-index.ts";
import { DataLook } from "./data-look.ts";
import type { Image } from "./image.ts";

const PIECE_BYTES_MIN = 16 * KiB;
const PIECE_BYTES_MAX = 256 * KiB;

export class FillCopy {
  readonly #image: Image;
  readonly #owners: OwnerIndex;
  readonly #look = new DataLook();

  /** @param owners of the layers below the image */
  constructor(image: Image, owners: OwnerIndex) {
    this.#image = image;
    this.#owners = owners;
  }

  /**
   * Whether a copy of a range that nothing in the image holds is worth a try.
   * @param fresh whether it goes to where zeros stand now
   * @throws BlockError as a read of the range does
   */
  isWorthIt(offset: number, bytes: number, fresh: boolean): boolean {
    if (bytes < PIECE_BYTES_MIN || bytes > PIECE_BYTES_MAX) return false;
    const { file, debug, host } = this.#image;
    if (host.backing === undefined || debug !== undefined) return false;
    if (file.driver.copiesAtOnce !== true) return false;
    const owner = this.#owners.findPlaced(host.backing, offset);
    if (owner === undefined) return false;
    return !fresh || this.#look.findsData(owner.file!, this.#owners.foundPlace);
  }

  /**
   * Whether such a range, of one cluster, now stands at `hostOffset` of the image's file. The caller holds
   * the cluster's lock.
   */
  copy(offset: number, bytes: number, hostOffset: number): boolean {
    const { file, host } = this.#image;
    const owner = this.#owners.findPlaced(host.backing!, offset);
    return owner?.copyPlaced(this.#owners.foundPlace, bytes, file, hostOffset) === true;
  }
}

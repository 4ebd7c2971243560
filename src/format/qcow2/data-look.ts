// A look at the first bytes of a range: is it surely not all zeros? Who copies inside the host has not seen
// what it copies, and zeros are better not written.

import { isZero } from "../../base/bytes.ts";
import type { BlockNode } from "../../block/node.ts";

const LOOK_BYTES = 16;

export class DataLook {
  #bytes = Buffer.alloc(LOOK_BYTES);

  /**
   * Whether data that is not zero begins at `offset` of `file`; false too where a look would have to wait.
   * @throws BlockError as a read does
   */
  findsData(file: BlockNode, offset: number): boolean {
    const waiting = file.read(offset, LOOK_BYTES, this.#bytes, 0);
    if (waiting === undefined) return !isZero(this.#bytes, 0, LOOK_BYTES);
    // Its answer is not needed, and goes to a buffer that nobody looks at any more.
    waiting.catch(() => {});
    this.#bytes = Buffer.alloc(LOOK_BYTES);
    return false;
  }
}

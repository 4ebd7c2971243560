import { divideUp } from "../../base/units.ts";
import { openChecked, readCheckedHeader } from "./checked-image.ts";
import type { ImageFile } from "./image-file.ts";
import { setRefcount } from "./refcount-width.ts";

/**
 * Frees clusters that begin past the end of the file. A power cut leaves such refcounts when the data that
 * was to stand there did not make the file longer any more; nothing can point there, and a check, which looks
 * as far as the file goes, does not see them before it has grown again.
 * @returns how many it freed
 * @throws BlockError what the host says
 */
export async function freePastEnd(file: ImageFile): Promise<number> {
  const { refcounts, geometry, header } = await openChecked(file, await readCheckedHeader(file));
  const { refcountBlockEntries, clusterSize } = geometry;
  const firstPast = divideUp(file.size, clusterSize);
  let freed = 0;
  for (let index = Math.floor(firstPast / refcountBlockEntries); index < refcounts.entryCount; index++) {
    if (!refcounts.isUsable(index)) continue;
    const block = await refcounts.block(index);
    if (block === undefined) continue;
    const before = freed;
    for (
      let entry = Math.max(0, firstPast - index * refcountBlockEntries);
      entry < refcountBlockEntries;
      entry++
    ) {
      if (refcounts.entry(block, entry) === 0) continue;
      setRefcount(block, header.refcountOrder, entry, 0);
      freed++;
    }
    if (freed > before) await refcounts.writeBlock(index, block);
  }
  return freed;
}

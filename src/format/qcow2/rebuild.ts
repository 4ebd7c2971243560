// New refcount structures for an image whose old ones are broken.
//
//   | clusters in use, and the old structures | new refcount blocks | new refcount table |
//                                             ^ start                                    ^ end
//   1. The old structures are not touched: they may overlap with data, and they are all there is until the
//      switch.
//   2. Blocks and table are durable before the header names them: 12 bytes in one sector.
//   3. A block that would hold only zeros is not made, but for those that cover the new structures
//      themselves.

import { writeU64 } from "../../base/bytes.ts";
import { BlockError } from "../../base/errors.ts";
import { alignUp, divideUp } from "../../base/units.ts";
import { CheckTally } from "./check-report.ts";
import { countBitmaps, countReferences } from "./check-walk.ts";
import type { CheckedImage } from "./checked-image.ts";
import { MAX_REFTABLE_BYTES } from "./header.ts";
import { setRefcount } from "./refcount-width.ts";
import { ReferenceCounts, type Window, windowsOf } from "./reference-counts.ts";

/** Where the header names the refcount table: offset (8 bytes), clusters (4 bytes). */
const REFTABLE_FIELDS_AT = 48;

interface NewBlock {
  readonly index: number;
  readonly cluster: number;
}

/**
 * Writes new refcount structures and switches the header to them.
 * @throws BlockError EFBIG when the table would be too large; what the host says. The image is as it was
 * then.
 */
export async function rebuildRefcounts(image: CheckedImage, windowClusters: number): Promise<void> {
  const { geometry, file } = image;
  const { clusterSize, refcountBlockEntries } = geometry;
  const start = await firstFreeCluster(image, windowClusters);
  const firstTailBlock = Math.floor(start / refcountBlockEntries);
  const blocks: NewBlock[] = [];
  let tail: Buffer | undefined;
  for (const window of windowsOf(start, alignUp(windowClusters, refcountBlockEntries))) {
    const counts = await countUsed(image, window);
    for (let first = window.first; first < window.end; first += refcountBlockEntries) {
      const index = first / refcountBlockEntries;
      const block = blockOf(image, counts, first, Math.min(first + refcountBlockEntries, window.end));
      if (index === firstTailBlock) tail = block ?? Buffer.alloc(clusterSize);
      else if (block !== undefined) {
        const cluster = start + blocks.length;
        await file.write(cluster * clusterSize, clusterSize, block, 0);
        blocks.push({ index, cluster });
      }
    }
  }
  const plan = planTail(image, start + blocks.length, firstTailBlock);
  for (let index = firstTailBlock; index < firstTailBlock + plan.blockCount; index++) {
    const block = index === firstTailBlock && tail !== undefined ? tail : Buffer.alloc(clusterSize);
    const from = Math.max(start, index * refcountBlockEntries);
    const to = Math.min(plan.end, (index + 1) * refcountBlockEntries);
    for (let cluster = from; cluster < to; cluster++) {
      setRefcount(block, image.header.refcountOrder, cluster % refcountBlockEntries, 1);
    }
    const cluster = start + blocks.length;
    await file.write(cluster * clusterSize, clusterSize, block, 0);
    blocks.push({ index, cluster });
  }
  await writeTable(image, blocks, plan.end - plan.tableClusters, plan.tableClusters);
}

/** Behind every cluster that is referred to, and behind the old structures. */
async function firstFreeCluster(image: CheckedImage, windowClusters: number): Promise<number> {
  const { geometry, file, refcounts, header } = image;
  const clusterCount = divideUp(file.size, geometry.clusterSize);
  let last = Math.floor(header.refcountTableOffset / geometry.clusterSize) + header.refcountTableClusters - 1;
  if (last >= clusterCount) last = 0;
  for (let index = 0; index < refcounts.entryCount; index++) {
    const cluster = Math.floor(refcounts.blockOffset(index) / geometry.clusterSize);
    if (cluster < clusterCount && cluster > last) last = cluster;
  }
  for (const window of windowsOf(clusterCount + 1, windowClusters)) {
    last = Math.max(last, (await countUsed(image, window)).highest);
  }
  return last + 1;
}

/** All references but those to refcount structures. */
async function countUsed(image: CheckedImage, window: Window): Promise<ReferenceCounts> {
  const unheard = new CheckTally();
  const counts = new ReferenceCounts(window, image.geometry, image.file.size, unheard);
  await countReferences(image, counts, unheard);
  await countBitmaps(image, counts, unheard);
  return counts;
}

/** The refcount block for clusters from `first` on; undefined when none of them is in use. */
function blockOf(
  image: CheckedImage,
  counts: ReferenceCounts,
  first: number,
  end: number,
): Buffer | undefined {
  let block: Buffer | undefined;
  for (let cluster = first; cluster < end; cluster++) {
    cluster = counts.nextReferenced(cluster, end);
    if (cluster === end) break;
    const count = counts.get(cluster);
    if (count === 0) continue;
    block ??= Buffer.alloc(image.geometry.clusterSize);
    setRefcount(block, image.header.refcountOrder, cluster - first, count);
  }
  return block;
}

/** How many blocks it takes to cover what is behind `next`, themselves and the table included. */
function planTail(image: CheckedImage, next: number, firstTailBlock: number) {
  const { clusterSize, refcountBlockEntries } = image.geometry;
  let blockCount = 1;
  let tableClusters = 1;
  for (;;) {
    const end = next + blockCount + tableClusters;
    const entries = divideUp(end, refcountBlockEntries);
    if (entries * 8 > MAX_REFTABLE_BYTES) {
      throw new BlockError("EFBIG", "The refcount table that this file needs is too large for the format");
    }
    const wantedBlocks = Math.max(entries - firstTailBlock, blockCount);
    const wantedTable = Math.max(divideUp(entries * 8, clusterSize), tableClusters);
    if (wantedBlocks === blockCount && wantedTable === tableClusters)
      return { blockCount, tableClusters, end };
    blockCount = wantedBlocks;
    tableClusters = wantedTable;
  }
}

async function writeTable(
  image: CheckedImage,
  blocks: readonly NewBlock[],
  tableCluster: number,
  tableClusters: number,
): Promise<void> {
  const { clusterSize } = image.geometry;
  const table = Buffer.alloc(tableClusters * clusterSize);
  for (const { index, cluster } of blocks) writeU64(table, cluster * clusterSize, index * 8);
  const offset = tableCluster * clusterSize;
  await image.file.write(offset, table.length, table, 0);
  await image.file.flush();
  const fields = Buffer.alloc(12);
  writeU64(fields, offset, 0);
  fields.writeUInt32BE(tableClusters, 8);
  await image.file.write(REFTABLE_FIELDS_AT, fields.length, fields, 0);
  await image.file.flush();
}

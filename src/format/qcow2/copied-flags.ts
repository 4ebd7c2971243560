// COPIED in the active tables must say whether a refcount is exactly one: a wrong flag lets a write into a
// shared cluster (set), or copies for nothing (clear).

import type { CheckTally } from "./check-report.ts";
import type { CheckedImage } from "./checked-image.ts";
import { ClusterKind, COPIED_HIGH, clusterKind, entryOffset, isCopied, L1_ENTRY_BYTES } from "./l2-entry.ts";

/**
 * Compares the COPIED flags of the active tables with the refcounts on disk, and with `fix` makes them right.
 * @throws BlockError what the host says
 */
export async function checkCopiedFlags(image: CheckedImage, tally: CheckTally, fix: boolean): Promise<void> {
  const { header, geometry, file, refcounts } = image;
  const l2Table = Buffer.alloc(geometry.clusterSize);
  const entry = Buffer.alloc(L1_ENTRY_BYTES);
  const inFile = Math.max(0, Math.ceil((file.size - header.l1TableOffset) / L1_ENTRY_BYTES));
  const entries = Math.min(header.l1Size, inFile);
  const l1 = Buffer.alloc(entries * L1_ENTRY_BYTES);
  await file.read(header.l1TableOffset, l1.length, l1, 0);
  for (let index = 0; index < entries; index++) {
    const high = l1.readUInt32BE(index * L1_ENTRY_BYTES);
    const low = l1.readUInt32BE(index * L1_ENTRY_BYTES + 4);
    const l2Offset = entryOffset(high, low);
    if (l2Offset === 0) continue;
    const refcount = await refcounts.get(Math.floor(l2Offset / geometry.clusterSize));
    if (refcount === undefined) continue;
    if ((refcount === 1) !== isCopied(high)) {
      report(tally, fix, `OFLAG_COPIED L2 cluster: l1_index=${index} refcount=${refcount}`);
      if (fix) {
        entry.writeUInt32BE((high ^ COPIED_HIGH) >>> 0, 0);
        entry.writeUInt32BE(low, 4);
        await file.write(header.l1TableOffset + index * L1_ENTRY_BYTES, L1_ENTRY_BYTES, entry, 0);
      }
    }
    if (l2Offset >= file.size) continue;
    await file.read(l2Offset, l2Table.length, l2Table, 0);
    const changed = await checkTable(image, l2Table, tally, fix);
    if (changed) await writeTable(image, l2Offset, l2Table, tally);
  }
}

async function checkTable(image: CheckedImage, table: Buffer, tally: CheckTally, fix: boolean) {
  const { geometry, refcounts } = image;
  let changed = false;
  for (let at = 0; at < table.length; at += geometry.l2EntryBytes) {
    const high = table.readUInt32BE(at);
    const low = table.readUInt32BE(at + 4);
    const kind = clusterKind(high, low, geometry.extended);
    if (kind !== ClusterKind.NORMAL && kind !== ClusterKind.ZERO_ALLOCATED) continue;
    const cluster = Math.floor(entryOffset(high, low) / geometry.clusterSize);
    const atHand = refcounts.atHand(cluster);
    const refcount = atHand ?? (await refcounts.get(cluster));
    if (refcount === undefined || (refcount === 1) === isCopied(high)) continue;
    report(tally, fix, `OFLAG_COPIED data cluster: cluster=${cluster} refcount=${refcount}`);
    if (!fix) continue;
    table.writeUInt32BE((high ^ COPIED_HIGH) >>> 0, at);
    changed = true;
  }
  return changed;
}

/** A table that lies over other metadata is not written: that would destroy more than it mends. */
async function writeTable(image: CheckedImage, offset: number, table: Buffer, tally: CheckTally) {
  if (offset % image.geometry.clusterSize !== 0 || overMetadata(image, offset)) {
    tally.checkError("Could not write L2 table; metadata overlap check failed");
    return;
  }
  await image.file.write(offset, table.length, table, 0);
}

function overMetadata(image: CheckedImage, offset: number): boolean {
  const { header, geometry, refcounts } = image;
  const size = geometry.clusterSize;
  const over = (start: number, bytes: number) => offset < start + bytes && offset + size > start;
  if (over(0, size)) return true;
  if (over(header.l1TableOffset, header.l1Size * L1_ENTRY_BYTES)) return true;
  if (over(header.refcountTableOffset, header.refcountTableClusters * size)) return true;
  for (let index = 0; index < refcounts.entryCount; index++) {
    const block = refcounts.blockOffset(index);
    if (block !== 0 && over(block, size)) return true;
  }
  return false;
}

function report(tally: CheckTally, fix: boolean, line: string): void {
  if (fix) tally.corruptionFixed(line);
  else tally.corruption(line);
}

// Changes of the header while the image is open.
//
// A new backing link is committed by one write of the first sector. What the new header needs outside of it (the name,
// usually) is written first, to a place that the old header does not use, and made durable:
//
//   1. name, where the old header has nothing            -> file.flush
//   2. sector 0: fields, extensions, where the name is   -> file.flush        the commit point
//   3. the rest of the area: what the old header left
//
// A crash leaves the old link or the new one. Where the first sector cannot hold it (extensions of many bytes, a long
// name in a 512-byte cluster), all goes with one write, as QEMU does it.

import { readU64 } from "../../base/bytes.ts";
import { alignUp } from "../../base/units.ts";
import type { BlockNode } from "../../block/node.ts";
import { type Qcow2Header, serializeHeader } from "./header.ts";

const SECTOR_BYTES = 512;

export interface BackingLink {
  readonly file: string | undefined;
  readonly format: string | undefined;
}

/**
 * Writes the header with another backing link, durably. Everything else in it stays.
 * @returns the new header
 * @throws BlockError EINVAL, ENOSPC when the name does not fit: nothing was written then
 */
export async function writeBackingLink(
  file: BlockNode,
  header: Qcow2Header,
  link: BackingLink,
): Promise<Qcow2Header> {
  const changed: Qcow2Header = { ...header, backingFile: link.file, backingFormat: link.format };
  const clusterSize = 2 ** header.clusterBits;
  const old = Buffer.alloc(clusterSize);
  await file.read(0, clusterSize, old, 0);
  const { area, staged, nameAt, nameEnd } = planHeader(changed, old);
  if (!staged) {
    await file.write(0, clusterSize, area, 0);
    await file.flush();
    return changed;
  }
  const from = Math.max(nameAt, SECTOR_BYTES);
  if (nameEnd > from) {
    await file.write(from, nameEnd - from, area, from);
    await file.flush();
  }
  await file.write(0, SECTOR_BYTES, area, 0);
  await file.flush();
  if (clusterSize > SECTOR_BYTES)
    await file.write(SECTOR_BYTES, clusterSize - SECTOR_BYTES, area, SECTOR_BYTES);
  return changed;
}

interface HeaderPlan {
  readonly area: Buffer;
  /** Whether the first sector alone can be the commit point. */
  readonly staged: boolean;
  readonly nameAt: number;
  readonly nameEnd: number;
}

/** Where everything goes, so that what the old header needs stays until the first sector is written. */
export function planHeader(header: Qcow2Header, old: Buffer): HeaderPlan {
  const nameBytes = Buffer.byteLength(header.backingFile ?? "");
  const extensionsEnd = endOfExtensions(header);
  const oldEnd = usedEnd(old);
  const behindOld = alignUp(Math.max(extensionsEnd, oldEnd, SECTOR_BYTES), 8);
  const sameTail =
    extensionsEnd <= SECTOR_BYTES ||
    serializeHeader(header)
      .subarray(SECTOR_BYTES, extensionsEnd)
      .equals(old.subarray(SECTOR_BYTES, extensionsEnd));
  const inSector = extensionsEnd + nameBytes <= SECTOR_BYTES;
  const nameAt = inSector ? extensionsEnd : behindOld;
  const staged = sameTail && nameAt + nameBytes <= old.length;
  const area = serializeHeader(header, staged && nameBytes > 0 ? nameAt : undefined);
  return { area, staged, nameAt, nameEnd: nameAt + nameBytes };
}

/** Where a backing file name would go. */
function endOfExtensions(header: Qcow2Header): number {
  return readU64(serializeHeader({ ...header, backingFile: "x" }), 8);
}

/** End of what a header area holds: its last byte that is not zero, and the END mark that may follow. */
function usedEnd(area: Buffer): number {
  let end = area.length;
  while (end > 0 && area[end - 1] === 0) end--;
  return Math.min(area.length, alignUp(end, 8) + 8);
}

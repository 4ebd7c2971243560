// A new backing link, in the header of an open image.
//
// It is committed by one write of the first sector. What the link needs outside of it (the name, usually) is
// written first, to a place that the header does not use, and made durable:
//
//   1. name, where the header has nothing                              -> file.flush
//   2. sector 0: where the name is, and the format in its extension    -> file.flush     the commit point
//   3. the place of the old name is cleared
//
// Clusters of 1 or 2 KiB may have no room for a second long name. If the old base stands in the image's
// folder, its link gets that shorter name first, in the same way: whoever finds it there finds the old chain.
//
// A crash leaves the old link or the new one. The other extensions stay where they are: the format changes in
// place, and becomes a filler (an unknown extension) when there is none any more. Where that does not go (a
// format is added, the cluster is full), the header is laid out anew and written at once, as QEMU does it;
// then the filler goes, and, where the name needs its place, the mark of use.

import path from "node:path";
import { readU64, writeU64 } from "../../base/bytes.ts";
import { alignUp } from "../../base/units.ts";
import type { BlockNode } from "../../block/node.ts";
import { parseHeader, type Qcow2Header } from "./header.ts";
import { ExtensionMagic } from "./header-extensions.ts";
import { MARKER_BYTES, serializeWithMark, USE_MARKER_MAGIC } from "./use-marker.ts";

/** An extension that only keeps the place of one that was there: "STRF". */
export const FILLER_MAGIC = 0x53545246;
const SECTOR_BYTES = 512;
/** A format name takes one unit of padding: QEMU's are shorter than 8 bytes, and ours. */
const FORMAT_BYTES_MAX = 8;
const NAME_OFFSET_AT = 8;
const NAME_BYTES_AT = 16;

export interface BackingLink {
  readonly file: string | undefined;
  readonly format: string | undefined;
}

/**
 * Writes another backing link, durably. Everything else in the header stays; `header` tells the new one
 * afterwards.
 * @throws BlockError EINVAL, ENOSPC when the name does not fit: nothing was written then
 */
export async function writeBackingLink(
  file: BlockNode,
  header: Qcow2Header,
  link: BackingLink,
): Promise<void> {
  const clusterSize = 2 ** header.clusterBits;
  const old = Buffer.alloc(clusterSize);
  await file.read(0, clusterSize, old, 0);
  const anew = layOut(header, link);
  const plans = planSteps(old, header, link, nameInFolder(header.backingFile, file.filename));
  if (plans === undefined) {
    await file.write(0, clusterSize, anew, 0);
    await file.flush();
  } else {
    for (const plan of plans) await commitPlan(file, plan);
  }
  const written = parseHeader(plans?.at(-1)?.area ?? anew, Number.POSITIVE_INFINITY);
  header.backingFile = written.backingFile;
  header.backingFormat = written.backingFormat;
  header.extensions = written.extensions;
}

/**
 * Refuses a link that does not fit the header; a mark of use that comes later changes nothing.
 * @throws BlockError EINVAL, ENOSPC
 */
export function checkBackingLink(header: Qcow2Header, link: BackingLink): void {
  layOut(header, link);
}

function layOut(header: Qcow2Header, link: BackingLink): Buffer {
  const extensions = header.extensions.filter(({ magic }) => magic !== FILLER_MAGIC);
  return serializeWithMark({ ...header, backingFile: link.file, backingFormat: link.format, extensions });
}

/**
 * The changes that lead to the link, each committed by the first sector; undefined where that does not go.
 */
function planSteps(
  old: Buffer,
  header: Qcow2Header,
  link: BackingLink,
  shortName: string | undefined,
): LinkPlan[] | undefined {
  const plan = planLink(old, link);
  if (plan !== undefined || shortName === undefined) return plan && [plan];
  const shortened = planLink(old, { file: shortName, format: header.backingFormat });
  const after = shortened && planLink(shortened.area, link);
  return after && [shortened, after];
}

/**
 * The same file, named from the folder of the image; undefined where it is not below that, or where programs
 * may not agree on what such a name means.
 */
function nameInFolder(name: string | undefined, image: string): string | undefined {
  const folder = `${path.dirname(path.resolve(image))}/`;
  if (name === undefined || !name.startsWith(folder) || image.split("/").includes("..")) return undefined;
  const short = name.slice(folder.length);
  return short === "" || short.startsWith("/") || short.includes(":") ? undefined : short;
}

async function commitPlan(file: BlockNode, { area, nameAt, nameEnd }: LinkPlan): Promise<void> {
  const from = Math.max(nameAt, SECTOR_BYTES);
  if (nameEnd > from) {
    await file.write(from, nameEnd - from, area, from);
    await file.flush();
  }
  await file.write(0, SECTOR_BYTES, area, 0);
  await file.flush();
  if (area.length > SECTOR_BYTES)
    await file.write(SECTOR_BYTES, area.length - SECTOR_BYTES, area, SECTOR_BYTES);
}

export interface LinkPlan {
  /** The header area as it will be. */
  readonly area: Buffer;
  readonly nameAt: number;
  readonly nameEnd: number;
}

/**
 * The old area with another link, such that the first sector commits it; undefined where that does not go.
 */
export function planLink(old: Buffer, link: BackingLink): LinkPlan | undefined {
  const { formatAt, fillerAt, marked, end } = findExtensions(old);
  const area = Buffer.from(old);
  if (!changeFormat(area, formatAt, fillerAt, link.format)) return undefined;

  const oldAt = readU64(old, NAME_OFFSET_AT);
  const oldEnd = oldAt === 0 ? 0 : oldAt + old.readUInt32BE(NAME_BYTES_AT);
  const name = Buffer.from(link.file ?? "", "utf8");
  // Behind the extensions and what may be added to them, or behind the old name if that is in the way.
  const places = [end, alignUp(Math.max(oldEnd, end), 8)];
  if (!marked) places.unshift(end + MARKER_BYTES);
  const nameAt = places.find((at) => {
    // What is in the first sector changes at once; what is behind it must not touch the old name.
    const from = Math.max(at, SECTOR_BYTES);
    const touches = at + name.length > from && from < oldEnd && oldAt < at + name.length;
    return !touches && at + name.length <= old.length;
  });
  if (nameAt === undefined) return undefined;
  if (oldAt !== 0) area.fill(0, oldAt, oldEnd);
  name.copy(area, nameAt);
  writeU64(area, link.file === undefined ? 0 : nameAt, NAME_OFFSET_AT);
  area.writeUInt32BE(name.length, NAME_BYTES_AT);
  return { area, nameAt, nameEnd: nameAt + name.length };
}

/** Sets, changes or fills the place of the format; false where there is none in the first sector. */
function changeFormat(
  area: Buffer,
  formatAt: number | undefined,
  fillerAt: number | undefined,
  format: string | undefined,
): boolean {
  const at = formatAt ?? (format === undefined ? undefined : fillerAt);
  if (at === undefined) return format === undefined;
  const name = Buffer.from(format ?? "", "utf8");
  const room = alignUp(area.readUInt32BE(at + 4), 8);
  if (at + 8 + room > SECTOR_BYTES || name.length > FORMAT_BYTES_MAX || room !== FORMAT_BYTES_MAX)
    return false;
  area.fill(0, at, at + 8 + room);
  area.writeUInt32BE(format === undefined ? FILLER_MAGIC : ExtensionMagic.BACKING_FORMAT, at);
  area.writeUInt32BE(format === undefined ? room : name.length, at + 4);
  name.copy(area, at + 8);
  return true;
}

interface FoundExtensions {
  readonly formatAt: number | undefined;
  readonly fillerAt: number | undefined;
  /** Whether there is a mark of use. */
  readonly marked: boolean;
  /** Behind END. */
  readonly end: number;
}

/** Walks the extensions of a header area that was parsed before. */
function findExtensions(area: Buffer): FoundExtensions {
  let at = area.readUInt32BE(4) === 2 ? 72 : area.readUInt32BE(100);
  const limit = readU64(area, NAME_OFFSET_AT) || area.length;
  let formatAt: number | undefined;
  let fillerAt: number | undefined;
  let marked = false;
  while (at + 8 <= limit) {
    const magic = area.readUInt32BE(at);
    const bytes = area.readUInt32BE(at + 4);
    if (magic === ExtensionMagic.END) return { formatAt, fillerAt, marked, end: at + 8 };
    if (magic === ExtensionMagic.BACKING_FORMAT) formatAt = at;
    if (magic === FILLER_MAGIC) fillerAt = at;
    if (magic === USE_MARKER_MAGIC) marked = true;
    at += 8 + alignUp(bytes, 8);
  }
  // No END: the extensions go up to the name, and a name put further back would be parsed through.
  return { formatAt, fillerAt, marked, end: Number.POSITIVE_INFINITY };
}

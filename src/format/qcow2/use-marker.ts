// A mark in the header that says: refcounts of this image may count clusters that nobody needs (leaks), since
// somebody allocated in it and did not close it. The next one to open it for writing repairs them; no other
// image needs a check.
//
//   header extension 0x53545241 "STRA", 8 bytes:  | state u8: 0 closed, 1 in use | 7 bytes zero |
//
//   1. To others it is an unknown extension, which the specification tells them to ignore and to keep.
//   2. It is changed in place. It is put in as the last extension: what stands behind END now is written
//      first, then its own type and length replace END, eight bytes in one sector. A backing file name that
//      stands in the way is copied further back before:
//        name at its new place -> flush -> backing_file_offset -> flush -> state, END -> flush -> "STRA", 8
//   3. Headers that we lay out leave its place free before the name, where they have the room.
//   4. Where it does not go (the header is full, or has no END: then the name is where the extensions end,
//      and cannot be moved), the image has none; its leaks wait for a check by hand. A link whose name fits
//      only without the mark is worth more than the mark.

import { readU64, writeU64 } from "../../base/bytes.ts";
import { alignUp } from "../../base/units.ts";
import type { BlockNode } from "../../block/node.ts";
import { fitsFirstCluster, type Qcow2Header, serializeHeader } from "./header.ts";
import { ExtensionMagic, type HeaderExtension } from "./header-extensions.ts";

export const USE_MARKER_MAGIC = 0x53545241;
export const MARKER_BYTES = 16;
const MARKER_DATA_BYTES = 8;
const STATE_CLOSED = 0;
const STATE_IN_USE = 1;

/** Whether the image was not closed by who allocated in it. */
export function isMarkedInUse(header: Qcow2Header): boolean {
  return markerOf(header)?.data[0] === STATE_IN_USE;
}

/** Marks the image as in use, durably: before refcounts that may count leaks are written. */
export async function markInUse(file: BlockNode, header: Qcow2Header): Promise<void> {
  await setState(file, header, STATE_IN_USE);
  await file.flush();
}

/** Marks the image as closed, if it was marked. */
export async function markClosed(file: BlockNode, header: Qcow2Header): Promise<void> {
  if (isMarkedInUse(header)) await setState(file, header, STATE_CLOSED);
}

/**
 * The header area. A mark stays if there is room for it; if there is none yet, its place is left free.
 * @throws BlockError as serializeHeader
 */
export function serializeWithMark(header: Qcow2Header): Buffer {
  const marker = markerOf(header);
  if (marker === undefined) return serializeHeader(header, MARKER_BYTES);
  if (fitsFirstCluster(header)) return serializeHeader(header);
  return serializeHeader({ ...header, extensions: header.extensions.filter((each) => each !== marker) });
}

function markerOf(header: Qcow2Header): HeaderExtension | undefined {
  return header.extensions.find(
    ({ magic, data }) => magic === USE_MARKER_MAGIC && data.length === MARKER_DATA_BYTES,
  );
}

async function setState(file: BlockNode, header: Qcow2Header, state: number): Promise<void> {
  const area = Buffer.alloc(2 ** header.clusterBits);
  await file.read(0, area.length, area, 0);
  const { markerAt, endAt } = findExtensions(area);
  if (markerAt === undefined) {
    if (state === STATE_IN_USE && endAt !== undefined) await insert(file, header, area, endAt);
    return;
  }
  const stateAt = markerAt + 8;
  area[stateAt] = state;
  await file.write(stateAt, 1, area, stateAt);
  const marker = markerOf(header);
  if (marker !== undefined) marker.data[0] = state;
}

/** Where the marker, and END, stand in the header area. */
function findExtensions(area: Buffer): { markerAt: number | undefined; endAt: number | undefined } {
  let at = area.readUInt32BE(4) === 2 ? 72 : area.readUInt32BE(100);
  const end = readU64(area, 8) || area.length;
  let markerAt: number | undefined;
  while (at + 8 <= end) {
    const magic = area.readUInt32BE(at);
    const bytes = area.readUInt32BE(at + 4);
    if (magic === ExtensionMagic.END) return { markerAt, endAt: at };
    if (magic === USE_MARKER_MAGIC && bytes === MARKER_DATA_BYTES) markerAt = at;
    at += 8 + alignUp(bytes, 8);
  }
  return { markerAt, endAt: undefined };
}

async function insert(file: BlockNode, header: Qcow2Header, area: Buffer, endAt: number): Promise<void> {
  const newEnd = endAt + MARKER_BYTES + 8;
  if (newEnd > area.length) return;
  const nameAt = readU64(area, 8);
  if (nameAt !== 0 && nameAt < newEnd && !(await moveName(file, area, nameAt, newEnd))) return;
  area.fill(0, endAt, newEnd);
  area.writeUInt32BE(USE_MARKER_MAGIC, endAt);
  area.writeUInt32BE(MARKER_DATA_BYTES, endAt + 4);
  area[endAt + 8] = STATE_IN_USE;
  await file.write(endAt + 8, newEnd - endAt - 8, area, endAt + 8);
  await file.flush();
  await file.write(endAt, 8, area, endAt);
  const data = Buffer.alloc(MARKER_DATA_BYTES);
  data[0] = STATE_IN_USE;
  header.extensions.push({ magic: USE_MARKER_MAGIC, data });
}

/** Makes room for the marker. False when the first cluster has no place for the name. */
async function moveName(file: BlockNode, area: Buffer, nameAt: number, newEnd: number): Promise<boolean> {
  const nameBytes = area.readUInt32BE(16);
  const to = alignUp(Math.max(newEnd, nameAt + nameBytes), 8);
  if (to + nameBytes > area.length) return false;
  area.copy(area, to, nameAt, nameAt + nameBytes);
  await file.write(to, nameBytes, area, to);
  await file.flush();
  writeU64(area, to, 8);
  await file.write(8, 8, area, 8);
  await file.flush();
  return true;
}

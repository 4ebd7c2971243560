// Reading what is held in memory as a whole: header, L1 table, refcount table.

import type { BlockNode } from "../../block/node.ts";
import { headerAreaBytes, parseHeader, type Qcow2Header } from "./header.ts";
import { WholeTable } from "./whole-table.ts";

/** What is read of a header before its cluster size is known. */
const HEADER_START_BYTES = 512;

/** @throws BlockError IMAGE_FORMAT, IMAGE_UNSUPPORTED, IMAGE_CORRUPT, or what the file says */
export async function readHeader(file: BlockNode): Promise<Qcow2Header> {
  const start = Buffer.alloc(HEADER_START_BYTES);
  await file.read(0, start.length, start, 0);
  const area = Buffer.alloc(headerAreaBytes(start));
  await file.read(0, area.length, area, 0);
  return parseHeader(area, file.size);
}

/** The table at `offset`; its length comes from a header that was checked. */
export async function readTable(file: BlockNode, offset: number, entries: number): Promise<WholeTable> {
  const bytes = Buffer.alloc(entries * 8);
  if (entries > 0) await file.read(offset, bytes.length, bytes, 0);
  return new WholeTable(offset, entries, bytes);
}

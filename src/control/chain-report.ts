// What each image of a chain holds of the disk, what of it the guest sees, and what hides below it.
//
//   offset   0        1        2        3        4
//   E        data     -        zero     -        -       data 1, seen 1, shadows: data of D at 0, of C at 2
//   D        data     data     -        -        -       data 2, seen 1 (its byte 0 is hidden by E)
//   C        -        -        data     data     -       data 2, seen 1
//
// A filter holds nothing: what it shows is told of its image.
//
// An image past whose end its overlay goes on reads as zeros there: it hides what lies deeper.

import type { Completion } from "../base/completion.ts";
import { MiB } from "../base/units.ts";
import { chainOf } from "../block/chain.ts";
import { type Extent, ExtentKind, ExtentList } from "../block/extent.ts";
import type { BlockNode } from "../block/node.ts";

/**
 * One image of a chain; bytes of the virtual disk, but for `actual-size`, which is bytes on the host or -1.
 */
export interface LayerReport {
  readonly "node-name": string;
  readonly filename: string;
  readonly driver: string;
  readonly "read-only": boolean;
  readonly "virtual-size": number;
  readonly "actual-size": number;
  /** Data that this image holds itself. */
  data: number;
  /** The part of `data` that the guest sees; the rest is hidden by images above. */
  seen: number;
  /** Data of images below that this one hides, by its own data or by zeros. */
  shadows: number;
  /** The disk in cells of equal size: data and seen bytes in each. */
  readonly cells: { data: number; seen: number }[];
}

/** Images top first. */
export interface ChainReport {
  readonly "virtual-size": number;
  readonly layers: LayerReport[];
}

/** Cells in which a report divides the disk: what a terminal has room for. */
export const REPORT_CELLS = 48;
/** Range that is asked for at a time, so that the list of its extents stays small. */
const WINDOW_BYTES_MAX = 1024 * MiB;

/**
 * Asks every image of the chain below `top`. Requests of the guest go on; what changes meanwhile is told
 * either way.
 */
export async function reportChain(top: BlockNode): Promise<ChainReport> {
  const nodes = chainOf(top);
  const layers = nodes.map(emptyReport);
  const cellBytes = Math.max(1, Math.ceil(top.size / REPORT_CELLS));
  for (let offset = 0; offset < top.size; ) {
    const cell = Math.floor(offset / cellBytes);
    const end = Math.min(top.size, (cell + 1) * cellBytes, offset + WINDOW_BYTES_MAX);
    const lists: (readonly Extent[])[] = [];
    for (const node of nodes) lists.push(await listExtents(node, offset, end - offset));
    tally(lists, layers, cell);
    offset = end;
  }
  return { "virtual-size": top.size, layers };
}

function emptyReport(node: BlockNode): LayerReport {
  return {
    "node-name": node.name,
    filename: node.filename,
    driver: node.driverName,
    "read-only": node.readOnly,
    "virtual-size": node.size,
    "actual-size": node.filtered === undefined ? node.driver.allocatedBytes() : 0,
    data: 0,
    seen: 0,
    shadows: 0,
    cells: Array.from({ length: REPORT_CELLS }, () => ({ data: 0, seen: 0 })),
  };
}

/** What one image holds of a range, without gaps; past its end it is zeros. */
async function listExtents(node: BlockNode, offset: number, bytes: number): Promise<readonly Extent[]> {
  const list = new ExtentList(offset);
  if (node.filtered !== undefined) list.push(bytes, ExtentKind.UNALLOCATED, -1, false);
  const inside = Math.max(0, Math.min(bytes, node.size - offset));
  while (list.end < offset + inside) {
    const listed: Completion = node.extents(list.end, offset + inside - list.end, list);
    if (listed !== undefined) await listed;
  }
  list.push(offset + bytes - list.end, ExtentKind.ZERO, -1, false);
  return list.extents;
}

/** Adds one range, described for every image (top first) by extents without gaps, to the reports. */
export function tally(
  lists: readonly (readonly Extent[])[],
  layers: readonly LayerReport[],
  cell: number,
): void {
  const at = lists.map(() => 0);
  let offset = lists[0]?.[0]?.offset ?? 0;
  for (;;) {
    const piece = lists.map((list, layer) => list[at[layer]!]);
    if (piece.some((extent) => extent === undefined)) return;
    // Up to the next border of any image: inside of it every image is of one kind.
    const end = Math.min(...piece.map((extent) => extent!.offset + extent!.bytes));
    countPiece(
      piece.map((extent) => extent!.kind),
      end - offset,
      layers,
      cell,
    );
    for (const [layer, extent] of piece.entries()) {
      if (extent!.offset + extent!.bytes === end) at[layer]!++;
    }
    offset = end;
  }
}

function countPiece(
  kinds: readonly ExtentKind[],
  bytes: number,
  layers: readonly LayerReport[],
  cell: number,
): void {
  const decides = kinds.findIndex((kind) => kind !== ExtentKind.UNALLOCATED);
  /** What shows through from the images below the one that is looked at. */
  let below: ExtentKind = ExtentKind.UNALLOCATED;
  for (let layer = kinds.length - 1; layer >= 0; layer--) {
    const kind = kinds[layer]!;
    if (kind === ExtentKind.UNALLOCATED) continue;
    const report = layers[layer]!;
    if (below === ExtentKind.DATA) report.shadows += bytes;
    below = kind;
    if (kind !== ExtentKind.DATA) continue;
    report.data += bytes;
    report.cells[cell]!.data += bytes;
    if (layer !== decides) continue;
    report.seen += bytes;
    report.cells[cell]!.seen += bytes;
  }
}

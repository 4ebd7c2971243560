// Where every byte of a disk comes from, as `qemu-img map` tells it.

import type { Completion } from "../base/completion.ts";
import { chainOf, composedExtents } from "../block/chain.ts";
import { type Extent, ExtentKind, ExtentList, NO_HOST_OFFSET } from "../block/extent.ts";
import type { BlockNode } from "../block/node.ts";

/** MapEntry of QAPI; bytes. `depth`: images above the one that decides. */
export interface MapEntry {
  readonly start: number;
  readonly length: number;
  readonly depth: number;
  readonly present: boolean;
  readonly zero: boolean;
  readonly data: boolean;
  readonly compressed: boolean;
  readonly offset?: number;
}

/** The whole disk in order, without gaps, neighbours merged where one continues the other. */
export async function imageMap(top: BlockNode): Promise<MapEntry[]> {
  const nodes = chainOf(top);
  const list = new ExtentList(0);
  while (list.end < top.size) {
    const from = list.end;
    const done: Completion = composedExtents(top, undefined, from, top.size - from, {
      push(bytes, kind, hostOffset, compressed, depth) {
        // What nobody holds ends below the bottom image, and is told as the bottom image's.
        const image = Math.min(depth, nodes.length - 1);
        // Past the end of a short backing image it is its overlay that reads as zeros, and nobody holds them.
        return list.end >= nodes[image]!.size
          ? list.push(bytes, ExtentKind.UNALLOCATED, NO_HOST_OFFSET, false, image - 1)
          : list.push(bytes, kind, hostOffset, compressed, image);
      },
    });
    if (done !== undefined) await done;
  }
  return list.extents.map(mapEntry);
}

export function mapEntry(extent: Extent): MapEntry {
  const data = extent.kind === ExtentKind.DATA;
  return {
    start: extent.offset,
    length: extent.bytes,
    depth: extent.depth,
    present: extent.kind !== ExtentKind.UNALLOCATED,
    zero: !data,
    data,
    compressed: extent.compressed,
    ...(extent.hostOffset !== NO_HOST_OFFSET && { offset: extent.hostOffset }),
  };
}

/** The entries as JSON, one to a line, laid out as qemu-img does. */
export function mapJson(entries: readonly MapEntry[]): string {
  const lines = entries.map((entry) => {
    const members = Object.entries(entry).map(([name, value]) => `"${name}": ${value}`);
    return `{ ${members.join(", ")}}`;
  });
  return `[${lines.join(",\n")}]\n`;
}

/** The data of the disk as a table; `files` are the names of the images, top first. */
export function mapText(entries: readonly MapEntry[], files: readonly string[]): string {
  const hex = (value: number) => (value === 0 ? "0" : `0x${value.toString(16)}`).padEnd(16);
  const rows = entries
    .filter((entry) => entry.data)
    .map((entry) => {
      const place = entry.offset === undefined ? "compressed".padEnd(16) : hex(entry.offset);
      return `${hex(entry.start)}${hex(entry.length)}${place}${files[entry.depth]}\n`;
    });
  const head = ["Offset", "Length", "Mapped to"].map((heading) => heading.padEnd(16)).join("");
  return `${head}File\n${rows.join("")}`;
}

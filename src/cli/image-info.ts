// What an image says of itself, in the members of QAPI's ImageInfo and in the lines of `qemu-img info`.

import { alignUp, formatSize } from "../base/units.ts";
import { chainOf } from "../block/chain.ts";
import { resolveBackingFile } from "../block/link-options.ts";
import type { BlockNode } from "../block/node.ts";

/** QEMU tells lengths in whole sectors, also that of a host file. */
const SECTOR = 512;

/** ImageInfo of QAPI; sizes in bytes. */
export interface ImageInfo {
  readonly children: readonly { readonly name: string; readonly info: ImageInfo }[];
  readonly "backing-filename-format"?: string;
  readonly "virtual-size": number;
  readonly filename: string;
  readonly "cluster-size"?: number;
  readonly format: string;
  readonly "actual-size"?: number;
  readonly "format-specific"?: { readonly type: string; readonly data: Record<string, unknown> };
  readonly "full-backing-filename"?: string;
  readonly "backing-filename"?: string;
  readonly "dirty-flag": boolean;
  readonly snapshots?: readonly Record<string, unknown>[];
}

/** The image of a node with the file below it, but not the images behind it. */
export function imageInfo(node: BlockNode): ImageInfo {
  const details = node.details();
  const actualSize = node.driver.allocatedBytes();
  const backing = details.backingFile;
  const full = backing === undefined ? undefined : fullBackingName(node.filename, backing);
  return {
    children: node.file === undefined ? [] : [{ name: "file", info: imageInfo(node.file) }],
    ...(details.backingFormat !== undefined && { "backing-filename-format": details.backingFormat }),
    "virtual-size": alignUp(node.size, SECTOR),
    filename: node.filename,
    ...(details.clusterSize !== undefined && { "cluster-size": details.clusterSize }),
    format: node.driverName,
    ...(actualSize >= 0 && { "actual-size": actualSize }),
    ...(details.formatSpecific !== undefined && { "format-specific": details.formatSpecific }),
    ...(full !== undefined && { "full-backing-filename": full }),
    ...(backing !== undefined && { "backing-filename": backing }),
    "dirty-flag": false,
    ...(details.snapshots !== undefined && details.snapshots.length > 0 && { snapshots: details.snapshots }),
  };
}

/** The image and all images behind it, top first. */
export function chainInfo(top: BlockNode): ImageInfo[] {
  return chainOf(top).map(imageInfo);
}

/** The path that a backing link means; a link by options or by another protocol means itself. */
function fullBackingName(filename: string, link: string): string {
  try {
    return link.startsWith("json:") ? link : resolveBackingFile(filename, link);
  } catch {
    return link;
  }
}

/** The lines that `qemu-img info` prints for an image. */
export function infoText(info: ImageInfo): string {
  const size = `${formatSize(info["virtual-size"])} (${info["virtual-size"]} bytes)`;
  const lines = [`image: ${info.filename}`, `file format: ${info.format}`, `virtual size: ${size}`];
  lines.push(`disk size: ${diskSize(info)}`);
  if (info["cluster-size"] !== undefined) lines.push(`cluster_size: ${info["cluster-size"]}`);
  lines.push(...backingLines(info), ...snapshotLines(info));
  const specific = Object.entries(info["format-specific"]?.data ?? {});
  if (specific.length > 0) {
    lines.push("Format specific information:");
    for (const [name, value] of specific) lines.push(`    ${name.replaceAll("-", " ")}: ${String(value)}`);
  }
  for (const { name, info: child } of info.children) {
    lines.push(
      `Child node '/${name}':`,
      `    filename: ${child.filename}`,
      `    protocol type: ${child.format}`,
      `    file length: ${formatSize(child["virtual-size"])} (${child["virtual-size"]} bytes)`,
      `    disk size: ${diskSize(child)}`,
    );
  }
  return lines.map((line) => line + "\n").join("");
}

function diskSize(info: ImageInfo): string {
  return info["actual-size"] === undefined ? "unavailable" : formatSize(info["actual-size"]);
}

function backingLines(info: ImageInfo): string[] {
  const name = info["backing-filename"];
  if (name === undefined) return [];
  const full = info["full-backing-filename"];
  const actual = full === undefined || full === name ? "" : ` (actual path: ${full})`;
  const format = info["backing-filename-format"];
  return [
    `backing file: ${name}${actual}`,
    ...(format === undefined ? [] : [`backing file format: ${format}`]),
  ];
}

function snapshotLines(info: ImageInfo): string[] {
  if (info.snapshots === undefined) return [];
  const lines = info.snapshots.map((snapshot) => {
    const size = formatSize(Number(snapshot["vm-state-size"] ?? 0));
    const date = new Date(Number(snapshot["date-sec"] ?? 0) * 1000)
      .toISOString()
      .slice(0, 19)
      .replace("T", " ");
    return `${String(snapshot["id"]).padEnd(8)}${String(snapshot["name"]).padEnd(20)}${size.padStart(10)}  ${date}`;
  });
  return [
    "Snapshot list:",
    `${"ID".padEnd(8)}${"TAG".padEnd(20)}${"VM_SIZE".padStart(10)}  DATE (UTC)`,
    ...lines,
  ];
}

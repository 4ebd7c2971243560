// A chain as a person draws it. Pure: report in, text out.
//
//   [A] <- [B] <- [E]   virtio0, 128 MiB
//
//   image  file      format  disk size    data     seen  shadows  0 ......... 128 MiB
//   [E]    e.qcow2   qcow2     8.2 MiB   8 MiB    8 MiB    5 MiB  |##..#....---....|

import { formatSize } from "../base/units.ts";
import { type ChainReport, type LayerReport, REPORT_CELLS } from "../control/chain-report.ts";
import { plainProgress } from "./progress-line.ts";
import { type Column, textTable } from "./text-table.ts";

/** A job as it is told below the chain. */
export interface JobLine {
  readonly id: string;
  readonly type: string;
  readonly status: string;
  readonly done: number;
  readonly total: number;
  /** Bytes per second that it may not exceed; 0: no limit. */
  readonly speed: number;
  readonly node: string | undefined;
}

export interface ChainPicture {
  /** Name under which the top is served; undefined for a chain that nobody serves. */
  readonly device: string | undefined;
  readonly report: ChainReport;
  readonly jobs: readonly JobLine[];
}

/** `[A] <- [B] <- [C]`, base first. */
export function chainLine(names: readonly string[]): string {
  return names.map((name) => `[${name}]`).join(" <- ");
}

/** The whole picture, ending with a line feed; the strip of cells gets as wide as `columns` allow. */
export function drawChain({ device, report, jobs }: ChainPicture, columns: number): string {
  const baseFirst = [...report.layers].reverse();
  const title = [device, formatSize(report["virtual-size"])].filter((part) => part !== undefined).join(", ");
  const head = `${chainLine(baseFirst.map((layer) => layer["node-name"]))}   ${title}\n\n`;
  for (const cells of STRIP_CELLS) {
    const table = layerTable(report, cells);
    const legend = cells === 0 ? "" : LEGEND;
    const fits = table.split("\n").every((line) => line.length < columns);
    if (fits || cells === 0) return head + table + legend + jobLines(jobs);
  }
  return head;
}

/** Widths of the strip, the widest first; none at all where even the narrowest has no room. */
const STRIP_CELLS = [REPORT_CELLS, REPORT_CELLS / 2, REPORT_CELLS / 4, 0];

const LEGEND = "\n# seen by the guest   - hidden by an image above   . not in this image\n";

function layerTable(report: ChainReport, cells: number): string {
  const right = (heading: string): Column => ({ heading, align: "right" });
  const left = (heading: string): Column => ({ heading, align: "left" });
  const figures = [right("on host"), right("data"), right("seen"), right("shadows")];
  const strip = cells === 0 ? [] : [left(scale(report["virtual-size"], cells))];
  return textTable(
    [left("image"), left("file"), left("format"), ...figures, ...strip],
    report.layers.map((layer) => [
      `[${layer["node-name"]}]`,
      layer.filename,
      layer["virtual-size"] === report["virtual-size"]
        ? layer.driver
        : `${layer.driver} (${formatSize(layer["virtual-size"])})`,
      layer["actual-size"] < 0 ? "?" : formatSize(layer["actual-size"]),
      formatSize(layer.data),
      formatSize(layer.seen),
      formatSize(layer.shadows),
      ...(cells === 0 ? [] : [`|${marks(layer, cells)}|`]),
    ]),
  );
}

/** What stands above the strip: where the disk begins and ends. */
function scale(virtualSize: number, cells: number): string {
  const size = formatSize(virtualSize);
  return ` 0 ${".".repeat(Math.max(1, cells - size.length - 3))} ${size}`;
}

function marks(layer: LayerReport, cells: number): string {
  const each = layer.cells.length / cells;
  return Array.from({ length: cells }, (_, at) => {
    const merged = { data: 0, seen: 0 };
    for (const cell of layer.cells.slice(Math.floor(at * each), Math.max(1, Math.floor((at + 1) * each)))) {
      merged.data += cell.data;
      merged.seen += cell.seen;
    }
    return cellMark(merged);
  }).join("");
}

function cellMark(cell: { data: number; seen: number }): string {
  if (cell.seen > 0) return "#";
  return cell.data > 0 ? "-" : ".";
}

function jobLines(jobs: readonly JobLine[]): string {
  if (jobs.length === 0) return "";
  return "\n" + jobs.map((job) => `job ${jobLine(job)}\n`).join("");
}

/** A job in one line: `stream-D (stream into [D])  running  45%  12 MiB of 26 MiB  limit 8 MiB/s`. */
export function jobLine(job: JobLine): string {
  const label =
    job.node === undefined ? `${job.id} (${job.type})` : `${job.id} (${job.type} into [${job.node}])`;
  const limit = job.speed > 0 ? `  limit ${formatSize(job.speed)}/s` : "";
  return plainProgress({ ...job, label, bytesPerSecond: 0, state: job.status }) + limit;
}

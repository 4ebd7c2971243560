// A chain as a person draws it. Pure: report in, text out.
//
//   [A] <- [B] <- [E]   virtio0, 128 MiB
//
//   image  file      format  disk size    data     seen  shadows  0 ......... 128 MiB
//   [E]    e.qcow2   qcow2     8.2 MiB   8 MiB    8 MiB    5 MiB  |##..#....---....|

import { formatSize } from "../base/units.ts";
import type { ChainReport, LayerReport } from "../control/chain-report.ts";
import { plainProgress } from "./progress-line.ts";
import { textTable } from "./text-table.ts";

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

/** The whole picture, ending with a line feed; `nameOf` says how an image is called in it. */
export function drawChain(
  { device, report, jobs }: ChainPicture,
  nameOf: (layer: LayerReport) => string,
): string {
  const baseFirst = [...report.layers].reverse();
  const title = [device, formatSize(report["virtual-size"])].filter((part) => part !== undefined).join(", ");
  const head = `${chainLine(baseFirst.map(nameOf))}   ${title}\n\n`;
  return head + layerTable(report, nameOf) + LEGEND + jobLines(jobs);
}

const LEGEND = "\n# seen by the guest   - hidden by an image above   . not in this image\n";

function layerTable(report: ChainReport, nameOf: (layer: LayerReport) => string): string {
  const size = formatSize(report["virtual-size"]);
  const cells = report.layers[0]?.cells.length ?? 0;
  const columns = [
    { heading: "image", align: "left" },
    { heading: "file", align: "left" },
    { heading: "format", align: "left" },
    { heading: "on host", align: "right" },
    { heading: "data", align: "right" },
    { heading: "seen", align: "right" },
    { heading: "shadows", align: "right" },
    { heading: ` 0 ${".".repeat(Math.max(1, cells - size.length - 4))} ${size}`, align: "left" },
  ] as const;
  const rows = report.layers.map((layer) => [
    `[${nameOf(layer)}]`,
    layer.filename,
    layer["virtual-size"] === report["virtual-size"]
      ? layer.driver
      : `${layer.driver} (${formatSize(layer["virtual-size"])})`,
    layer["actual-size"] < 0 ? "?" : formatSize(layer["actual-size"]),
    formatSize(layer.data),
    formatSize(layer.seen),
    formatSize(layer.shadows),
    `|${layer.cells.map(cellMark).join("")}|`,
  ]);
  return textTable(columns, rows);
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

// The ratios as a picture: for each work three bars from 1.0 to the ratio, on a logarithmic scale, so that
// twice as much and half as much are equally long.
//
//                         1/4    1/2     1      2      4
//   read 4 KiB random             .      |=========== 2.58     throughput: right is better
//                         ===============|                     p99 latency: left is better
//                        ================|                     CPU per request: left is better

import type { Row } from "./summary.ts";
import { escapeXml, roundPixels } from "./svg.ts";

const METRICS = [
  { metric: "throughput", label: "throughput (right is better)" },
  { metric: "p99", label: "p99 latency (left is better)" },
  { metric: "cpu", label: "server CPU per request (left is better)" },
] as const;

// Pixels.
const WIDTH = 960;
const NAMES = 290;
const SCALE_LEFT = NAMES + 50;
const SCALE_RIGHT = WIDTH - 60;
const TOP = 76;
const BAR = 9;
const ROW = METRICS.length * (BAR + 2) + 12;

/** Colours that can be told apart by most eyes, on white and on black. */
const STYLE = `
  svg { background: #ffffff; color: #1f2328; font: 12px system-ui, sans-serif; }
  text { fill: currentColor; }
  .title { font-size: 15px; font-weight: 600; }
  .grid { stroke: currentColor; stroke-opacity: 0.15; }
  .one { stroke: currentColor; stroke-opacity: 0.8; }
  .value { font-size: 9px; }
  .throughput { fill: #0072b2; }
  .p99 { fill: #d55e00; }
  .cpu { fill: #009e73; }
  .noisy { opacity: 0.4; }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117; color: #e6edf3; }
    .throughput { fill: #56b4e9; }
    .p99 { fill: #f0883e; }
    .cpu { fill: #2fc39a; }
  }
`;

/** An SVG document of its own, dark where the reader's scheme is. */
export function chart(rows: readonly Row[], title: string): string {
  const reach = scaleReach(rows);
  const bottom = TOP + rows.length * ROW;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${bottom + 30}" role="img">`,
    `<title>${escapeXml(title)}</title>`,
    `<style>${STYLE}</style>`,
    `<text class="title" x="12" y="24">${escapeXml(title)}</text>`,
    ...legend(),
    ...grid(reach, bottom),
    ...rows.flatMap((row, index) => rowMarks(row, TOP + index * ROW, reach)),
    "</svg>",
    "",
  ].join("\n");
}

/** Powers of two to each side of 1: enough for every ratio, at least one. */
export function scaleReach(rows: readonly Row[]): number {
  const exponents = rows.flatMap(({ ratios }) =>
    METRICS.map(({ metric }) => Math.abs(Math.log2(ratios[metric]))),
  );
  return Math.max(1, ...exponents.filter(Number.isFinite).map((exponent) => Math.ceil(exponent)));
}

/** Where a ratio stands, in pixels from the left. */
export function position(ratio: number, reach: number): number {
  const part = (Math.log2(ratio) + reach) / (2 * reach);
  return roundPixels(SCALE_LEFT + part * (SCALE_RIGHT - SCALE_LEFT));
}

function legend(): string[] {
  return METRICS.flatMap(({ metric, label }, index) => {
    const x = 12 + index * 240;
    return [
      `<rect class="${metric}" x="${x}" y="37" width="12" height="${BAR}"/>`,
      `<text x="${x + 18}" y="46">${label}</text>`,
    ];
  });
}

function grid(reach: number, bottom: number): string[] {
  const lines: string[] = [];
  for (let exponent = -reach; exponent <= reach; exponent++) {
    const x = position(2 ** exponent, reach);
    const label = exponent < 0 ? `1/${2 ** -exponent}` : String(2 ** exponent);
    lines.push(
      `<line class="${exponent === 0 ? "one" : "grid"}" x1="${x}" y1="${TOP - 6}" x2="${x}" y2="${bottom}"/>`,
      `<text x="${x}" y="${bottom + 16}" text-anchor="middle">${label}</text>`,
    );
  }
  return lines;
}

function rowMarks(row: Row, top: number, reach: number): string[] {
  const name = row.isNoisy ? `${row.work} (noisy)` : row.work;
  const middle = top + (METRICS.length * (BAR + 2)) / 2 + 4;
  return [
    `<g class="${row.isNoisy ? "row noisy" : "row"}">`,
    `<text x="${NAMES}" y="${middle}" text-anchor="end">${escapeXml(name)}</text>`,
    ...METRICS.flatMap(({ metric }, index) =>
      bar(metric, row.ratios[metric], { top: top + index * (BAR + 2), reach }),
    ),
    "</g>",
  ];
}

/** Nothing for a ratio that is not known, as the latency of an idle job. */
function bar(metric: string, ratio: number, { top, reach }: { top: number; reach: number }): string[] {
  if (!(ratio > 0 && Number.isFinite(ratio))) return [];
  const [from, to] = [position(1, reach), position(ratio, reach)];
  const x = Math.min(from, to);
  const width = roundPixels(Math.abs(to - from));
  const anchor = ratio < 1 ? "end" : "start";
  const valueX = roundPixels(ratio < 1 ? to - 4 : to + 4);
  return [
    `<rect class="${metric}" x="${x}" y="${top}" width="${width}" height="${BAR}"/>`,
    `<text class="value" x="${valueX}" y="${top + BAR - 1}" text-anchor="${anchor}">${ratio.toFixed(2)}</text>`,
  ];
}

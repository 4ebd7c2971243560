// A run as a picture: one panel per quantity over the same time, restarts as lines in each of them.
//
//   memory of the daemon, MiB      300 |    .--.  :  .---.  :  .---
//                                    0 |___/_____:_/_______:_/____
//   descriptors ...                      0         20        40 min

import { MiB } from "../../src/base/units.ts";
import { escapeXml, roundPixels } from "../benchmark/svg.ts";
import type { Mark, Sample } from "./samples.ts";

interface Line {
  readonly label: string;
  readonly of: (sample: Sample) => number;
}

interface Panel {
  readonly title: string;
  readonly lines: readonly Line[];
  /** Each step is ten times the one below: for what now and then is much larger. */
  readonly logarithmic?: boolean;
}

const PANELS: readonly Panel[] = [
  {
    title: "memory of the daemon, MiB",
    lines: [{ label: "resident", of: ({ memoryBytes }) => memoryBytes / MiB }],
  },
  {
    title: "open descriptors, threads, images in the chain",
    lines: [
      { label: "descriptors", of: ({ descriptors }) => descriptors },
      { label: "threads", of: ({ threads }) => threads },
      { label: "images", of: ({ layers }) => layers },
    ],
  },
  {
    title: "allocated on the host, MiB",
    lines: [
      { label: "chain", of: ({ chainAllocatedBytes }) => chainAllocatedBytes / MiB },
      { label: "plain image", of: ({ plainAllocatedBytes }) => plainAllocatedBytes / MiB },
      { label: "its length", of: ({ plainLengthBytes }) => plainLengthBytes / MiB },
    ],
  },
  {
    title: "latency of the chain's guest, ms",
    logarithmic: true,
    lines: [
      { label: "p50", of: ({ p50Ms }) => p50Ms },
      { label: "p99", of: ({ p99Ms }) => p99Ms },
      { label: "longest", of: ({ maxMs }) => maxMs },
    ],
  },
  {
    title: "requests per second",
    lines: [{ label: "both guests", of: ({ requestsPerSecond }) => requestsPerSecond }],
  },
];

// Pixels.
const WIDTH = 960;
const LEFT = 60;
const RIGHT = WIDTH - 24;
const TOP = 80;
const PANEL = 110;
const GAP = 44;

/** Colours that can be told apart by most eyes, on white and on black. */
const STYLE = `
  svg { background: #ffffff; color: #1f2328; font: 12px system-ui, sans-serif; }
  text { fill: currentColor; }
  .title { font-size: 15px; font-weight: 600; }
  .scale { font-size: 10px; }
  .grid { stroke: currentColor; stroke-opacity: 0.15; }
  .line { fill: none; stroke-width: 1.3; stroke-linejoin: round; }
  .line0 { stroke: #0072b2; }
  .line1 { stroke: #d55e00; }
  .line2 { stroke: #009e73; }
  .mark { stroke: currentColor; stroke-opacity: 0.55; stroke-dasharray: 4 3; }
  .kill { stroke: #b3261e; stroke-opacity: 0.9; stroke-dasharray: 1 2; }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117; color: #e6edf3; }
    .line0 { stroke: #56b4e9; }
    .line1 { stroke: #f0883e; }
    .line2 { stroke: #2fc39a; }
    .kill { stroke: #ff7b72; }
  }
`;

/** An SVG document of its own, dark where the reader's scheme is. */
export function picture(run: {
  title: string;
  seconds: number;
  samples: readonly Sample[];
  marks: readonly Mark[];
}): string {
  const height = TOP + PANELS.length * (PANEL + GAP) + 16;
  const x = (seconds: number) => roundPixels(LEFT + (seconds / run.seconds) * (RIGHT - LEFT));
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" role="img">`,
    `<title>${escapeXml(run.title)}</title>`,
    `<style>${STYLE}</style>`,
    `<text class="title" x="12" y="22">${escapeXml(run.title)}</text>`,
    ...PANELS.flatMap((panel, index) => panelMarks(panel, TOP + index * (PANEL + GAP), run.samples, x)),
    ...restarts(run.marks, x),
    ...timeScale(run.seconds, x, height),
    "</svg>",
    "",
  ].join("\n");
}

function panelMarks(
  panel: Panel,
  top: number,
  samples: readonly Sample[],
  x: (seconds: number) => number,
): string[] {
  const values = panel.lines.flatMap(({ of }) => samples.map(of)).filter(Number.isFinite);
  const steps = panel.logarithmic ? decades(values) : roundSteps(values);
  const y = scale(steps, panel.logarithmic ?? false, top);
  return [
    `<text x="12" y="${top - 8}">${escapeXml(panel.title)}</text>`,
    ...legend(panel.lines, top - 8),
    ...steps.flatMap((step) => [
      `<line class="grid" x1="${LEFT}" y1="${y(step)}" x2="${RIGHT}" y2="${y(step)}"/>`,
      `<text class="scale" x="${LEFT - 6}" y="${y(step) + 3.5}" text-anchor="end">${step}</text>`,
    ]),
    ...panel.lines.flatMap(({ of }, index) =>
      lives(samples).map((life) => {
        const known = life.filter((sample) => Number.isFinite(of(sample)));
        const places = known.map((sample) => `${x(sample.seconds)},${y(of(sample))}`);
        return `<polyline class="line line${index}" points="${places.join(" ")}"/>`;
      }),
    ),
  ];
}

/** Each life of the daemon is a line of its own. */
function lives(samples: readonly Sample[]): Sample[][] {
  return [...new Set(samples.map(({ life }) => life))].map((life) =>
    samples.filter((sample) => sample.life === life),
  );
}

function legend(lines: readonly Line[], y: number): string[] {
  return lines.flatMap(({ label }, index) => {
    const left = RIGHT - (lines.length - index) * 110;
    return [
      `<line class="line line${index}" x1="${left}" y1="${y - 4}" x2="${left + 18}" y2="${y - 4}"/>`,
      `<text x="${left + 24}" y="${y}">${escapeXml(label)}</text>`,
    ];
  });
}

function restarts(marks: readonly Mark[], x: (seconds: number) => number): string[] {
  const key = [
    `<line class="mark" x1="12" y1="38" x2="36" y2="38"/><text x="42" y="42">restart (SIGTERM, quit)</text>`,
    `<line class="mark kill" x1="202" y1="38" x2="226" y2="38"/><text x="232" y="42">kill -9</text>`,
  ];
  const lines = PANELS.flatMap((_panel, index) => {
    const top = TOP + index * (PANEL + GAP);
    return marks.map(({ seconds, what }) => {
      const kind = what === "kill" ? "mark kill" : "mark";
      return `<line class="${kind}" x1="${x(seconds)}" y1="${top}" x2="${x(seconds)}" y2="${top + PANEL}"/>`;
    });
  });
  return [...key, ...lines];
}

function timeScale(seconds: number, x: (seconds: number) => number, height: number): string[] {
  const inMinutes = seconds >= 180;
  const unit = inMinutes ? 60 : 1;
  const steps = roundSteps([seconds / unit], 10).filter((step) => step * unit <= seconds);
  return steps.map((step, index) => {
    const word = index === steps.length - 1 ? ` ${inMinutes ? "min" : "s"}` : "";
    return `<text class="scale" x="${x(step * unit)}" y="${height - 28}" text-anchor="middle">${step}${word}</text>`;
  });
}

/** Round numbers from 0 to the largest value or a little more. */
export function roundSteps(values: readonly number[], countMax = 4): number[] {
  const largest = Math.max(1, ...values);
  const magnitude = 10 ** Math.floor(Math.log10(largest / countMax));
  const step = [1, 2, 5, 10].map((factor) => factor * magnitude).find((each) => each * countMax >= largest)!;
  return Array.from({ length: Math.ceil(largest / step) + 1 }, (_, index) =>
    Number((index * step).toPrecision(6)),
  );
}

/** Powers of ten around all values above zero. */
export function decades(values: readonly number[]): number[] {
  const exponents = values.filter((value) => value > 0).map((value) => Math.log10(value));
  if (exponents.length === 0) return [1, 10];
  const lowest = Math.floor(Math.min(...exponents));
  const highest = Math.max(lowest + 1, Math.ceil(Math.max(...exponents)));
  return Array.from({ length: highest - lowest + 1 }, (_, index) =>
    Number((10 ** (lowest + index)).toPrecision(3)),
  );
}

/** Where a value of a panel stands, in pixels from above. */
function scale(steps: readonly number[], logarithmic: boolean, top: number): (value: number) => number {
  const [low, high] = [steps[0]!, steps.at(-1)!];
  const part = logarithmic
    ? (value: number) => Math.log10(Math.max(value, low) / low) / Math.log10(high / low)
    : (value: number) => (value - low) / (high - low);
  return (value) => roundPixels(top + PANEL * (1 - part(value)));
}

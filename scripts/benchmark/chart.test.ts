import { describe, expect, it } from "vitest";
import { chart, position, scaleReach } from "./chart.ts";
import { type Row, summarise } from "./summary.ts";

function row(work: string, throughput: number, p99: number, cpu: number): Row {
  const one = { throughput: 1, p50: 1, p99: 1, p999: 1, cpu: 1, peakMemoryBytes: 1 };
  return summarise(work, [{ ...one, throughput, p99, cpu }], [one]);
}

interface Mark {
  readonly name: string;
  readonly attributes: Readonly<Record<string, string>>;
}

/** The elements of a document that must be well-formed: every one closed, in order. */
function elements(svg: string): Mark[] {
  const found: Mark[] = [];
  const open: string[] = [];
  for (const [, closing, name, rest] of svg.matchAll(/<(\/?)([a-z]+)((?:\s[\w:-]+="[^"<]*")*)\s*\/?>/gi)) {
    if (closing === "/") expect(open.pop()).toBe(name);
    else found.push({ name: name!, attributes: attributesOf(rest!) });
    const isEmpty = new RegExp(`^<${name}[^>]*/>`).test(svg.slice(svg.indexOf(`<${name}${rest}`)));
    if (closing !== "/" && !isEmpty) open.push(name!);
  }
  expect(open).toEqual([]);
  return found;
}

function attributesOf(text: string): Record<string, string> {
  return Object.fromEntries(
    [...text.matchAll(/([\w:-]+)="([^"]*)"/g)].map((match) => [match[1]!, match[2]!]),
  );
}

/** The bars of the rows: those of the legend have no height that tells. */
function bars(svg: string) {
  return elements(svg.slice(svg.indexOf('<g class="row')).replace("</svg>", ""))
    .filter(({ name }) => name === "rect")
    .map(({ attributes }) => ({
      metric: attributes["class"],
      from: Number(attributes["x"]),
      to: Number(attributes["x"]) + Number(attributes["width"]),
    }));
}

describe("the scale", () => {
  it("has 1 in its middle, and equal lengths for twice and for half", () => {
    const one = position(1, 3);
    expect(position(2, 3) - one).toBeCloseTo(one - position(0.5, 3), 0);
    expect(position(8, 3) - one).toBeCloseTo(one - position(1 / 8, 3), 0);
  });

  it("reaches the furthest ratio, and a factor of two at least", () => {
    expect(scaleReach([row("w", 1.1, 0.95, 1)])).toBe(1);
    expect(scaleReach([row("w", 2.6, 0.95, 0.1)])).toBe(4);
    expect(scaleReach([row("w", 2, Number.NaN, 0)])).toBe(1);
  });
});

describe("the chart", () => {
  it("is a well-formed document that names its subject", () => {
    const svg = chart([row("read", 2, 0.5, 0.25)], "Strata / qsd on <tmpfs> & more");
    expect(elements(svg)[0]).toMatchObject({ name: "svg" });
    expect(svg).toContain("<title>Strata / qsd on &lt;tmpfs&gt; &amp; more</title>");
  });

  it("draws each ratio from 1 to its place", () => {
    const svg = chart([row("read", 2, 0.5, 0.25)], "t");
    const one = position(1, 2);
    const [throughput, p99, cpu] = bars(svg);
    expect(throughput).toMatchObject({ metric: "throughput", from: one });
    expect(throughput?.to).toBeCloseTo(position(2, 2), 0);
    expect(p99?.from).toBeCloseTo(position(0.5, 2), 0);
    expect(p99?.to).toBeCloseTo(one, 0);
    expect(cpu?.from).toBeCloseTo(position(0.25, 2), 0);
  });

  it("labels every ratio with its value, and every work with its name", () => {
    const svg = chart([row("read", 2.58, 0.39, 0.26), row("write", 1.95, 0.6, 0.46)], "t");
    for (const text of ["2.58", "0.39", "0.26", "1.95", "0.60", "0.46", "read", "write"]) {
      expect(svg).toContain(`>${text}</text>`);
    }
  });

  it("leaves out a ratio that is not known", () => {
    const svg = chart([row("stream, idle", 2, Number.NaN, 0.5)], "t");
    expect(bars(svg).map(({ metric }) => metric)).toEqual(["throughput", "cpu"]);
    expect(svg).not.toContain("NaN");
  });

  it("pales what was too noisy to judge", () => {
    const svg = chart([{ ...row("read", 2, 1, 1), isNoisy: true }], "t");
    expect(svg).toContain('<g class="row noisy">');
    expect(svg).toContain("read (noisy)");
  });

  it("can be read in the dark", () => {
    expect(chart([], "t")).toMatch(/prefers-color-scheme: dark[\s\S]*background: #0d1117/);
  });
});

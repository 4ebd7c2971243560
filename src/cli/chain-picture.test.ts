import { expect, it } from "vitest";
import { MiB } from "../base/units.ts";
import type { LayerReport } from "../control/chain-report.ts";
import { chainLine, drawChain, jobLine } from "./chain-picture.ts";

function layer(name: string, marks: string, more: Partial<LayerReport> = {}): LayerReport {
  const cells = [...marks].map((mark) => ({ data: mark === "." ? 0 : MiB, seen: mark === "#" ? MiB : 0 }));
  const count = (mark: string) => [...marks].filter((other) => other === mark).length * MiB;
  return {
    "node-name": name,
    filename: `${name}.qcow2`,
    driver: "qcow2",
    "read-only": true,
    "virtual-size": 16 * MiB,
    "actual-size": count("#") + count("-") + 65536,
    data: count("#") + count("-"),
    seen: count("#"),
    shadows: 0,
    cells,
    ...more,
  };
}

const streamJob = {
  id: "stream-E",
  type: "stream",
  status: "running",
  done: 3 * MiB,
  total: 12 * MiB,
  speed: 8 * MiB,
  node: "E",
};

const report = {
  "virtual-size": 16 * MiB,
  layers: [
    layer("E", "##......#.......".repeat(3), { shadows: 2 * MiB }),
    layer("A", "--####..........".repeat(3), { driver: "raw", "virtual-size": 8 * MiB, "actual-size": -1 }),
  ],
};

it("draws the chain, what every image holds, and the jobs", () => {
  expect(drawChain({ device: "virtio0", report, jobs: [streamJob] }, 200)).toBe(
    [
      "[A] <- [E]   virtio0, 16 MiB",
      "",
      "image  file     format        on host    data    seen  shadows   0 ....................................... 16 MiB",
      "[E]    E.qcow2  qcow2        9.06 MiB   9 MiB   9 MiB    2 MiB  |##......#.......##......#.......##......#.......|",
      "[A]    A.qcow2  raw (8 MiB)         ?  18 MiB  12 MiB      0 B  |--####..........--####..........--####..........|",
      "",
      "# seen by the guest   - hidden by an image above   . not in this image",
      "",
      "job stream-E (stream into [E])  25%  3 MiB of 12 MiB  running  limit 8 MiB/s",
      "",
    ].join("\n"),
  );
});

it("narrows the strip, then drops it, where the terminal is narrow", () => {
  const widths = [200, 100, 80, 60].map((columns) => {
    const picture = drawChain({ device: undefined, report, jobs: [] }, columns);
    return /\[A\].*\|(.*)\|/.exec(picture)?.[1];
  });
  expect(widths).toEqual(["--####..........".repeat(3), "-##.....".repeat(3), "##..".repeat(3), undefined]);
});

it("names the images base first", () => {
  expect(chainLine(["A", "B", "C"])).toBe("[A] <- [B] <- [C]");
});

it("tells of a job whose node is not known", () => {
  expect(jobLine({ ...streamJob, node: undefined, speed: 0 })).toBe(
    "stream-E (stream)  25%  3 MiB of 12 MiB  running",
  );
});

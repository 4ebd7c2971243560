// scripts/soak as a person runs it, for some seconds. What it would notice is tested beside it.

import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";
import type { SoakResult } from "../scripts/soaking/soak.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { runAnyhow } from "./harness/tool.ts";

const SOAK = fileURLToPath(new URL("../scripts/soak", import.meta.url));

it("works on a daemon through merges, kills and restarts, finds no wrong byte, and draws that", async () => {
  const directory = scratchDirectory();
  const [json, chart] = ["soak.json", "soak.svg"].map((name) => path.join(directory, name));
  const files = ["--folder", directory, "--json", json!, "--chart", chart!];
  const outcome = await runAnyhow(SOAK, "--quick", "--seed", "11", ...files);
  expect(outcome).toMatchObject({ code: 0, stderr: "" });
  expect(outcome.stdout).toMatch(/^seed 11, /);
  expect(outcome.stdout).toMatch(/no wrong byte/);
  const { counts, marks, samples } = JSON.parse(readFileSync(json!, "utf8")) as SoakResult;
  const { rounds, merges, snapshots, visits, queries, comparisons, copiesCompared } = counts;
  expect(Math.min(rounds, merges, snapshots, visits, queries, comparisons, copiesCompared)).toBeGreaterThan(
    0,
  );
  expect(marks.map(({ what }) => what)).toEqual(["kill", "terminate", "terminate"]);
  expect(samples.length).toBeGreaterThan(5);
  expect(readFileSync(chart!, "utf8")).toMatch(/^<svg .*<polyline class="line line0"/s);
  // The images are gone when nothing was wrong.
  expect(readdirSync(directory).sort()).toEqual(["soak.json", "soak.svg"]);
});

it("refuses a place where the result could not be written before it begins, not after hours", async () => {
  const directory = scratchDirectory();
  for (const option of ["--json", "--chart"]) {
    const file = path.join(directory, "missing", "result");
    const outcome = await runAnyhow(SOAK, "--hours", "8", "--folder", directory, option, file);
    expect(outcome).toMatchObject({ code: 1, stdout: "" });
    expect(outcome.stderr).toContain(`'${file}' is invalid. Its folder does not exist.`);
  }
  expect(readdirSync(directory)).toEqual([]);
});

it("tells its verdict and takes its images away though the result could not be written", async () => {
  const directory = scratchDirectory();
  const outcome = await runAnyhow(SOAK, "--minutes", "0.05", "--folder", directory, "--json", "/dev/full");
  expect(outcome).toMatchObject({ code: 1 });
  expect(outcome.stderr).toMatch(/^soak: ENOSPC/);
  expect(outcome.stdout).toMatch(/no wrong byte/);
  expect(readdirSync(directory)).toEqual([]);
});

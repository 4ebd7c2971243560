// The command line of the soak.

import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { Command, InvalidArgumentError, Option } from "commander";
import { folder, positive, resultFile } from "../option-values.ts";
import { judgeDrift } from "./drift.ts";
import { picture } from "./picture.ts";
import { Soak } from "./soak.ts";
import { countsLine, verdictLines } from "./verdict.ts";

const ABOUT =
  "Guests, merges, snapshots, faults and restarts in a loop, on one daemon after the other: every byte " +
  "that a guest reads is checked, and memory, descriptors, images and latency must stay flat.";

const EXAMPLES = `
Half of the time is one life of the daemon, the rest is divided by SIGTERM, quit and kill -9.
A wrong byte or a quantity that drifts ends it with exit code 1, and the folder is kept.

Examples:
  scripts/soak --hours 1 --chart soak.svg --json soak.json
  scripts/soak --minutes 2.5 --seed 7
  scripts/soak --quick`;

function seedOf(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 0 || value >= 2 ** 32) {
    throw new InvalidArgumentError("It must be a whole number from 0 to 4294967295.");
  }
  return value;
}

interface Options {
  readonly hours?: number;
  readonly minutes?: number;
  readonly quick?: boolean;
  readonly seed?: number;
  readonly folder: string;
  readonly json?: string;
  readonly chart?: string;
}

const QUICK_SECONDS = 10;
const SAMPLE_SECONDS = 5;
/** Of a short run there are as many samples, up to four in a second. */
const SAMPLES_MIN = 120;

async function soak(options: Options): Promise<void> {
  const seed = options.seed ?? Math.floor(Math.random() * 1_000_000);
  const seconds = options.quick
    ? QUICK_SECONDS
    : ((options.hours ?? 0) * 60 + (options.minutes ?? 0)) * 60 || 3600;
  console.log(`seed ${seed}, ${(seconds / 60).toFixed(1)} minutes`);
  const images = fs.mkdtempSync(path.join(options.folder, "strata-soak-"));
  const sampleSeconds = Math.min(SAMPLE_SECONDS, Math.max(0.25, seconds / SAMPLES_MIN));
  const run = new Soak({ seed, seconds, sampleSeconds, folder: images, tell: console.log });
  let interruptedBy: string | undefined;
  for (const signal of ["SIGINT", "SIGTERM"]) {
    process.once(signal, () => {
      interruptedBy = signal;
      run.interrupt();
    });
  }
  const result = await run.run();

  const findings = judgeDrift(result.samples, result.quietPoints);
  const drifts = findings.some((finding) => finding.drifts);
  for (const line of verdictLines(findings)) console.log(line);
  console.log(countsLine(result.counts));
  if (options.json !== undefined) keep(options.json, JSON.stringify({ ...result, findings }));
  if (options.chart !== undefined) {
    const title = `scripts/soak, seed ${seed}, ${(result.seconds / 60).toFixed(1)} minutes`;
    keep(options.chart, picture({ ...result, title }));
  }
  if (interruptedBy !== undefined) {
    // A program that was making a copy of a disk may still be at it.
    fs.rmSync(images, { recursive: true, force: true, maxRetries: 20 });
    console.log(`ended by ${interruptedBy} after ${(result.seconds / 60).toFixed(1)} minutes`);
    process.exitCode = 130;
    return;
  }
  if (result.wrong === undefined && !drifts) {
    fs.rmSync(images, { recursive: true });
    console.log(findings.length === 0 ? "no wrong byte" : "no wrong byte, nothing drifts");
    return;
  }
  console.log(result.wrong === undefined ? "something DRIFTS" : `WRONG: ${result.wrong}`);
  console.log(`seed ${seed}; the images and the daemon's log are in ${images}`);
  process.exitCode = 1;
}

/** The verdict is told also where there is no space for what led to it. */
function keep(file: string, text: string): void {
  try {
    fs.writeFileSync(file, text);
  } catch (error) {
    console.error(`soak: ${(error as Error).message}`);
    process.exitCode = 1;
  }
}

const program = new Command("soak")
  .description(ABOUT)
  .option("--hours <n>", "how long; fractions too (default: 1)", positive)
  .option("--minutes <n>", "how long, in minutes; with --hours the sum of both", positive)
  .addOption(
    new Option("--quick", `${QUICK_SECONDS} seconds: a smoke test, which says nothing about drift`).conflicts(
      ["hours", "minutes"],
    ),
  )
  .option("--seed <n>", "another choice of what happens (default: a new one)", seedOf)
  .option("--folder <path>", "where the images go: about a gigabyte", folder, os.tmpdir())
  .option("--json <file>", "write all samples and the verdict there", resultFile)
  .option("--chart <file>", "draw the run into that SVG file", resultFile)
  .addHelpText("after", EXAMPLES)
  .action(soak);

try {
  await program.parseAsync();
} catch (error) {
  console.error(`soak: ${(error as Error).message}`);
  process.exitCode = 1;
}

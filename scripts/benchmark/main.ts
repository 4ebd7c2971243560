// Strata and qemu-storage-daemon on the same images, in turn A B A B, and the ratios of the medians.

import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { Command } from "commander";
import { MiB } from "../../src/base/units.ts";
import { Peer, qemuStorageDaemon, strata } from "./peer.ts";
import { median, spread } from "./statistics.ts";
import type { Sample, Work } from "./works.ts";
import { Images, WORKS } from "./works.ts";

interface Options {
  pairs: string;
  seconds: string;
  only?: string;
  folder: string;
  cold: boolean;
  json?: string;
}

/** A spread above this says that the machine was too noisy to judge. */
const NOISY = 0.15;
/**
 * Before it is measured a work runs on other disks of the same daemon, so that compilers and caches are past
 * their start: a daemon lives as long as its guest.
 */
const WARM_DISKS = ["warm-1", "warm-2", "warm-3"];
const WARM_SECONDS = 1.5;

const checkout = path.resolve(fileURLToPath(import.meta.url), "../../../..");

async function sample(
  work: Work,
  name: "strata" | "qsd",
  { images, folder, seconds, cold }: { images: Images; folder: string; seconds: number; cold: boolean },
): Promise<Sample> {
  const program = process.env["STRATA_BENCH_DAEMON"] ?? path.join(checkout, "scripts/strata-storage-daemon");
  const kind = name === "strata" ? strata(program) : qemuStorageDaemon(!work.hasJob);
  const warm = cold ? [] : WARM_DISKS;
  const disks = [...warm, "disk"].map((disk) => [disk, images.overlay(disk, work.overlay)] as const);
  const peer = await Peer.start(kind, folder, Object.fromEntries(disks));
  try {
    for (const disk of warm) await work.run(peer, peer.disk(disk), WARM_SECONDS);
    return await work.run(peer, peer.disk("disk"), seconds);
  } finally {
    await peer.stop();
  }
}

interface Row {
  readonly work: string;
  readonly strata: Record<keyof Sample, number>;
  readonly qsd: Record<keyof Sample, number>;
  readonly throughputRatio: number;
  readonly p99Ratio: number;
  readonly cpuRatio: number;
  readonly noisy: boolean;
}

function summarise(work: string, ours: readonly Sample[], theirs: readonly Sample[]): Row {
  const of = (samples: readonly Sample[]): Record<keyof Sample, number> => ({
    throughput: median(samples.map((each) => each.throughput)),
    p50: median(samples.map((each) => each.p50)),
    p99: median(samples.map((each) => each.p99)),
    cpu: median(samples.map((each) => each.cpu)),
    peakMemoryBytes: Math.max(...samples.map((each) => each.peakMemoryBytes)),
  });
  const [a, b] = [of(ours), of(theirs)];
  const spreads = [ours, theirs].map((samples) => spread(samples.map((each) => each.throughput)));
  return {
    work,
    strata: a,
    qsd: b,
    throughputRatio: a.throughput / b.throughput,
    p99Ratio: a.p99 / b.p99,
    cpuRatio: a.cpu / b.cpu,
    noisy: Math.max(...spreads) > NOISY,
  };
}

function line(row: Row): string {
  const cell = (value: number, digits: number, width: number) =>
    (Number.isNaN(value) ? "-" : value.toFixed(digits)).padStart(width);
  return [
    row.work.padEnd(40),
    cell(row.strata.throughput, 0, 9),
    cell(row.qsd.throughput, 0, 9),
    cell(row.throughputRatio, 2, 7),
    cell(row.strata.p99, 0, 8),
    cell(row.qsd.p99, 0, 8),
    cell(row.p99Ratio, 2, 7),
    cell(row.strata.cpu, 1, 8),
    cell(row.qsd.cpu, 1, 8),
    cell(row.cpuRatio, 2, 7),
    cell(row.strata.peakMemoryBytes / MiB, 0, 6),
    row.noisy ? "  noisy" : "",
  ].join(" ");
}

const HEAD = [
  "".padEnd(40),
  "   strata       qsd   ratio   strata      qsd   ratio   strata      qsd   ratio  strata",
  "\n" + "work".padEnd(40),
  " per second                      p99 us                    cpu us each               MiB",
].join(" ");

async function main(options: Options): Promise<void> {
  const folder = fs.mkdtempSync(path.join(options.folder, "strata-bench-"));
  const rows: Row[] = [];
  try {
    const images = new Images(folder);
    const place = { images, folder, seconds: Number(options.seconds), cold: options.cold };
    console.log(
      `${os.cpus().length} x ${os.cpus()[0]?.model}, Node ${process.version}, images in ${options.folder}`,
    );
    console.log(HEAD);
    for (const work of WORKS) {
      if (options.only !== undefined && !new RegExp(options.only).test(work.name)) continue;
      const ours: Sample[] = [];
      const theirs: Sample[] = [];
      for (let pair = 0; pair < Number(options.pairs); pair++) {
        ours.push(await sample(work, "strata", place));
        theirs.push(await sample(work, "qsd", place));
      }
      const row = summarise(work.name, ours, theirs);
      rows.push(row);
      console.log(line(row));
    }
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
  if (options.json !== undefined) fs.writeFileSync(options.json, JSON.stringify(rows, null, 2) + "\n");
}

const program = new Command("bench")
  .description("Strata and qemu-storage-daemon side by side: throughput, p99 and server CPU, as ratios")
  .option("--pairs <n>", "runs of each, in turn", "5")
  .option("--seconds <n>", "length of one run", "4")
  .option("--quick", "one short pair: a smoke test, not a judgement")
  .option("--cold", "measure a daemon's first seconds: without the same work on another disk before", false)
  .option("--only <regex>", "works whose name matches")
  .option("--folder <path>", "where the images go", fs.existsSync("/dev/shm") ? "/dev/shm" : os.tmpdir())
  .option("--json <file>", "write the result there too")
  .addHelpText("after", "\nExample:\n  scripts/bench --pairs 3 --only 'read 4 KiB'")
  .parse();
const chosen = program.opts<Options & { quick?: boolean }>();
await main(chosen.quick ? { ...chosen, pairs: "1", seconds: "1" } : chosen);

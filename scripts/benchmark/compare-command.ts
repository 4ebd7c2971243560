// `scripts/bench`: all works against one peer, as a table, JSON and a chart.

import fs from "node:fs";
import os from "node:os";
import { chart } from "./chart.ts";
import { Images } from "./images.ts";
import { canShareExtents, fileSystemType, isOnDisk, withFolder } from "./place.ts";
import { type Comparison, compare, doubts, type Row, summarise } from "./summary.ts";
import { comparisonLine, HEAD, rowLines } from "./table.ts";
import { type PeerName, type Runs, runInTurns, type Setting } from "./turns.ts";
import { groups, WORKS, type Work } from "./works.ts";

export interface CompareOptions {
  readonly against: PeerName;
  readonly pairs: number;
  readonly seconds: number;
  readonly only?: RegExp;
  readonly folder: string;
  readonly cold: boolean;
  readonly json?: string;
  readonly chart?: string;
}

interface Result {
  readonly rows: Row[];
  readonly comparisons: Comparison[];
  readonly runs: Runs[];
}

export async function compareCommand(options: CompareOptions): Promise<void> {
  const fileSystem = fileSystemType(options.folder);
  console.log(machineLine(options.folder, fileSystem));
  const works = selectWorks(options, fileSystem);
  if (works.length === 0) throw new Error("no work is left to measure: choose others with --only");
  console.log(HEAD);
  const result = await withFolder(options.folder, (folder) => {
    const images = new Images(folder, { keepsPages: !canShareExtents(fileSystem) });
    const { seconds, against, cold } = options;
    return measure(works, options.pairs, { images, folder, seconds, against, isWarmedUp: !cold });
  });
  for (const comparison of result.comparisons) console.log(comparisonLine(comparison, options.against));
  const said = doubts(result.rows, options.pairs);
  if (said !== undefined) console.log(said);
  write(options, fileSystem, result);
}

/** The machine and the place, as the first line of every result. */
export function machineLine(folder: string, fileSystem: string): string {
  const cpus = os.cpus();
  const machine = `${cpus.length} x ${cpus[0]?.model}, Linux ${os.release()}, Node ${process.version}`;
  return `${machine}, images in ${folder} (${fileSystem})`;
}

/** What was asked for and can be done; says what cannot. */
function selectWorks({ only, against }: CompareOptions, fileSystem: string): Work[] {
  const asked = WORKS.filter((work) => only?.test(work.name) ?? true);
  return asked.filter((work) => {
    if (against === "nbdkit" && !work.worksOnRaw) {
      console.log(`left out: ${work.name}: a raw image cannot do it`);
      return false;
    }
    if (work.isCold && !isOnDisk(fileSystem)) {
      console.log(`left out: ${work.name}: ${fileSystem} is never cold; choose a --folder on a disk`);
      return false;
    }
    return true;
  });
}

async function measure(works: readonly Work[], pairs: number, setting: Setting): Promise<Result> {
  const result: Result = { rows: [], comparisons: [], runs: [] };
  for (const group of groups(works)) {
    for (const runs of await runInTurns(group, pairs, setting)) {
      const row = summarise(runs.work.name, runs.strata, runs.peer);
      console.log(rowLines(row, setting.against).join("\n"));
      const other = result.rows.find(({ work }) => work === runs.work.comparedWith);
      if (other !== undefined) result.comparisons.push(compare(row, other));
      result.rows.push(row);
      result.runs.push(runs);
    }
  }
  return result;
}

function write(options: CompareOptions, fileSystem: string, { rows, comparisons, runs }: Result): void {
  if (options.json !== undefined) {
    const { against, pairs, seconds } = options;
    const machine = { cpus: os.cpus().length, model: os.cpus()[0]?.model, linux: os.release() };
    const head = { against, pairs, seconds, fileSystem, machine, node: process.version };
    const samples = runs.map(({ work, strata, peer }) => ({ work: work.name, strata, peer }));
    writeJson(options.json, { ...head, rows, comparisons, samples });
  }
  if (options.chart !== undefined) {
    fs.writeFileSync(options.chart, chart(rows, `Strata / ${options.against} on ${fileSystem}`));
  }
}

/** What is not known (NaN) becomes null. */
export function writeJson(file: string, value: unknown): void {
  fs.writeFileSync(file, JSON.stringify(value, null, 2) + "\n");
}

// Runs cases of one fuzzer in a process of its own, for `main.ts` to watch: it tells each seed before it
// tries it, so that one that ends the process, or never ends, is known. A guided fuzzer breaks half of its
// cases further out of those that reached new code: such a case is called by its seeds, "7+12+31".

import { Prng } from "../../../base/prng.ts";
import { Coverage } from "./coverage.ts";
import { FUZZERS } from "./fuzzers.ts";

/** What it tells. */
export type Report =
  | { readonly kind: "trying"; readonly seed: number; readonly name: string }
  | { readonly kind: "failed"; readonly name: string; readonly why: string }
  | { readonly kind: "done" };

/** Seeds of one case; more are as good as a new one. */
const SEEDS_MAX = 6;

const [, , kind, start, countText] = process.argv as [string, string, string, string, string];
const { make, guided } = FUZZERS[kind]!;
let name = start;

function tell(report: Report): void {
  process.send!(report);
}

function failed(error: unknown): void {
  const why = error instanceof Error ? (error.stack ?? error.message) : String(error);
  tell({ kind: "failed", name, why: why.slice(0, 2000) });
}

process.on("uncaughtException", failed);
process.on("unhandledRejection", failed);

// Nobody watches any more.
process.once("disconnect", () => process.exit());

const fuzzer = make();

async function attempt(seed: number, seeds: readonly number[]): Promise<void> {
  name = seeds.join("+");
  tell({ kind: "trying", seed, name });
  const [first, ...further] = seeds;
  await fuzzer.run(first!, further).catch(failed);
}

async function runAll(first: number, count: number): Promise<void> {
  const prng = new Prng(first);
  const interesting: (readonly number[])[] = [];
  const coverage = guided === true && count > 1 ? new Coverage() : undefined;
  await coverage?.start();
  for (let seed = first; seed < first + count; seed++) {
    const from = interesting.length > 0 && prng.chance(0.5) ? prng.pick(interesting) : [];
    const seeds = from.length < SEEDS_MAX ? [...from, seed] : [seed];
    await attempt(seed, seeds);
    if (coverage !== undefined && (await coverage.isNew())) interesting.push(seeds);
    // So that what was told leaves also when nothing else waits.
    if (seed % 16 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
}

// One case by its name, or a number of them.
if (start.includes("+")) await attempt(0, start.split("+").map(Number));
else await runAll(Number(start), Number(countText));
fuzzer.close?.();
tell({ kind: "done" });
process.disconnect();

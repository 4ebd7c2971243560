// Runs cases of one fuzzer in a process of its own, for `main.ts` to watch: it tells each seed before it
// tries it, so that one that ends the process, or never ends, is known.

import { FUZZERS } from "./fuzzers.ts";

/** What it tells. */
export type Report =
  | { readonly kind: "trying"; readonly seed: number }
  | { readonly kind: "failed"; readonly seed: number; readonly why: string }
  | { readonly kind: "done" };

const name = process.argv[2]!;
const first = Number(process.argv[3]);
const count = Number(process.argv[4]);
let seed = first;

function tell(report: Report): void {
  process.send!(report);
}

function failed(error: unknown): void {
  const why = error instanceof Error ? (error.stack ?? error.message) : String(error);
  tell({ kind: "failed", seed, why: why.slice(0, 2000) });
}

process.on("uncaughtException", failed);
process.on("unhandledRejection", failed);

const fuzzer = FUZZERS[name]!.make();
for (; seed < first + count; seed++) {
  tell({ kind: "trying", seed });
  await fuzzer.run(seed).catch(failed);
  // So that what was told leaves also when nothing else waits.
  if (seed % 16 === 0) await new Promise((resolve) => setImmediate(resolve));
}
fuzzer.close?.();
tell({ kind: "done" });
process.disconnect();

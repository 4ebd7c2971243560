#!/usr/bin/env node
// `scripts/fuzz`: hostile images and peers for as long as one likes.
//
//   1. Every case follows from its kind and its seed, which are told when it fails: the same line runs it
//      again.
//   2. Cases run in a process that is watched: one that ends it, takes too much memory or never ends is a
//      finding, and the next process goes on behind it.

import { type ChildProcess, fork } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { FUZZERS } from "./fuzzers.ts";
import type { Report } from "./worker.ts";

const WORKER = fileURLToPath(new URL("./worker.js", import.meta.url));
/** Cases of one process: what a case leaves behind shows as growth. */
const CASES_PER_PROCESS = 20_000;
/** A turn of one kind, where several take turns. */
const TURN_CASES = 2000;
const MEMORY_BYTES_MAX = 1024 ** 3;
const LOOK_MS = 500;
const TELL_MS = 10_000;

const USAGE = `Usage: scripts/fuzz [--cases N | --hours N | --case NAME] [--seed S] [KIND] ...

Hostile images, NBD clients, QMP and HMP clients and JSON, by seed. KIND: ${Object.keys(FUZZERS).join(", ")};
without one all of them take turns. A case that fails is told with the line that runs it again.
`;

interface Finding {
  readonly kind: string;
  readonly name: string;
  readonly why: string;
}

interface Plan {
  readonly kinds: readonly string[];
  readonly cases: number;
  readonly untilMs: number;
  readonly seed: number;
  /** One case that is to be run again. */
  readonly only: string | undefined;
}

class Fuzzing {
  readonly findings: Finding[] = [];
  readonly cases = new Map<string, number>();
  readonly peakBytes = new Map<string, number>();

  /** Runs `count` cases from `first` on, in as many processes as it takes. */
  async run(kind: string, first: number, count: number, untilMs: number): Promise<void> {
    const end = first + count;
    for (let seed = first; seed < end && Date.now() < untilMs; ) {
      const length = Math.min(CASES_PER_PROCESS, end - seed);
      seed = await this.#process(kind, seed, length, untilMs);
    }
  }

  /** One case again. */
  async again(kind: string, name: string): Promise<void> {
    await this.#process(kind, 0, 1, Number.POSITIVE_INFINITY, name);
  }

  /** One process; gives the seed to go on with. */
  #process(kind: string, first: number, count: number, untilMs: number, only?: string): Promise<number> {
    const child = fork(WORKER, [kind, only ?? String(first), String(count)], {
      execArgv: ["--max-old-space-size=768", "--enable-source-maps"],
    });
    return new Promise((resolve) => {
      let seed = first;
      let name = String(first);
      let sinceMs = Date.now();
      let end: number | undefined;
      child.on("message", (report: Report) => {
        if (report.kind === "trying") {
          ({ seed, name } = report);
          sinceMs = Date.now();
          this.cases.set(kind, (this.cases.get(kind) ?? 0) + 1);
        } else if (report.kind === "failed") this.#found(kind, report.name, report.why);
        else end = first + count;
      });
      const timer = setInterval(() => {
        if (Date.now() > untilMs) end = first + count;
        const why = this.#trouble(kind, child, Date.now() - sinceMs);
        if (why !== undefined) {
          this.#found(kind, name, why);
          end = seed + 1;
        }
        if (end !== undefined && (why !== undefined || Date.now() > untilMs)) child.kill("SIGKILL");
      }, LOOK_MS);
      child.on("exit", (code, signal) => {
        clearInterval(timer);
        if (end === undefined) this.#found(kind, name, `the process ended with ${signal ?? `code ${code}`}`);
        resolve(end ?? seed + 1);
      });
    });
  }

  #trouble(kind: string, child: ChildProcess, ms: number): string | undefined {
    const bytes = memoryOf(child);
    this.peakBytes.set(kind, Math.max(this.peakBytes.get(kind) ?? 0, bytes));
    if (bytes > MEMORY_BYTES_MAX) return `takes ${bytes} bytes of memory`;
    return ms > FUZZERS[kind]!.stuckMs ? `takes more than ${FUZZERS[kind]!.stuckMs / 1000} s` : undefined;
  }

  #found(kind: string, name: string, why: string): void {
    this.findings.push({ kind, name, why });
    process.stdout.write(`\n${kind}, case ${name}: ${why}\n  again: scripts/fuzz --case ${name} ${kind}\n\n`);
  }

  summary(): string {
    const kinds = [...this.cases].map(([kind, cases]) => {
      const bad = this.findings.filter((finding) => finding.kind === kind).length;
      return `${kind} ${cases} cases, ${bad} failed, ${Math.round((this.peakBytes.get(kind) ?? 0) / 2 ** 20)} MiB`;
    });
    return kinds.join("; ");
  }
}

/** Memory of the process that is not shared, in bytes; 0 where it is gone. */
function memoryOf(child: ChildProcess): number {
  try {
    const status = readFileSync(`/proc/${child.pid}/status`, "utf8");
    return Number(/^RssAnon:\s+(\d+) kB/m.exec(status)?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}

function planOf(args: readonly string[]): Plan {
  const { values, positionals } = parseArgs({
    args: [...args],
    options: {
      cases: { type: "string" },
      hours: { type: "string" },
      seed: { type: "string", default: "1" },
      case: { type: "string" },
      help: { type: "boolean", short: "h", default: false },
    },
    allowPositionals: true,
  });
  if (values.help) throw new Asked(USAGE, 0);
  const hours = numberOf("--hours", values.hours, "a number above 0");
  const cases =
    numberOf("--cases", values.cases, "a whole number above 0") ??
    (hours === undefined ? 1000 : Number.POSITIVE_INFINITY);
  const unknown = positionals.find((kind) => FUZZERS[kind] === undefined);
  if (unknown !== undefined) throw new Asked(`scripts/fuzz: there is no '${unknown}'\n${USAGE}`, 2);
  if (values.case !== undefined && !/^\d+(\+\d+)*$/.test(values.case)) {
    throw new Asked(`scripts/fuzz: a case is called like 7 or 7+12+31, not '${values.case}'\n${USAGE}`, 2);
  }
  return {
    kinds: positionals.length > 0 ? positionals : Object.keys(FUZZERS),
    cases,
    untilMs: hours === undefined ? Number.POSITIVE_INFINITY : Date.now() + hours * 3_600_000,
    seed: numberOf("--seed", values.seed, "a whole number")!,
    only: values.case,
  };
}

class Asked extends Error {
  readonly code: number;

  constructor(text: string, code: number) {
    super(text);
    this.code = code;
  }
}

/** With 0 cases or hours nothing would be tried, and nothing fail. */
const NUMBERS = {
  "a number above 0": (value: number) => value > 0 && Number.isFinite(value),
  "a whole number above 0": (value: number) => value > 0 && Number.isSafeInteger(value),
  "a whole number": (value: number) => value >= 0 && Number.isSafeInteger(value),
};

function numberOf(
  option: string,
  text: string | undefined,
  wanted: keyof typeof NUMBERS,
): number | undefined {
  if (text === undefined) return undefined;
  if (text !== "" && NUMBERS[wanted](Number(text))) return Number(text);
  throw new Asked(`scripts/fuzz: ${option} takes ${wanted}, not '${text}'\n${USAGE}`, 2);
}

async function main(args: readonly string[]): Promise<number> {
  const plan = planOf(args);
  const fuzzing = new Fuzzing();
  const timer = setInterval(() => process.stdout.write(`${fuzzing.summary()}\n`), TELL_MS);
  const turn = plan.kinds.length === 1 ? CASES_PER_PROCESS : TURN_CASES;
  const { only } = plan;
  if (only !== undefined) for (const kind of plan.kinds) await fuzzing.again(kind, only);
  for (
    let done = only === undefined ? 0 : plan.cases;
    done < plan.cases && Date.now() < plan.untilMs;
    done += turn
  ) {
    for (const kind of plan.kinds) {
      await fuzzing.run(kind, plan.seed + done, Math.min(turn, plan.cases - done), plan.untilMs);
    }
  }
  clearInterval(timer);
  process.stdout.write(`${fuzzing.summary()}\n`);
  return fuzzing.findings.length === 0 ? 0 : 1;
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof Asked) && !(error instanceof TypeError)) throw error;
  process.exitCode = error instanceof Asked ? error.code : 2;
  (process.exitCode === 0 ? process.stdout : process.stderr).write(`${error.message}\n`);
}

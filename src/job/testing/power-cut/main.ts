#!/usr/bin/env node
// Power cuts without end; see scripts/simulate. Each seed is a run of its own: nothing is carried over.

import { type SmallCase, shrink } from "./shrink.ts";
import { type Case, LossError, simulate } from "./simulate.ts";

interface Options {
  readonly hours: number;
  readonly states: number;
  readonly seed: number;
  readonly schedule: number | undefined;
  readonly only: readonly number[] | undefined;
}

const REPORT_MS = 10_000;

function optionsOf(words: readonly string[]): Options {
  const given = new Map<string, string>();
  for (let i = 0; i + 1 < words.length; i += 2) given.set(words[i]!, words[i + 1]!);
  const number = (name: string) => {
    const value = given.get(name);
    return value === undefined ? undefined : Number(value);
  };
  const hours = number("--hours");
  return {
    hours: hours ?? Number.POSITIVE_INFINITY,
    states: number("--states") ?? (hours === undefined ? 100_000 : Number.POSITIVE_INFINITY),
    seed: number("--seed") ?? 1,
    schedule: number("--schedule"),
    only: given.get("--only")?.split(",").map(Number),
  };
}

async function main(): Promise<number> {
  const options = optionsOf(process.argv.slice(2));
  if (options.schedule !== undefined || options.only !== undefined) return repeat(options);
  const began = Date.now();
  let [states, runs, told] = [0, 0, began];
  const tell = (seed: number) => {
    const seconds = Math.max(1, Date.now() - began) / 1000;
    console.log(
      `${states} states, ${runs} runs, ${Math.round(states / seconds)} states/s, next seed ${seed}`,
    );
  };
  for (let seed = options.seed; ; seed++) {
    if (states >= options.states || Date.now() - began > options.hours * 3_600_000) {
      tell(seed);
      return 0;
    }
    try {
      states += (await simulate({ seed })).states;
    } catch (error) {
      return failed({ seed }, error);
    }
    runs++;
    if (Date.now() - told > REPORT_MS) {
      told = Date.now();
      tell(seed + 1);
    }
  }
}

async function repeat({ seed, schedule, only }: Options): Promise<number> {
  const wanted: Case = { seed, schedule: schedule ?? 0, ...(only === undefined ? {} : { only }), cuts: 60 };
  try {
    const { states } = await simulate(wanted);
    console.log(`${states} states, none of them wrong`);
    return 0;
  } catch (error) {
    if (!(error instanceof LossError)) throw error;
    console.log(`${error.story}\n${error.message}`);
    console.log((error.cause as Error)?.stack ?? "");
    return 1;
  }
}

async function failed(wanted: Case, error: unknown): Promise<number> {
  if (!(error instanceof LossError)) throw error;
  console.log(`seed ${wanted.seed}: ${error.message}`);
  console.log("looking for a smaller case ...");
  tellSmall(await shrink(wanted));
  return 1;
}

function tellSmall({ seed, schedule, only, error, operations }: SmallCase): void {
  console.log(`\nthe operations that are needed:\n  ${operations.join("\n  ")}`);
  console.log(`\nwhat the host was asked to do:\n${error.story}`);
  console.log(`\n${error.message}`);
  console.log(
    `\nto repeat it: scripts/simulate --seed ${seed} --schedule ${schedule} --only ${only.join(",")}`,
  );
}

process.exitCode = await main();

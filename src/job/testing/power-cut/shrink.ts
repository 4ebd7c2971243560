// A failure made small: operations are left out as long as it still fails, whatever waits for what then.

import { type Operation, planOf, words } from "./plan.ts";
import { type Case, LossError, livesOf, simulate } from "./simulate.ts";

export interface SmallCase {
  readonly seed: number;
  readonly schedule: number;
  readonly only: readonly number[];
  readonly error: LossError;
  /** What is left, for people, a line each. */
  readonly operations: readonly string[];
}

/** Other orders of events that are tried before an operation is thought to be needed. */
const SCHEDULES = 6;
const CUTS = 60;
/** Runs that it may take. */
const RUNS_MAX = 400;

export async function shrink(failing: Case): Promise<SmallCase> {
  const plan = await planOf(failing.seed);
  const total = plan.lives.reduce((sum, life) => sum + life.length, 0);
  let only = failing.only ?? Array.from({ length: total }, (_, index) => index);
  let found = await failure({ ...failing, only }, [failing.schedule ?? 0]);
  if (found === undefined) throw new Error(`seed ${failing.seed} does not fail again`);
  let runs = 0;
  for (let size = only.length >> 1; size > 0 && runs < RUNS_MAX; size >>= 1) {
    for (let at = 0; at < only.length && runs < RUNS_MAX; runs++) {
      const fewer = [...only.slice(0, at), ...only.slice(at + size)];
      const schedules = [found.schedule, ...Array.from({ length: SCHEDULES }, (_, schedule) => schedule)];
      const again = await failure({ ...failing, cuts: CUTS, only: fewer }, schedules);
      if (again === undefined) at += size;
      else [only, found] = [fewer, again];
    }
  }
  const left: Operation[] = livesOf(plan, only).flat();
  return { seed: failing.seed, only, ...found, operations: left.map(words) };
}

async function failure(candidate: Case, schedules: readonly number[]) {
  for (const schedule of schedules) {
    try {
      await simulate({ ...candidate, schedule });
    } catch (error) {
      if (error instanceof LossError) return { schedule, error };
      throw error;
    }
  }
  return undefined;
}

// One run of the simulator: lives of a host, and power cuts in each. Everything follows from the seeds.
//
//   life 1  --log-->  states at syncs and at random places, each judged  --one of them-->  life 2 ...

import { Prng } from "../../../base/prng.ts";
import type { Rule } from "./broken-rules.ts";
import { choose, type HostEvent, type HostState, LogReplay } from "./host-log.ts";
import { Judge, type Verdict } from "./judge.ts";
import { Life } from "./life.ts";
import { type Operation, type Plan, planOf } from "./plan.ts";
import type { FileContent } from "./sectors.ts";

export interface Case {
  readonly seed: number;
  /** Decides what waits for what, and which states are looked at. Default 0. */
  readonly schedule?: number;
  /** Places in the list of all operations; the others are left out. Default: all are done. */
  readonly only?: readonly number[];
  readonly broken?: Rule;
  /** Places of the log that are looked at in each life, beside those before syncs. Default 10. */
  readonly cuts?: number;
  readonly realFolder?: string;
  /** Looks at a state that was found right. */
  readonly alsoJudge?: (state: HostState, verdict: Verdict) => void;
}

export interface Report {
  readonly states: number;
  readonly lives: number;
  readonly events: number;
  /** States with a merge under way, by the link that was there. */
  readonly old: number;
  readonly new: number;
  readonly hostCopies: number;
  /** Heads and tails of first writes. */
  readonly fillCopies: number;
}

/** A state that should not be. */
export class LossError extends Error {
  readonly states: number;
  /** What was done in that life, and what of it was there. */
  readonly story: string;

  constructor(message: string, states: number, story: string, cause: unknown) {
    super(message, { cause });
    this.states = states;
    this.story = story;
  }
}

interface Counts {
  states: number;
  lives: number;
  events: number;
  old: number;
  new: number;
  hostCopies: number;
  fillCopies: number;
}

/** States that are chosen at one place of the log. */
const STATES_AT_A_CUT = 3;
/** Syncs of one life that are looked at. */
const SYNCS_MAX = 60;
const CUTS = 10;

/** @throws LossError for the first state that costs anything; Error when a life itself fails */
export async function simulate(wanted: Case): Promise<Report> {
  const plan = await planOf(wanted.seed, wanted.realFolder);
  const lives = livesOf(plan, wanted.only);
  const prng = new Prng(wanted.seed * 7919 + (wanted.schedule ?? 0));
  const counts: Counts = { states: 0, lives: 0, events: 0, old: 0, new: 0, hostCopies: 0, fillCopies: 0 };
  let files: ReadonlyMap<string, FileContent> = plan.files;
  let { top, content } = plan;
  for (const [number, operations] of lives.entries()) {
    const options = { plan, operations, files, top, content, prng, name: `${"STU"[number]}` };
    const life = new Life({ ...options, broken: wanted.broken });
    await live(life, counts);
    const next = await cutPower(life, prng, wanted, counts);
    if (next === undefined) break;
    ({ files, top, content } = next);
  }
  return counts;
}

async function live(life: Life, counts: Counts): Promise<void> {
  try {
    await life.live();
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    throw new LossError(`without any power cut: ${message}`, counts.states, "", error);
  }
  counts.lives++;
  counts.events += life.now;
  counts.hostCopies += life.host.copied;
  counts.fillCopies += life.host.copiedAtOnce;
}

/** Leaves out all operations but those, counted through all lives. */
export function livesOf(plan: Plan, only: readonly number[] | undefined): Operation[][] {
  let index = 0;
  return plan.lives.map((life) => life.filter(() => only === undefined || only.includes(index++)));
}

/** Judges states of the life; the one that the next life begins with, as it was seen. */
async function cutPower(life: Life, prng: Prng, wanted: Case, counts: Counts) {
  const { log } = life.host;
  const judge = new Judge(life);
  const replay = new LogReplay(life.start, log);
  const places = placesOf(log, wanted.cuts ?? CUTS, prng);
  const chosen = prng.pick(places);
  let next: { files: Map<string, FileContent>; top: string; content: Buffer } | undefined;
  for (const at of places) {
    replay.advanceTo(at);
    const pending = replay.pendingEvents();
    // Where everything is durable there is one state only.
    for (let i = pending.length === 0 ? 1 : STATES_AT_A_CUT; i > 0; i--) {
      const state = replay.state(choose(pending, prng), prng);
      counts.states++;
      try {
        const verdict = await judge.judge(state, at, prng);
        wanted.alsoJudge?.(state, verdict);
        const { content, top, merge } = verdict;
        if (merge !== "none") counts[merge]++;
        if (at === chosen) next = { files: copyOf(state.files), top, content };
      } catch (error) {
        const message = error instanceof Error ? error.message : String(error);
        const where = `power cut after event ${at} of ${log.length}, ${state.words}`;
        throw new LossError(`${where}: ${message}`, counts.states, story(log, at), error);
      }
    }
  }
  return next;
}

function copyOf(files: ReadonlyMap<string, FileContent>): Map<string, FileContent> {
  return new Map([...files].map(([path, { sectors, size }]) => [path, { sectors: new Map(sectors), size }]));
}

/** Right before syncs end, when most is at stake, and anywhere. In order. */
function placesOf(log: readonly HostEvent[], cuts: number, prng: Prng): number[] {
  const places = new Set<number>([log.length]);
  const syncs = log.flatMap(({ kind }, index) => (kind === "sync ends" ? [index] : []));
  const share = Math.min(1, SYNCS_MAX / syncs.length);
  for (const sync of syncs) if (share === 1 || prng.chance(share)) places.add(sync);
  for (let i = cuts; i > 0; i--) places.add(prng.between(0, log.length));
  return [...places].sort((a, b) => a - b);
}

const STORY_EVENTS = 60;

function story(log: readonly HostEvent[], at: number): string {
  const from = Math.max(0, at - STORY_EVENTS);
  const lines = log.slice(from, at).map((event, index) => {
    const words = event.kind === "change" ? event.words : event.kind;
    return `  ${from + index} ${event.path.split("/").at(-1)} ${words}`;
  });
  return lines.join("\n");
}

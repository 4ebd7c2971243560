// What a power cut left is looked at as people would look at it: each image is checked, the disk is opened by
// its name and read, now and then used again.
//
//   1. Every image opens, and its check finds no error but leaks.
//   2. The links from the disk's image down are old or new ones, as a whole chain.
//   3. Everything that was flushed is there, and every byte is an old or a new one (disk-history.ts).
//   4. Opened for writing again, it takes writes, and has no leaks afterwards.
//   5. A merge that was cut off can be done again; it changes nothing of what the guest sees.

import type { Prng } from "../../../base/prng.ts";
import { chainOf } from "../../../block/chain.ts";
import { Graph } from "../../../block/graph.ts";
import type { BlockNode } from "../../../block/node.ts";
import { NbdExport } from "../../../export/nbd-export.ts";
import { checkImage } from "../../../format/qcow2/check.ts";
import { hostImageFile } from "../../../format/qcow2/image-file.ts";
import { JobManager } from "../../manager.ts";
import { StreamJob } from "../../stream.ts";
import type { HostState } from "./host-log.ts";
import { isTooLong, type Life, linkOf, MERGE_SETTINGS, type Merge, NO_LINK, type Since } from "./life.ts";
import { SimulatedHost } from "./simulated-host.ts";

/** Of the states, one in so many is written to, or has its merge done again. */
const USED_AGAIN = 6;
const WINDOW_CLUSTERS = 1 << 16;

export interface Verdict {
  /** What the disk shows. */
  readonly content: Buffer;
  readonly top: string;
  /** Whether a merge was under way, and whether its new link is there. */
  readonly merge: "none" | "old" | "new";
}

export class Judge {
  readonly #life: Life;
  /** Stamps of files that were checked before. */
  readonly #checked = new Set<string>();

  constructor(life: Life) {
    this.#life = life;
  }

  /** @throws Error with words when a power cut at `at` that leaves `state` costs anything */
  async judge(state: HostState, at: number, prng: Prng): Promise<Verdict> {
    const host = new SimulatedHost(state.files);
    const top = is(this.#life.tops, at)!;
    const graph = new Graph();
    const opener = host.opener(graph);
    const node = await opener.open(optionsOf(top, true));
    const chain = chainOf(node);
    this.#judgeLinks(chain, at);
    for (const { filename } of chain) await this.#check(host, filename, state.files.get(filename)!.stamp);
    const content = await readAll(node);
    const wrong = this.#life.history.judge(content, at);
    if (wrong !== undefined) throw new Error(`${wrong}; the chain is ${names(chain)}`);
    await opener.closeUnused(node);
    const merge = is(this.#life.merges, at);
    if (prng.below(USED_AGAIN) === 0) {
      if (merge !== undefined && prng.chance(0.5)) await mergeAgain(host, top, merge, content);
      else await useAgain(host, top, content, prng);
    }
    return { content, top, merge: this.#kindOf(merge, chain) };
  }

  #kindOf(merge: Merge | undefined, chain: readonly BlockNode[]): Verdict["merge"] {
    const merged = chain.find(({ filename }) => filename === merge?.top);
    if (merge === undefined || merged === undefined) return "none";
    return linkOf(merged) === (merge.base ?? NO_LINK) ? "new" : "old";
  }

  #judgeLinks(chain: readonly BlockNode[], at: number): void {
    for (const node of chain) {
      const allowed = is(this.#life.links.get(node.filename) ?? [], at) ?? [];
      if (allowed.includes(linkOf(node))) continue;
      throw new Error(
        `'${node.filename}' is linked to '${linkOf(node)}' instead of ${allowed.map((link) => `'${link}'`).join(" or ")}`,
      );
    }
  }

  async #check(host: SimulatedHost, path: string, stamp: string | undefined): Promise<void> {
    if (!path.endsWith(".qcow2") || (stamp !== undefined && this.#checked.has(stamp))) return;
    await refuseErrors(host, path, false);
    if (stamp !== undefined) this.#checked.add(stamp);
  }
}

function is<T>(list: readonly Since<T>[], at: number): T | undefined {
  return list.findLast((each) => each.at <= at)?.is;
}

function names(chain: readonly BlockNode[]): string {
  return chain.map(({ filename }) => filename.split("/").at(-1)).join(" -> ");
}

function optionsOf(path: string, readOnly: boolean) {
  const driver = path.endsWith(".raw") ? "raw" : "qcow2";
  return { driver, "read-only": readOnly, file: { driver: "file", filename: path } };
}

async function readAll(node: BlockNode): Promise<Buffer> {
  const content = Buffer.alloc(node.size, 0xa5);
  await node.read(0, node.size, content, 0);
  return content;
}

async function refuseErrors(host: SimulatedHost, path: string, leaksToo: boolean): Promise<void> {
  const lines: string[] = [];
  const file = hostImageFile(host.file(path, false));
  const result = await checkImage(file, {
    tell: (line) => lines.push(line),
    windowClusters: WINDOW_CLUSTERS,
  });
  const bad = result.corruptions + result.checkErrors + (leaksToo ? result.leaks : 0);
  if (bad > 0) throw new Error(`the check of '${path}' finds: ${lines.slice(0, 4).join("; ")}`);
}

/** The disk is opened, written, flushed and closed; then it holds that, and no leaks. */
async function useAgain(host: SimulatedHost, top: string, content: Buffer, prng: Prng): Promise<void> {
  const graph = new Graph();
  const opener = host.opener(graph);
  const node = await opener.open(optionsOf(top, false));
  const offset = prng.below(content.length);
  const expected = Buffer.from(content);
  const piece = Buffer.alloc(Math.min(content.length - offset, prng.between(1, 2000)), 0x77);
  await node.write(offset, piece.length, piece, 0);
  piece.copy(expected, offset);
  await node.flush();
  if (!(await readAll(node)).equals(expected)) throw new Error("opened for writing it shows something else");
  await opener.closeUnused(node);
  if (top.endsWith(".qcow2")) await refuseErrors(host, top, true);
}

async function mergeAgain(host: SimulatedHost, path: string, merge: Merge, content: Buffer): Promise<void> {
  const graph = new Graph();
  const node = await host.opener(graph).open(optionsOf(path, false));
  const disk = new NbdExport(graph, node, { writable: true, allocationDepth: false });
  const find = (file: string | undefined) => chainOf(node).find(({ filename }) => filename === file);
  const clock = { nowMs: () => 0, after: () => () => {}, turn: () => Promise.resolve() };
  const manager = new JobManager(() => {});
  const target = { top: find(merge.top), base: find(merge.base) };
  const { top } = target;
  // Another merge may have left it out meanwhile.
  if (top === undefined || (target.base === undefined && merge.base !== undefined)) return disk.release();
  const settings = { ...MERGE_SETTINGS, id: "again" };
  let job: StreamJob;
  try {
    job = await StreamJob.create(graph, { ...target, top }, settings, manager, clock);
  } catch (error) {
    if (isTooLong(error)) return disk.release();
    throw error;
  }
  manager.start(job);
  await job.concluded;
  if (job.error !== undefined) throw new Error(`merging again failed: ${job.error}`);
  const link = linkOf(top);
  if (link !== (merge.base ?? NO_LINK)) throw new Error(`after merging again the link is '${link}'`);
  if (!(await readAll(node)).equals(content)) throw new Error("merging again changed what the guest sees");
  await disk.release();
  await refuseErrors(host, merge.top, true);
}

// Strata and its peer in turn, A B A B, on equal fresh images.

import path from "node:path";
import { fileURLToPath } from "node:url";
import type { Images } from "./images.ts";
import { Peer } from "./peer.ts";
import { type DiskImage, nbdkit, type PeerKind, qemuStorageDaemon, strata } from "./peer-kinds.ts";
import { dropFromPageCache, settle } from "./place.ts";
import type { Sample } from "./sample.ts";
import type { Work } from "./works.ts";

export type PeerName = "qsd" | "nbdkit";

/**
 * Before it is measured a work runs on other disks of the same daemon, so that compilers and caches are past
 * their start: a daemon lives as long as its guest.
 */
const WARM_DISKS = ["warm-1", "warm-2", "warm-3"];
const WARM_SECONDS = 1.5;

const CHECKOUT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../..");

/** The daemon of this checkout; `STRATA_BENCH_DAEMON` names another build of it. */
export function strataDaemon(): string {
  return process.env["STRATA_BENCH_DAEMON"] ?? path.join(CHECKOUT, "scripts/strata-storage-daemon");
}

/** The same without its wrapper, for options of node in front. */
export const STRATA_PROGRAM = path.join(CHECKOUT, "dist/src/control/strata-storage-daemon.js");

export interface Setting {
  readonly images: Images;
  readonly folder: string;
  readonly seconds: number;
  /** Whether other disks come first. */
  readonly isWarmedUp: boolean;
  readonly against: PeerName;
}

/** The runs of one work. */
export interface Runs {
  readonly work: Work;
  readonly strata: Sample[];
  readonly peer: Sample[];
}

/** Works of one group share their turns: first each of them on Strata and on the peer, then again. */
export async function runInTurns(group: readonly Work[], pairs: number, setting: Setting): Promise<Runs[]> {
  const runs = group.map((work): Runs => ({ work, strata: [], peer: [] }));
  for (let pair = 0; pair < pairs; pair++) {
    for (const { work, strata, peer } of runs) {
      strata.push(await run(work, kindOf("strata", work), setting));
      peer.push(await run(work, kindOf(setting.against, work), setting));
    }
  }
  return runs;
}

function kindOf(name: "strata" | PeerName, work: Work): PeerKind {
  if (name === "strata") return strata([strataDaemon()]);
  return name === "nbdkit" ? nbdkit() : qemuStorageDaemon({ iothread: !work.hasJob });
}

async function run(work: Work, kind: PeerKind, setting: Setting): Promise<Sample> {
  const warm = setting.isWarmedUp ? WARM_DISKS : [];
  const content = setting.against === "nbdkit" ? "raw" : work.content;
  const disks = [...warm, "disk"].map((name) => setting.images.disk(name, content));
  settle(filesOf(disks));
  const peer = await Peer.start(kind, setting.folder, disks);
  try {
    for (const disk of warm) await runOnce(work, peer, { disk, disks, seconds: WARM_SECONDS });
    return await runOnce(work, peer, { disk: "disk", disks, seconds: setting.seconds });
  } finally {
    await peer.stop();
  }
}

async function runOnce(
  work: Work,
  peer: Peer,
  { disk, disks, seconds }: { disk: string; disks: readonly DiskImage[]; seconds: number },
): Promise<Sample> {
  if (work.isCold) dropFromPageCache(filesOf(disks));
  return await work.run(peer, peer.disk(disk), seconds);
}

function filesOf(disks: readonly DiskImage[]): string[] {
  return [...new Set(disks.flatMap((disk) => disk.chain))];
}

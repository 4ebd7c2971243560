// What happens in one run, as a list that follows from the seed: images, and what guests and an operator do
// in each life of the host. Leaving any of it out gives a run too: that is how a failure is made small.

import { BlockError } from "../../../base/errors.ts";
import { Prng } from "../../../base/prng.ts";
import { KiB } from "../../../base/units.ts";
import { Chain } from "../chain-maker.ts";
import { MemoryHost } from "../memory-host.ts";
import { contentOf, type FileContent, SECTOR } from "./sectors.ts";

export type Fill = "pattern" | "zeros" | "half zeros";

/** `pause`: steps of the scheduler before what comes next. */
export type Operation = { readonly pause: number } & (
  | {
      readonly kind: "write";
      readonly offset: number;
      readonly bytes: number;
      readonly fua: boolean;
      readonly fill: Fill;
      /** Tells the bytes of this write from those of others. */
      readonly mark: number;
    }
  | {
      readonly kind: "zero" | "discard";
      readonly offset: number;
      readonly bytes: number;
      readonly fua: boolean;
      readonly mayUnmap: boolean;
    }
  | { readonly kind: "flush" | "cancel" | "wait" | "close" }
  | { readonly kind: "grow"; readonly bytes: number }
  | {
      readonly kind: "snapshot";
      readonly clusterSize: number;
      readonly extendedL2: boolean;
      readonly refcountBits: number;
      /** Clusters that the file is long from the beginning. */
      readonly clusters?: number;
    }
  /** `top` and `below` pick nodes of the chain as it is then; `below` 0: all of it is merged. */
  | { readonly kind: "stream"; readonly top: number; readonly below: number; readonly twoStep: boolean }
);

export interface Plan {
  readonly files: ReadonlyMap<string, FileContent>;
  /** The image that the guest has, and what it shows. */
  readonly top: string;
  readonly content: Buffer;
  readonly folder: string;
  readonly lives: readonly (readonly Operation[])[];
  /** Bytes of table caches: small ones are written back all the time. */
  readonly cacheBytes: number | undefined;
  readonly waitChance: number;
  readonly copies: { readonly failing: number | undefined; readonly sharesSpace: boolean };
}

/** Small ones show most, and their tables grow. */
const UNITS = [512, 512, 512, 512, 512, 1024, 1024, 4096, 4096, 4096, 4096, 16384];

/** What a refcount table of one cluster describes, with clusters of 512 bytes and refcounts of 64 bits. */
const DESCRIBED_CLUSTERS = 64 * 64;

/** A name that reaches past the first sector of a header. */
const LONG_FOLDER = `/${"long-name-of-a-folder/".repeat(24)}disks`;

/** @param realFolder where the files may be put: then foreign programs can open them */
export async function planOf(seed: number, realFolder?: string): Promise<Plan> {
  const prng = new Prng(seed);
  const { host, chain, content, folder } = await newChain(prng, realFolder);
  const files = new Map<string, FileContent>();
  for (const [path, file] of host.files) files.set(path, contentOf(file.content()));
  const lives = Array.from({ length: prng.pick([1, 1, 2, 3]) }, () => life(chain, prng));
  if (prng.chance(0.15)) prng.pick(lives).unshift(...growingTables(content, prng));
  if (prng.chance(0.03)) lives[0]!.unshift(...largeMerge(prng));
  const cacheBytes = prng.chance(0.5) ? 0 : undefined;
  const waitChance = prng.pick([0.1, 0.5, 0.9]);
  const failing = prng.chance(0.7) ? prng.pick([0, 0.3]) : undefined;
  const copies = { failing, sharesSpace: prng.chance(0.4) };
  if (prng.chance(0.04)) lives[0]!.unshift(...firstWrites(prng));
  return { files, top: chain.top, content, folder, lives, cacheBytes, waitChance, copies };
}

async function newChain(prng: Prng, realFolder: string | undefined) {
  for (;;) {
    const folder = realFolder ?? (prng.chance(0.25) ? LONG_FOLDER : "/disks");
    const host = new MemoryHost();
    const chain = new Chain(host, prng, {
      folder,
      oddSizes: realFolder === undefined && prng.chance(0.5),
      units: UNITS,
    });
    try {
      return { host, chain, content: await chain.make(), folder };
    } catch (error) {
      // A long name does not fit the header where clusters are small.
      if (!(error instanceof BlockError) || folder !== LONG_FOLDER) throw error;
    }
  }
}

/**
 * An overlay whose file is so long that clusters behind its end need a new refcount block, and soon a larger
 * refcount table; and writes that take all clusters before.
 */
function growingTables(content: Buffer, prng: Prng): Operation[] {
  const operations: Operation[] = [];
  const wanted = 80 * SECTOR;
  if (content.length < wanted) operations.push({ kind: "grow", bytes: wanted, pause: 0 });
  const clusters = DESCRIBED_CLUSTERS - prng.between(0, 6);
  const tables = { clusterSize: SECTOR, extendedL2: false, refcountBits: 64, clusters };
  operations.push({ kind: "snapshot", ...tables, pause: 400 });
  const pieces = prng.between(1, 4);
  const start = (piece: number) => Math.floor((piece * wanted) / pieces);
  for (let piece = 0; piece < pieces; piece++) {
    const [offset, bytes] = [start(piece), start(piece + 1) - start(piece)];
    const write = { offset, bytes, fua: prng.chance(0.3), mark: prng.below(1 << 20) };
    operations.push({ kind: "write", fill: "pattern", ...write, pause: prng.pick([0, 10, 100]) });
  }
  return operations;
}

function life(chain: Chain, prng: Prng): Operation[] {
  const operations: Operation[] = [];
  for (let i = prng.between(6, 24); i > 0; i--) operations.push(operation(chain, prng));
  operations.push({ kind: prng.chance(0.3) ? "close" : "wait", pause: prng.below(40) });
  return operations;
}

/** So much in large clusters that the host copies it. */
function largeMerge(prng: Prng): Operation[] {
  return [
    ...largeClusters(prng),
    patternAt(prng.below(300 * KiB), 100, prng.below(1000)),
    { kind: "stream", top: 0, below: prng.below(8), twoStep: false, pause: 3 },
  ];
}

/** Small writes over large clusters, of which the host copies what stands around them. */
function firstWrites(prng: Prng): Operation[] {
  const operations = largeClusters(prng);
  for (let i = prng.between(2, 6); i > 0; i--) {
    const bytes = prng.pick([100, 4 * KiB, 20 * KiB]);
    operations.push({ ...patternAt(prng.below(280 * KiB), bytes, prng.below(1000)), pause: prng.below(4) });
    if (prng.chance(0.4)) operations.push({ kind: "flush", pause: prng.below(4) });
  }
  return operations;
}

/** 300 KiB of data in clusters of 64 KiB, and an empty overlay of such clusters. */
function largeClusters(prng: Prng): Operation[] {
  const snapshot: Operation = {
    kind: "snapshot",
    clusterSize: 64 * KiB,
    extendedL2: false,
    refcountBits: 16,
    pause: 200,
  };
  return [
    { kind: "grow", bytes: 320 * KiB, pause: 0 },
    snapshot,
    patternAt(0, 300 * KiB, prng.below(1000)),
    { ...snapshot, pause: 400 },
  ];
}

function patternAt(offset: number, bytes: number, mark: number): Operation {
  return { kind: "write", offset, bytes, fill: "pattern", fua: false, mark, pause: 0 };
}

function operation(chain: Chain, prng: Prng): Operation {
  const pause = prng.pick([0, 0, 1, 3, 10, 40]);
  const dice = prng.below(100);
  if (dice < 42) {
    const [offset, bytes] = chain.range();
    const fill = prng.pick(["pattern", "pattern", "pattern", "pattern", "half zeros", "zeros"] as const);
    return { kind: "write", offset, bytes, fill, fua: prng.chance(0.15), mark: prng.below(1 << 20), pause };
  }
  if (dice < 62) {
    const [offset, bytes] = chain.range();
    const kind = dice < 52 ? "zero" : "discard";
    return { kind, offset, bytes, fua: prng.chance(0.15), mayUnmap: prng.chance(0.7), pause };
  }
  if (dice < 78) return { kind: "flush", pause };
  if (dice < 81) return { kind: "wait", pause };
  if (dice < 85) {
    const clusterSize = prng.pick([512, 512, 512, 1024, 4096, 16384]);
    const extendedL2 = clusterSize >= 16384 && prng.chance(0.5);
    return { kind: "snapshot", clusterSize, extendedL2, refcountBits: prng.pick([1, 16, 64]), pause };
  }
  if (dice < 94) {
    return { kind: "stream", top: prng.below(8), below: prng.below(8), twoStep: prng.chance(0.2), pause };
  }
  if (dice < 95) return { kind: "cancel", pause };
  return { kind: "grow", bytes: SECTOR * prng.between(1, prng.pick([8, 64, 600])), pause };
}

/** The bytes of a write: they tell its mark and their own place on the disk. */
export function payloadOf(fill: Fill, mark: number, offset: number, bytes: number): Buffer {
  const payload = Buffer.alloc(bytes);
  if (fill === "zeros") return payload;
  const start = fill === "half zeros" ? bytes >> 1 : 0;
  for (let i = start; i < bytes; i++) {
    const pos = offset + i;
    payload[i] = mark * 29 + pos * 7 + (pos >> 9) * 13 + (mark >> 8);
  }
  return payload;
}

/** One line for people. */
export function words(operation: Operation): string {
  const { kind, pause, ...rest } = operation;
  const details = Object.entries(rest)
    .filter(([, value]) => value !== false)
    .map(([name, value]) => (value === true ? name : `${name} ${value}`));
  return `${kind} ${details.join(" ")}${pause === 0 ? "" : `  (then ${pause} steps)`}`;
}

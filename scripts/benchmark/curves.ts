// Strata's cost per request against what it must not depend on. Each curve is a handful of points that differ
// in one thing; the daemon is a new one at each point, and the points run in turn.
//
//   size         the same 1024 clusters of data, spread over disks of 1 GiB to 16 TiB
//   chain        a disk of 256 MiB whose clusters are interleaved over 1 to 64 images
//   connections  64 requests in flight, from one client or from many

import path from "node:path";
import { formatSize, GiB, MiB, TiB } from "../../src/base/units.ts";
import { CLUSTER_BYTES, create, interleave, writeClusters } from "./images.ts";
import { Peer } from "./peer.ts";
import { type DiskImage, strata } from "./peer-kinds.ts";
import { settle } from "./place.ts";
import { forSeconds, type Sample, sampleFio } from "./sample.ts";
import { type Side, side } from "./summary.ts";
import { strataDaemon } from "./turns.ts";

export interface Curve {
  readonly name: string;
  points(folder: string): readonly Point[];
}

export interface Point {
  readonly label: string;
  readonly disk: DiskImage;
  readonly fioOptions: readonly string[];
}

export interface MeasuredPoint {
  readonly label: string;
  readonly side: Side;
}

const READ = ["rw=randread", "bs=4k"];

const SIZES = [1 * GiB, 64 * GiB, 1 * TiB, 16 * TiB];
/** Few enough that their tables fit the table cache at every size (4 KiB of L2 entries each). */
const SPREAD_CLUSTERS = 1024;

const CHAIN_DISK_BYTES = 256 * MiB;
const LENGTHS = [1, 4, 16, 64];

const CLIENTS = [1, 4, 16, 64];
/** The same at every number of clients: more in flight would only wait longer. */
const IN_FLIGHT = 64;

export const CURVES: readonly Curve[] = [
  { name: "size", points: (folder) => SIZES.map((bytes) => sizePoint(folder, bytes)) },
  {
    name: "chain",
    points(folder) {
      const base = fullImage(folder);
      return LENGTHS.map((length) => chainPoint(folder, base, length));
    },
  },
  {
    name: "connections",
    points(folder) {
      const base = fullImage(folder);
      return CLIENTS.map((clients) => connectionsPoint(base, clients));
    },
  },
];

function sizePoint(folder: string, bytes: number): Point {
  const label = formatSize(bytes);
  const file = path.join(folder, `${label.replace(" ", "-")}.qcow2`);
  const step = bytes / SPREAD_CLUSTERS;
  create(file, bytes);
  writeClusters(
    file,
    Array.from({ length: SPREAD_CLUSTERS }, (_, index) => index * step),
  );
  return {
    label,
    disk: readOnly([file]),
    fioOptions: [...READ, "iodepth=32", `size=${bytes}`, `blockalign=${step}`],
  };
}

function chainPoint(folder: string, base: string, length: number): Point {
  return {
    label: length === 1 ? "1 image" : `${length} images`,
    disk: readOnly(interleave(folder, base, length, CHAIN_DISK_BYTES)),
    fioOptions: [...READ, "iodepth=32", `size=${CHAIN_DISK_BYTES}`],
  };
}

function connectionsPoint(base: string, clients: number): Point {
  const depth = [`numjobs=${clients}`, `iodepth=${IN_FLIGHT / clients}`];
  return {
    label: clients === 1 ? "1 client" : `${clients} clients`,
    disk: readOnly([base]),
    fioOptions: [...READ, ...depth, `size=${CHAIN_DISK_BYTES}`],
  };
}

function fullImage(folder: string): string {
  const file = path.join(folder, "full.qcow2");
  create(file, CHAIN_DISK_BYTES);
  const count = CHAIN_DISK_BYTES / CLUSTER_BYTES;
  writeClusters(
    file,
    Array.from({ length: count }, (_, index) => index * CLUSTER_BYTES),
  );
  return file;
}

function readOnly(chain: readonly string[]): DiskImage {
  return { name: "disk", format: "qcow2", chain, readOnly: true };
}

/** All points of a curve, in turn, as often as that. */
export async function measureCurve(
  points: readonly Point[],
  { folder, rounds, seconds }: { folder: string; rounds: number; seconds: number },
): Promise<MeasuredPoint[]> {
  const samples = points.map((): Sample[] => []);
  for (let round = 0; round < rounds; round++) {
    for (const [index, point] of points.entries()) {
      samples[index]!.push(await measurePoint(point, folder, seconds));
    }
  }
  return points.map(({ label }, index) => ({ label, side: side(samples[index]!) }));
}

/** Past the start of compilers and caches. */
async function measurePoint(point: Point, folder: string, seconds: number): Promise<Sample> {
  settle(point.disk.chain);
  const peer = await Peer.start(strata([strataDaemon()]), folder, [point.disk]);
  try {
    const options = [...point.fioOptions, ...forSeconds(seconds)];
    await sampleFio(peer, peer.disk("disk"), options);
    return await sampleFio(peer, peer.disk("disk"), options);
  } finally {
    await peer.stop();
  }
}

/** The dearest point by the first: 1 where the cost does not grow. */
export function growth(values: readonly number[]): number {
  return Math.max(...values) / values[0]!;
}

// One daemon under the same load for a while: neither its cost per request nor its memory may grow.

import fs from "node:fs";
import path from "node:path";
import { fio } from "./fio.ts";
import { DISK_BYTES, Images } from "./images.ts";
import { Peer } from "./peer.ts";
import { strata } from "./peer-kinds.ts";
import { settle } from "./place.ts";
import { forSeconds, type Sample, sampleFio } from "./sample.ts";
import { allocatedBetween, readTraceGc } from "./trace-gc.ts";
import { STRATA_PROGRAM } from "./turns.ts";

const WORK = ["rw=randrw", "rwmixread=70", "bs=4k", "iodepth=16", `size=${DISK_BYTES}`];

export interface UptimePoint {
  /** Seconds since the daemon's start. */
  readonly at: number;
  readonly sample: Sample;
  /** At the end of the run, in bytes. */
  readonly memoryBytes: number;
  /** Bytes of JavaScript memory; the first point includes the program's start. */
  readonly allocatedPerRequest: number;
}

/** What the daemon gets between two runs that are further apart: reads and writes per second. */
const QUIET_LOAD = "rate_iops=200,100";

/**
 * Runs the mix again and again on one daemon, for so many seconds each time, and weighs it each time. A run
 * begins `every` so many seconds; in between there is a light load.
 */
export async function measureUptime({
  folder,
  seconds,
  uptime,
  every,
}: {
  folder: string;
  seconds: number;
  uptime: number;
  every: number;
}): Promise<UptimePoint[]> {
  const trace = path.join(folder, "trace-gc.txt");
  const disk = new Images(folder, { keepsPages: true }).disk("disk", "full");
  settle(disk.chain);
  // Threads as in the program's own wrapper.
  const kind = {
    ...strata([process.execPath, "--trace-gc", STRATA_PROGRAM]),
    output: trace,
    environment: { UV_THREADPOOL_SIZE: "16" },
  };
  const start = performance.now();
  const since = () => performance.now() - start;
  const runs: (Omit<UptimePoint, "allocatedPerRequest"> & { from: number; to: number; requests: number })[] =
    [];
  const peer = await Peer.start(kind, folder, [disk]);
  try {
    while (since() < uptime * 1000) {
      const from = since();
      const sample = await sampleFio(peer, peer.disk("disk"), [...WORK, ...forSeconds(seconds)]);
      const requests = sample.throughput * seconds;
      const memoryBytes = peer.memoryBytes();
      runs.push({ at: from / 1000, sample, memoryBytes, from, to: since(), requests });
      const pause = Math.floor((from - since()) / 1000 + every);
      if (pause > 0) await fio(peer.disk("disk").uri, [...WORK, ...forSeconds(pause), QUIET_LOAD]);
    }
  } finally {
    await peer.stop();
  }
  // The trace is complete when the daemon has ended.
  const marks = readTraceGc(fs.readFileSync(trace, "utf8"));
  return runs.map(({ from, to, requests, ...point }) => ({
    ...point,
    allocatedPerRequest: allocatedBetween(marks, { from, to }) / requests,
  }));
}

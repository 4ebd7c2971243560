import { fio } from "./fio.ts";
import type { Disk, Peer } from "./peer.ts";

/** What one run of one work brought. */
export interface Sample {
  /** Requests, or MiB for a job, per second. */
  readonly throughput: number;
  /** Microseconds; NaN for an idle job. */
  readonly p50: number;
  readonly p99: number;
  readonly p999: number;
  /** Server microseconds per request, or per MiB of a job. */
  readonly cpu: number;
  readonly peakMemoryBytes: number;
}

/** Runs fio against a disk, and weighs the daemon meanwhile. */
export async function sampleFio(peer: Peer, disk: Disk, options: readonly string[]): Promise<Sample> {
  const before = peer.cpuMicroseconds();
  const result = await fio(disk.uri, options);
  return {
    throughput: result.requests / result.seconds,
    p50: result.p50,
    p99: result.p99,
    p999: result.p999,
    cpu: (peer.cpuMicroseconds() - before) / result.requests,
    peakMemoryBytes: peer.peakMemoryBytes(),
  };
}

export function forSeconds(seconds: number): string[] {
  return ["time_based", `runtime=${seconds}`];
}

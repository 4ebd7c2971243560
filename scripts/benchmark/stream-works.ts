import { MiB } from "../../src/base/units.ts";
import { DISK_BYTES } from "./images.ts";
import type { Disk, Peer } from "./peer.ts";
import { forSeconds, sampleFio } from "./sample.ts";
import type { Work } from "./works.ts";

const DISK_MIB = DISK_BYTES / MiB;

export const streamIdle: Work = {
  name: "stream 1 GiB, idle",
  content: "empty",
  hasJob: true,
  async run(peer, disk) {
    const before = peer.cpuMicroseconds();
    const seconds = await stream(peer, disk);
    return {
      throughput: DISK_MIB / seconds,
      p50: Number.NaN,
      p99: Number.NaN,
      p999: Number.NaN,
      cpu: (peer.cpuMicroseconds() - before) / DISK_MIB,
      peakMemoryBytes: peer.peakMemoryBytes(),
    };
  },
};

/** The guest's latency while the stream runs, with the guest's throughput or the stream's own. */
export function streamBusy(name: string, report: "guest" | "job"): Work {
  return {
    name,
    content: "empty",
    hasJob: true,
    async run(peer, disk, seconds) {
      const guest = sampleFio(peer, disk, [
        ...["rw=randrw", "rwmixread=70", "bs=4k", "iodepth=4", `size=${DISK_BYTES}`],
        ...forSeconds(seconds),
      ]);
      const [sample, jobSeconds] = await Promise.all([guest, stream(peer, disk)]);
      return report === "guest" ? sample : { ...sample, throughput: DISK_MIB / jobSeconds };
    },
  };
}

/** Streams the whole chain into the disk; seconds until it had ended. */
async function stream(peer: Peer, disk: Disk): Promise<number> {
  const from = performance.now();
  await peer.qmp.execute("block-stream", { "job-id": "stream", device: disk.name });
  const event = await peer.qmp.event("BLOCK_JOB_COMPLETED");
  const { error } = event["data"] as { error?: string };
  if (error !== undefined) throw new Error(`stream failed: ${error}`);
  return (performance.now() - from) / 1000;
}

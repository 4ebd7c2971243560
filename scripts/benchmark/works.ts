import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { GiB, MiB } from "../../src/base/units.ts";
import type { FioResult } from "./fio.ts";
import { fio } from "./fio.ts";
import type { Disk, Peer } from "./peer.ts";

/** What one run of one work brought. */
export interface Sample {
  /** Requests, or MiB for a job, per second. */
  readonly throughput: number;
  /** Microseconds; NaN for an idle job. */
  readonly p50: number;
  readonly p99: number;
  /** Server microseconds per request, or per MiB of a job. */
  readonly cpu: number;
  readonly peakMemoryBytes: number;
}

export interface Work {
  readonly name: string;
  /** With a job QSD goes without its iothread. */
  readonly hasJob: boolean;
  /** What the overlay holds before: nothing, or every cluster. */
  readonly overlay: "empty" | "full";
  run(peer: Peer, disk: Disk, seconds: number): Promise<Sample>;
}

const DISK_BYTES = 1 * GiB;
const CLUSTER_BYTES = 64 * 1024;

function fioWork(name: string, overlay: Work["overlay"], options: readonly string[], once = false): Work {
  return {
    name,
    overlay,
    hasJob: false,
    async run(peer, disk, seconds) {
      const timing = once ? [] : ["time_based", `runtime=${seconds}`];
      const before = peer.cpuMicroseconds();
      const result = await fio(disk.uri, [...options, ...timing]);
      return fromFio(result, peer.cpuMicroseconds() - before, peer);
    },
  };
}

function fromFio(result: FioResult, cpuMicroseconds: number, peer: Peer): Sample {
  return {
    throughput: result.requests / result.seconds,
    p50: result.p50,
    p99: result.p99,
    cpu: cpuMicroseconds / result.requests,
    peakMemoryBytes: peer.peakMemoryBytes(),
  };
}

const DISK_MIB = DISK_BYTES / MiB;

const streamIdle: Work = {
  name: "stream 1 GiB, idle",
  overlay: "empty",
  hasJob: true,
  async run(peer, disk) {
    const before = peer.cpuMicroseconds();
    const from = performance.now();
    await peer.execute("block-stream", { "job-id": "stream", device: disk.name });
    await streamed(peer);
    const seconds = (performance.now() - from) / 1000;
    return {
      throughput: DISK_MIB / seconds,
      p50: Number.NaN,
      p99: Number.NaN,
      cpu: (peer.cpuMicroseconds() - before) / DISK_MIB,
      peakMemoryBytes: peer.peakMemoryBytes(),
    };
  },
};

/** The guest's latency while the stream runs; the stream's own speed stands in `streamBusyJob`. */
function streamBusy(name: string, report: "guest" | "job"): Work {
  return {
    name,
    overlay: "empty",
    hasJob: true,
    async run(peer, disk, seconds) {
      const before = peer.cpuMicroseconds();
      const guest = fio(disk.uri, [
        ...["rw=randrw", "rwmixread=70", "bs=4k", "iodepth=4"],
        ...["time_based", `runtime=${seconds}`, `size=${DISK_BYTES}`],
      ]);
      const from = performance.now();
      await peer.execute("block-stream", { "job-id": "stream", device: disk.name });
      await streamed(peer);
      const jobSeconds = (performance.now() - from) / 1000;
      const sample = fromFio(await guest, peer.cpuMicroseconds() - before, peer);
      return report === "guest" ? sample : { ...sample, throughput: DISK_MIB / jobSeconds };
    },
  };
}

async function streamed(peer: Peer): Promise<void> {
  const event = await peer.event("BLOCK_JOB_COMPLETED");
  const { error } = event["data"] as { error?: string };
  if (error !== undefined) throw new Error(`stream failed: ${error}`);
}

const SIZE = `size=${DISK_BYTES}`;
/** One write of 4 KiB into each cluster of the disk, one cluster after the other. */
const FIRST_WRITES = ["rw=write:60k", "bs=4k", SIZE, `io_size=${(DISK_BYTES / CLUSTER_BYTES) * 4096}`];

export const WORKS: readonly Work[] = [
  fioWork("read 4 KiB random, depth 1", "empty", ["rw=randread", "bs=4k", "iodepth=1", SIZE]),
  fioWork("read 4 KiB random, depth 32", "empty", ["rw=randread", "bs=4k", "iodepth=32", SIZE]),
  fioWork("write 4 KiB random, depth 1", "full", ["rw=randwrite", "bs=4k", "iodepth=1", SIZE]),
  fioWork("write 4 KiB random, depth 32", "full", ["rw=randwrite", "bs=4k", "iodepth=32", SIZE]),
  fioWork("first write to cluster, depth 1", "empty", [...FIRST_WRITES, "iodepth=1"], true),
  fioWork("first write to cluster, depth 32", "empty", [...FIRST_WRITES, "iodepth=32"], true),
  fioWork("read 1 MiB sequential, depth 4", "empty", ["rw=read", "bs=1m", "iodepth=4", SIZE]),
  fioWork("write 1 MiB sequential, depth 4", "full", ["rw=write", "bs=1m", "iodepth=4", SIZE]),
  streamIdle,
  streamBusy("guest 70/30 4 KiB depth 4 during stream", "guest"),
  streamBusy("stream 1 GiB during guest load", "job"),
];

/** Host space of an overlay with all of its clusters, tables included. */
const OVERLAY_FILE_BYTES = DISK_BYTES + 16 * MiB;
/** An empty overlay: its header and first tables. */
const EMPTY_OVERLAY_BYTES = 4 * CLUSTER_BYTES;

/**
 * The base with data everywhere, and overlays on it. The file of an overlay keeps its host pages from run to
 * run: on a virtual machine whose host takes free memory back, a fresh page costs several times the work that
 * is measured.
 */
export class Images {
  readonly #folder: string;
  readonly #base: string;
  readonly #full = new Set<string>();

  constructor(folder: string) {
    this.#folder = folder;
    this.#base = path.join(folder, "base.qcow2");
    this.#qemuImg("create", "-f", "qcow2", this.#base, String(DISK_BYTES));
    this.#fill(this.#base, 0xa5, 0x5a);
  }

  overlay(name: string, content: Work["overlay"]): string {
    const file = path.join(this.#folder, `${name}.qcow2`);
    // Writes to allocated clusters leave a full one full.
    if (content === "full" && this.#full.has(name)) return file;
    const empty = path.join(this.#folder, "empty.qcow2");
    this.#qemuImg("create", "-f", "qcow2", "-b", this.#base, "-F", "qcow2", empty);
    const host = fs.openSync(file, fs.constants.O_RDWR | fs.constants.O_CREAT);
    for (let at = fs.fstatSync(host).size; at < OVERLAY_FILE_BYTES; ) {
      at += fs.writeSync(host, Buffer.alloc(MiB), 0, Math.min(MiB, OVERLAY_FILE_BYTES - at), at);
    }
    const start = Buffer.alloc(EMPTY_OVERLAY_BYTES);
    fs.readFileSync(empty).copy(start);
    fs.writeSync(host, start, 0, start.length, 0);
    fs.closeSync(host);
    this.#full.delete(name);
    if (content === "full") {
      this.#fill(file, 0x11, 0x11);
      this.#full.add(name);
    }
    return file;
  }

  #fill(file: string, first: number, second: number): void {
    const half = DISK_BYTES / 2;
    const commands = [`write -P ${first} 0 ${half}`, `write -P ${second} ${half} ${half}`];
    execFileSync("qemu-io", ["-f", "qcow2", ...commands.flatMap((command) => ["-c", command]), file]);
  }

  #qemuImg(...args: string[]): void {
    execFileSync("qemu-img", args, { stdio: ["ignore", "ignore", "inherit"] });
  }
}

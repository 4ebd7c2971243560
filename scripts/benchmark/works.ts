import { CLUSTER_BYTES, type Content, DISK_BYTES } from "./images.ts";
import type { Disk, Peer } from "./peer.ts";
import { forSeconds, type Sample, sampleFio } from "./sample.ts";
import { streamBusy, streamIdle } from "./stream-works.ts";

export interface Work {
  readonly name: string;
  readonly content: Content;
  /** Without a job, and without a first write to a cluster: a raw image can do it too. */
  readonly worksOnRaw?: boolean;
  /** With a job QSD goes without its iothread. */
  readonly hasJob?: boolean;
  /** The page cache is emptied of the images before. */
  readonly isCold?: boolean;
  /** The work that this one should cost no more than; they run in the same turns. */
  readonly comparedWith?: string;
  run(peer: Peer, disk: Disk, seconds: number): Promise<Sample>;
}

const SIZE = `size=${DISK_BYTES}`;
/** One write of 4 KiB into each cluster of the disk, one cluster after the other. */
const FIRST_WRITES = ["rw=write:60k", "bs=4k", `io_size=${(DISK_BYTES / CLUSTER_BYTES) * 4096}`];

function fioWork(name: string, content: Content, options: string, traits: Partial<Work> = {}): Work {
  const words = [...options.split(" "), SIZE];
  return {
    name,
    content,
    worksOnRaw: true,
    ...traits,
    run: (peer, disk, seconds) => sampleFio(peer, disk, [...words, ...forSeconds(seconds)]),
  };
}

/** Until every cluster is written, however long it takes. */
function firstWrites(depth: number): Work {
  return {
    name: `first write to cluster, depth ${depth}`,
    content: "empty",
    run: (peer, disk) => sampleFio(peer, disk, [...FIRST_WRITES, SIZE, `iodepth=${depth}`]),
  };
}

const ONE_IMAGE = "read 4 KiB random, depth 32, one image";

export const WORKS: readonly Work[] = [
  fioWork("read 4 KiB random, depth 1", "empty", "rw=randread bs=4k iodepth=1"),
  fioWork("read 4 KiB random, depth 32", "empty", "rw=randread bs=4k iodepth=32"),
  fioWork("write 4 KiB random, depth 1", "full", "rw=randwrite bs=4k iodepth=1"),
  fioWork("write 4 KiB random, depth 32", "full", "rw=randwrite bs=4k iodepth=32"),
  firstWrites(1),
  firstWrites(32),
  fioWork("read 1 MiB sequential, depth 4", "empty", "rw=read bs=1m iodepth=4"),
  fioWork("write 1 MiB sequential, depth 4", "full", "rw=write bs=1m iodepth=4"),
  fioWork("mix 70/30 4 KiB random, depth 16", "full", "rw=randrw rwmixread=70 bs=4k iodepth=16"),
  fioWork("write 4 KiB and flush each, depth 1", "full", "rw=randwrite bs=4k iodepth=1 fsync=1"),
  fioWork("cold read 4 KiB random, depth 32", "empty", "rw=randread bs=4k iodepth=32", { isCold: true }),
  fioWork(ONE_IMAGE, "flat", "rw=randread bs=4k iodepth=32", { worksOnRaw: false }),
  fioWork("read 4 KiB random, depth 32, chain of 32", "chain", "rw=randread bs=4k iodepth=32", {
    worksOnRaw: false,
    comparedWith: ONE_IMAGE,
  }),
  fioWork("read 4 KiB random, 4 clients, depth 16", "empty", "rw=randread bs=4k iodepth=16 numjobs=4"),
  streamIdle,
  streamBusy("guest 70/30 4 KiB depth 4 during stream", "guest"),
  streamBusy("stream 1 GiB during guest load", "job"),
];

/** Works that run in the same turns, because one of them is compared with another. */
export function groups(works: readonly Work[]): Work[][] {
  const found: Work[][] = [];
  for (const work of works) {
    const partner = found.find((group) => group.some((other) => other.name === work.comparedWith));
    if (partner === undefined) found.push([work]);
    else partner.push(work);
  }
  return found;
}

// The compressed clusters that were decoded last, so that small reads of one cluster decode it once.
//
// An entry names data that never changes while it is in a table: nobody writes into a compressed cluster. So
// the entry itself is the key, and nothing has to be forgotten when the guest overwrites the cluster: its
// entry is another then.

import { MiB } from "../../base/units.ts";

/** Memory for one image: this much, or one cluster. */
const BYTES_MAX = MiB;
const CLUSTERS_MAX = 8;

interface DecodedCluster {
  readonly high: number;
  readonly low: number;
  readonly content: Buffer;
}

export class DecodedClusters {
  readonly #clusterSize: number;
  readonly #capacity: number;
  /** Oldest first. */
  readonly #clusters: DecodedCluster[] = [];

  constructor(clusterSize: number) {
    this.#clusterSize = clusterSize;
    this.#capacity = Math.max(1, Math.min(CLUSTERS_MAX, Math.floor(BYTES_MAX / clusterSize)));
  }

  /** What the entry's cluster holds, if it is known; valid until the caller awaits. */
  find(high: number, low: number): Buffer | undefined {
    for (const cluster of this.#clusters) {
      if (cluster.low === low && cluster.high === high) return cluster.content;
    }
    return undefined;
  }

  /** Memory to decode into: the caller's until `add`, or for good. */
  take(): Buffer {
    const oldest = this.#clusters.length >= this.#capacity ? this.#clusters.shift() : undefined;
    return oldest?.content ?? Buffer.allocUnsafeSlow(this.#clusterSize);
  }

  add(high: number, low: number, content: Buffer): void {
    if (this.#clusters.length >= this.#capacity) this.#clusters.shift();
    this.#clusters.push({ high, low, content });
  }
}

/** What has been done to the daemon so far. */
export interface Counts {
  rounds: number;
  snapshots: number;
  merges: number;
  /** Merges that were cancelled, or ended with an error that a fault brought. */
  unfinishedMerges: number;
  resizes: number;
  /** Times at which faults were let loose, and guest requests and jobs that failed by them. */
  faults: number;
  failedRequests: number;
  terminations: number;
  kills: number;
  /** Times at which every byte of both disks was checked, and those by way of qemu-img. */
  comparisons: number;
  copiesCompared: number;
  /** Clusters that qemu-img check found leaked, over all restarts. */
  leaks: number;
  visits: number;
  queries: number;
  requests: number;
  bytes: number;
}

export function noCounts(): Counts {
  return {
    rounds: 0,
    snapshots: 0,
    merges: 0,
    unfinishedMerges: 0,
    resizes: 0,
    faults: 0,
    failedRequests: 0,
    terminations: 0,
    kills: 0,
    comparisons: 0,
    copiesCompared: 0,
    leaks: 0,
    visits: 0,
    queries: 0,
    requests: 0,
    bytes: 0,
  };
}

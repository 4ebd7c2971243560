/** What a consistency check found, as `qemu-img check --output json` tells it. Counts; offsets in bytes. */
export interface CheckResult {
  /** Behind the last cluster in use. */
  imageEndOffset: number;
  /** Guest clusters. */
  totalClusters: number;
  allocatedClusters: number;
  fragmentedClusters: number;
  compressedClusters: number;
  /** What is wrong and could cost data. */
  corruptions: number;
  /** Clusters that nobody needs. */
  leaks: number;
  /** What could not be checked. */
  checkErrors: number;
  corruptionsFixed: number;
  leaksFixed: number;
}

/** How a check ended, in the order in which it decides the exit code. */
export type CheckVerdict = "incomplete" | "corrupt" | "leaks" | "clean";

/** Lines of findings that are told one by one; what comes after is only counted. */
export const FINDINGS_MAX = 1000;

/** Counts findings and tells the first ones. */
export class CheckTally implements CheckResult {
  imageEndOffset = 0;
  totalClusters = 0;
  allocatedClusters = 0;
  fragmentedClusters = 0;
  compressedClusters = 0;
  corruptions = 0;
  leaks = 0;
  checkErrors = 0;
  corruptionsFixed = 0;
  leaksFixed = 0;
  readonly #tell: ((line: string) => void) | undefined;
  #told = 0;

  constructor(tell?: (line: string) => void) {
    this.#tell = tell;
  }

  corruption(line: string): void {
    this.corruptions++;
    this.tell(`ERROR ${line}`);
  }

  corruptionFixed(line: string): void {
    this.corruptionsFixed++;
    this.tell(`Repairing ${line}`);
  }

  leak(line: string): void {
    this.leaks++;
    this.tell(`Leaked ${line}`);
  }

  leakFixed(line: string): void {
    this.leaksFixed++;
    this.tell(`Repairing ${line}`);
  }

  checkError(line: string): void {
    this.checkErrors++;
    this.tell(`ERROR ${line}`);
  }

  tell(line: string): void {
    this.#told++;
    if (this.#told <= FINDINGS_MAX) this.#tell?.(printable(line));
    else if (this.#told === FINDINGS_MAX + 1) this.#tell?.("More findings are counted, but not listed.");
  }
}

/** Names in an image may hold anything; what would steer a terminal is shown as a code. */
function printable(line: string): string {
  return line.replace(/\p{Cc}/gu, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`);
}

export function verdictOf(result: CheckResult): CheckVerdict {
  if (result.checkErrors > 0) return "incomplete";
  if (result.corruptions > 0) return "corrupt";
  return result.leaks > 0 ? "leaks" : "clean";
}

/** Exit code of `qemu-img check` for a result. */
export function checkExitCode(result: CheckResult): number {
  return { incomplete: 1, corrupt: 2, leaks: 3, clean: 0 }[verdictOf(result)];
}

/** The result in the members of QAPI's ImageCheck; zero counts are left away where QEMU does. */
export function imageCheck(result: CheckResult, filename: string): Record<string, unknown> {
  const optional = {
    "total-clusters": result.totalClusters,
    "allocated-clusters": result.allocatedClusters,
    "fragmented-clusters": result.fragmentedClusters,
    "compressed-clusters": result.compressedClusters,
    corruptions: result.corruptions,
    leaks: result.leaks,
    "corruptions-fixed": result.corruptionsFixed,
    "leaks-fixed": result.leaksFixed,
    "image-end-offset": result.imageEndOffset,
  };
  const present = Object.fromEntries(Object.entries(optional).filter(([, count]) => count !== 0));
  return { ...present, filename, format: "qcow2", "check-errors": result.checkErrors };
}

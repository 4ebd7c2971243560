// fio as the guest: four connections with 32 requests in flight each, all of them checked.
//
//   [mixed-0] [mixed-1] [mixed-2] reads and writes       [trims] trims
//
// Each job has a quarter of the disk, and leaves the last part of it and random gaps alone. What fio wrote it
// checks itself, block by block, while writing and at its end. The rest is up to us: fio's log of requests
// says what it wrote and trimmed, and a copy made before says what must be elsewhere; a trimmed sector may
// read as zeros instead. (No `verify_backlog`: with it fio 3.33 expects other headers in `verify_only` than
// it wrote, on any disk. No `randtrimwrite`: it never writes.)

import { closeSync, openSync, readFileSync, readSync, writeFileSync } from "node:fs";
import path from "node:path";
import { isZero } from "../../src/base/bytes.ts";
import { alignDown, KiB, MiB } from "../../src/base/units.ts";
import { RunningTool, ToolError } from "./tool.ts";

export interface FioPlan {
  readonly directory: string;
  readonly uri: string;
  readonly diskBytes: number;
  readonly seed: number;
  /** What each job writes; less than a quarter of the disk. */
  readonly bytesPerJob: number;
}

/** A piece of the disk, [offset, end). */
export interface Piece {
  readonly offset: number;
  readonly end: number;
}

const JOBS = [
  { name: "mixed-0", pattern: "randrw", verifies: true },
  { name: "mixed-1", pattern: "randrw", verifies: true },
  { name: "mixed-2", pattern: "randrw", verifies: true },
  { name: "trims", pattern: "randtrim", verifies: false },
] as const;

/** One run of fio over a disk; it can be asked to look once more at all that it wrote. */
export class FioRun {
  readonly #plan: FioPlan;
  readonly #log: string;

  constructor(plan: FioPlan) {
    this.#plan = plan;
    this.#log = path.join(plan.directory, `fio-${plan.seed}.log`);
  }

  /** Writes, trims, reads, and verifies at the end. @throws ToolError when fio finds anything wrong */
  async work(): Promise<void> {
    await this.#run("work", `write_iolog=${this.#log}`);
  }

  /** Reads everything again that `work` wrote, through `uri`, and verifies it. */
  async verify(uri = this.#plan.uri): Promise<void> {
    await this.#run("verify", "verify_only=1", `uri=${uri}`);
  }

  /** What the requests of this run have written. */
  written(): Piece[] {
    return this.#logged("write");
  }

  /** What the requests of this run have trimmed. */
  trimmed(): Piece[] {
    return this.#logged("trim");
  }

  #logged(wanted: string): Piece[] {
    const pieces: Piece[] = [];
    for (const line of readFileSync(this.#log, "utf8").split("\n")) {
      const [, , action, offset, bytes] = line.split(" ");
      if (action === wanted) pieces.push({ offset: Number(offset), end: Number(offset) + Number(bytes) });
    }
    if (pieces.length === 0) throw new Error(`fio's log ${this.#log} tells of no ${wanted}`);
    return pieces;
  }

  async #run(name: string, ...more: readonly string[]): Promise<void> {
    const file = path.join(this.#plan.directory, `fio-${this.#plan.seed}-${name}.fio`);
    writeFileSync(file, this.#jobs(more, name === "verify"));
    const outcome = await new RunningTool("fio", ["--output-format=terse", file], this.#plan.directory).done;
    const wrong = /verify:|error|Assertion/i.test(outcome.stderr);
    if (outcome.code !== 0 || wrong) throw new ToolError(`fio ${file}`, outcome);
  }

  #jobs(more: readonly string[], verifiersOnly: boolean): string {
    const { diskBytes, bytesPerJob, seed, uri } = this.#plan;
    const quarter = alignDown(diskBytes / JOBS.length, MiB);
    const lines = ["[global]", "ioengine=nbd", `uri=${uri}`, "thread=1", "iodepth=32", "bsrange=512-256k"];
    lines.push(`size=${quarter - 256 * KiB}`, `io_size=${bytesPerJob}`, `randseed=${seed}`, ...more);
    JOBS.forEach((job, index) => {
      if (verifiersOnly && !job.verifies) return;
      lines.push(`[${job.name}]`, `rw=${job.pattern}`, `offset=${index * quarter}`);
      if (job.verifies) lines.push("verify=crc32c", "verify_fatal=1", "verify_dump=0");
    });
    return `${lines.join("\n")}\n`;
  }
}

/** What of a disk none of the pieces covers. */
export function uncovered(pieces: readonly Piece[], diskBytes: number): Piece[] {
  const rest: Piece[] = [];
  let at = 0;
  for (const { offset, end } of [...pieces].sort((a, b) => a.offset - b.offset)) {
    if (offset > at) rest.push({ offset: at, end: offset });
    at = Math.max(at, end);
  }
  if (at < diskBytes) rest.push({ offset: at, end: diskBytes });
  return rest;
}

/**
 * Offsets of those 512-byte sectors, of all that fio has not written, in which the raw file `after` is not
 * like `before`; the first few. A sector that fio has trimmed may be zeros.
 */
export function differences(
  before: string,
  after: string,
  done: { written: readonly Piece[]; trimmed: readonly Piece[] },
  diskBytes: number,
): number[] {
  const notTrimmed = uncovered(done.trimmed, diskBytes);
  const found = unlike(before, after, uncovered(done.written, diskBytes));
  return found
    .filter((at) => !at.zero || notTrimmed.some(({ offset, end }) => offset <= at.offset && at.offset < end))
    .map((at) => at.offset)
    .slice(0, 10);
}

function unlike(
  before: string,
  after: string,
  pieces: readonly Piece[],
): { offset: number; zero: boolean }[] {
  const files = [openSync(before, "r"), openSync(after, "r")] as const;
  const buffers = [Buffer.alloc(MiB), Buffer.alloc(MiB)] as const;
  const found: { offset: number; zero: boolean }[] = [];
  for (const { offset, end } of pieces) {
    for (let at = offset; at < end; at += MiB) {
      const bytes = Math.min(MiB, end - at);
      for (const index of [0, 1] as const) readSync(files[index], buffers[index], 0, bytes, at);
      for (let sector = 0; sector < bytes; sector += 512) {
        const stop = Math.min(bytes, sector + 512);
        if (buffers[0].compare(buffers[1], sector, stop, sector, stop) === 0) continue;
        found.push({ offset: at + sector, zero: isZero(buffers[1], sector, stop - sector) });
      }
    }
  }
  for (const file of files) closeSync(file);
  return found;
}

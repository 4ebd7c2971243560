import { execFile } from "node:child_process";
import { promisify } from "node:util";

/** What one fio run says; latencies in microseconds. */
export interface FioResult {
  /** Reads and writes; a flush is part of its write. */
  readonly requests: number;
  readonly seconds: number;
  readonly p50: number;
  readonly p99: number;
  readonly p999: number;
}

interface Latencies {
  /** By the percentile with six digits: "99.900000". */
  readonly percentile?: Readonly<Record<string, number>>;
}

interface FioDirection {
  readonly total_ios: number;
  /** Milliseconds. */
  readonly runtime: number;
  readonly clat_ns: Latencies;
}

interface FioReport {
  readonly jobs: readonly {
    readonly error: number;
    readonly read: FioDirection;
    readonly write: FioDirection;
    readonly sync: { readonly total_ios: number; readonly lat_ns: Latencies };
  }[];
}

/** Runs fio's nbd engine with the options given, as `name=value`. Several connections are one result. */
export async function fio(uri: string, options: readonly string[]): Promise<FioResult> {
  const args = ["--name=bench", "--ioengine=nbd", `--uri=${uri}`, "--output-format=json", "--thread"];
  const { stdout } = await promisify(execFile)(
    "fio",
    [...args, "--group_reporting", ...options.map((option) => `--${option}`)],
    { maxBuffer: 64 * 1024 * 1024 },
  );
  return readReport(stdout);
}

/**
 * Reads fio's JSON, which remarks may precede. Of a mix the slower direction's percentiles count. Where each
 * write is followed by a flush, the two percentiles are added: fio does not time the pair.
 */
export function readReport(output: string): FioResult {
  const start = output.search(/^\{/m);
  if (start < 0) throw new Error(`fio said no JSON: ${output.slice(0, 500)}`);
  const job = (JSON.parse(output.slice(start)) as FioReport).jobs[0];
  if (job === undefined || job.error !== 0) throw new Error(`fio ended with error ${job?.error}`);
  const both = [job.read, job.write].filter((direction) => direction.total_ios > 0);
  if (both.length === 0) throw new Error("fio finished no request");
  const percentile = (name: string) => {
    const slower = Math.max(...both.map((direction) => direction.clat_ns.percentile?.[name] ?? 0));
    return (slower + (job.sync.lat_ns.percentile?.[name] ?? 0)) / 1000;
  };
  return {
    requests: both.reduce((sum, direction) => sum + direction.total_ios, 0),
    seconds: Math.max(...both.map((direction) => direction.runtime)) / 1000,
    p50: percentile("50.000000"),
    p99: percentile("99.000000"),
    p999: percentile("99.900000"),
  };
}

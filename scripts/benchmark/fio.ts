import { execFile } from "node:child_process";
import { promisify } from "node:util";

/** What one fio run says; latencies in microseconds. */
export interface FioResult {
  readonly requests: number;
  readonly bytes: number;
  readonly seconds: number;
  readonly p50: number;
  readonly p99: number;
}

interface FioDirection {
  total_ios: number;
  io_bytes: number;
  runtime: number;
  clat_ns: { percentile?: Record<string, number> };
}

/** Runs fio's nbd engine with the options given, as `name=value`. */
export async function fio(uri: string, options: readonly string[]): Promise<FioResult> {
  const args = ["--name=bench", "--ioengine=nbd", `--uri=${uri}`, "--output-format=json", "--thread"];
  const { stdout } = await promisify(execFile)("fio", [...args, ...options.map((option) => `--${option}`)], {
    maxBuffer: 64 * 1024 * 1024,
  });
  const report = JSON.parse(stdout.slice(stdout.indexOf("{"))) as { jobs: Record<string, unknown>[] };
  const job = report.jobs[0] as { read: FioDirection; write: FioDirection; error: number };
  if (job.error !== 0) throw new Error(`fio ended with error ${job.error}`);
  const both = [job.read, job.write].filter((direction) => direction.total_ios > 0);
  const percentile = (name: string) =>
    Math.max(...both.map((direction) => direction.clat_ns.percentile?.[name] ?? 0)) / 1000;
  return {
    requests: both.reduce((sum, direction) => sum + direction.total_ios, 0),
    bytes: both.reduce((sum, direction) => sum + direction.io_bytes, 0),
    seconds: Math.max(...both.map((direction) => direction.runtime)) / 1000,
    p50: percentile("50.000000"),
    p99: percentile("99.000000"),
  };
}

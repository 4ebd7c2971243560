import { describe, expect, it } from "vitest";
import { readReport } from "./fio.ts";

const NONE = { total_ios: 0, runtime: 0, clat_ns: {} };
const NO_FLUSH = { total_ios: 0, lat_ns: {} };

function direction(requests: number, milliseconds: number, [p50, p99, p999]: [number, number, number]) {
  const percentile = { "50.000000": p50, "99.000000": p99, "99.900000": p999 };
  return { total_ios: requests, runtime: milliseconds, clat_ns: { percentile } };
}

function report(job: Record<string, unknown>): string {
  return JSON.stringify({ jobs: [{ error: 0, read: NONE, write: NONE, sync: NO_FLUSH, ...job }] });
}

describe("a report of fio", () => {
  it("is read in microseconds and seconds", () => {
    const read = direction(100, 2000, [5000, 9000, 12000]);
    expect(readReport(report({ read }))).toEqual({ requests: 100, seconds: 2, p50: 5, p99: 9, p999: 12 });
  });

  it("counts both directions of a mix, and the slower one's latency", () => {
    const read = direction(70, 1000, [5000, 6000, 7000]);
    const write = direction(30, 1001, [4000, 8000, 9000]);
    expect(readReport(report({ read, write }))).toEqual({
      ...{ requests: 100, seconds: 1.001 },
      ...{ p50: 5, p99: 8, p999: 9 },
    });
  });

  it("adds the flush to its write", () => {
    const write = direction(10, 1000, [4000, 8000, 9000]);
    const { clat_ns } = direction(10, 0, [1000, 2000, 3000]);
    expect(readReport(report({ write, sync: { total_ios: 10, lat_ns: clat_ns } }))).toEqual({
      ...{ requests: 10, seconds: 1 },
      ...{ p50: 5, p99: 10, p999: 12 },
    });
  });

  it("may come after remarks", () => {
    const read = direction(1, 1000, [1000, 1000, 1000]);
    const output = `fio: connected {to} NBD server\n${report({ read })}`;
    expect(readReport(output).requests).toBe(1);
  });

  it("is refused when the job failed, when nothing was done, and when there is none", () => {
    expect(() => readReport(report({ error: 5 }))).toThrow("error 5");
    expect(() => readReport(report({}))).toThrow("no request");
    expect(() => readReport("cannot connect")).toThrow("cannot connect");
  });
});

import { describe, expect, it } from "vitest";
import { FAULTY_FILES, type FaultRunOptions, runWithFaults } from "./testing/fault-run.ts";

// STRATA_FAULT_STRIDE=1 looks at every call of every file.
const STRIDE = Number(process.env["STRATA_FAULT_STRIDE"] ?? 7);

type Plan = Omit<FaultRunOptions, "path" | "nth">;

const PLANS: readonly (readonly [string, Plan])[] = [
  ["EIO, once, of any call", { fault: { kind: "any", errno: "EIO" }, onError: "report" }],
  ["ENOSPC, of 20 writes", { fault: { kind: "write", errno: "ENOSPC", times: 20 }, onError: "stop" }],
  ["EDQUOT, of 3 writes", { fault: { kind: "write", errno: "EDQUOT", times: 3 }, onError: "enospc" }],
  [
    "a short write, then ENOSPC",
    { fault: { kind: "write", errno: "ENOSPC", inPart: true }, onError: "report" },
  ],
  ["EIO, of 2 reads", { fault: { kind: "read", errno: "EIO", times: 2 }, onError: "ignore" }],
  ["EIO, of one sync", { fault: { kind: "sync", errno: "EIO" }, onError: "report" }],
  ["a call that is stuck", { fault: { kind: "any", errno: "EIO" }, onError: "report", stuck: true }],
];

describe("one file of a chain fails at its n-th call", () => {
  it.each(PLANS)(
    "%s: errors are told, nothing is mapped wrongly, all goes on",
    { timeout: 3_600_000 },
    async (name, plan) => {
      let failures = 0;
      let hits = 0;
      for (const path of FAULTY_FILES) {
        const offset = path.charCodeAt(1) % STRIDE;
        for (let nth = 1 + offset; ; nth += STRIDE) {
          const report = await runWithFaults({ ...plan, path, nth }).catch((error: Error) => {
            throw new Error(`${name}, ${path}, call ${nth}: ${error.message}`, { cause: error });
          });
          if (!report.hit) break;
          hits++;
          if (report.failed > 0 || report.jobError !== undefined || report.jobStops > 0) failures++;
        }
      }
      expect(hits).toBeGreaterThan(0);
      if (plan.stuck === true) expect(failures).toBe(0);
      else expect(failures).toBeGreaterThan(hits / 10);
    },
  );
});

import { defineConfig } from "vitest/config";
import { BaseSequencer, type TestSpecification } from "vitest/node";

// `npm test` runs what stands beside the code; `scripts/test` adds guest-tests with STRATA_GUEST_TESTS=1.
const guestTests = process.env["STRATA_GUEST_TESTS"] === "1";
// `scripts/guest-tests --long`: without KVM one of its tests may take an hour.
const isLong = process.env["STRATA_LONG"] === "1";
const timeout = isLong ? 3 * 3_600_000 : guestTests ? 300_000 : 30_000;

// Those that take a minute together begin first, so that neither of two workers is left alone with one at the
// end.
const LONG = ["power-cut.test.ts", "power-cut-rules.test.ts", "whole-stack-property.test.ts"];

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const isLong = ({ moduleId }: TestSpecification) => LONG.some((name) => moduleId.endsWith(`/${name}`));
    const sorted = await super.sort(files);
    return [...sorted.filter(isLong), ...sorted.filter((file) => !isLong(file))];
  }
}

export default defineConfig({
  test: {
    include: guestTests
      ? ["guest-tests/**/*.test.ts"]
      : ["src/**/*.test.ts", "nbd/**/*.test.ts", "scripts/**/*.test.ts"],
    pool: "forks",
    maxWorkers: 2,
    sequence: { sequencer: LongestFirst },
    testTimeout: timeout,
    hookTimeout: timeout,
  },
});

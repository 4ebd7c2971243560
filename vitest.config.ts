import { defineConfig } from "vitest/config";

// `npm test` runs what stands beside the code; `scripts/test` adds guest-tests with STRATA_GUEST_TESTS=1.
const guestTests = process.env["STRATA_GUEST_TESTS"] === "1";
// `scripts/guest-tests --long`: without KVM one of its tests may take an hour.
const isLong = process.env["STRATA_LONG"] === "1";
const timeout = isLong ? 3 * 3_600_000 : guestTests ? 300_000 : 30_000;

export default defineConfig({
  test: {
    include: guestTests
      ? ["guest-tests/**/*.test.ts"]
      : ["src/**/*.test.ts", "nbd/**/*.test.ts", "scripts/**/*.test.ts"],
    pool: "forks",
    maxWorkers: 2,
    testTimeout: timeout,
    hookTimeout: timeout,
  },
});

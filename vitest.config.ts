import { defineConfig } from "vitest/config";

// `npm test` runs what stands beside the code; `scripts/test` adds guest-tests with STRATA_GUEST_TESTS=1.
const guestTests = process.env["STRATA_GUEST_TESTS"] === "1";

export default defineConfig({
  test: {
    include: guestTests
      ? ["guest-tests/**/*.test.ts"]
      : ["src/**/*.test.ts", "nbd/**/*.test.ts", "scripts/**/*.test.ts"],
    pool: "forks",
    maxWorkers: 2,
    testTimeout: guestTests ? 300_000 : 30_000,
    hookTimeout: guestTests ? 300_000 : 30_000,
  },
});

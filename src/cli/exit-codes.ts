/**
 * Exit codes of `strata`, for scripts. Every command uses the general ones; `check` and `stream` add their
 * own. The README's table is compared with this registry by a test.
 */
export const EXIT_CODES = {
  OK: { code: 0, text: "done" },
  ERROR: { code: 1, text: "it did not work: one line on stderr says what, where and what to do" },
  USAGE: { code: 2, text: "wrong command line (`check`: 1, as with qemu-img)" },
  CORRUPT: { code: 2, text: "`check`: the image is damaged" },
  LEAKS: { code: 3, text: "`check`: clusters are leaked, nothing is damaged" },
  JOB_FAILED: { code: 4, text: "`stream`, `jobs watch`: the job failed" },
  JOB_CANCELLED: { code: 5, text: "`stream`, `jobs watch`: the job was cancelled" },
  NOT_CHECKABLE: { code: 63, text: "`check`: the format has nothing to check (raw)" },
  INTERRUPTED: { code: 130, text: "stopped by Ctrl-C" },
} as const;

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { expect, it } from "vitest";
import { systemClock } from "../base/clock.ts";
import { runCommandLine } from "./program.ts";

/** Exit code and what stands on stderr. */
async function run(...args: string[]) {
  let told = "";
  const context = {
    terminal: {
      out: () => {},
      err: (text: string) => {
        told += text;
      },
      interactive: false,
      columns: 80,
    },
    environment: { runtimeDirectory: "/nonexistent", uid: 1 },
    clock: systemClock,
    onInterrupt: () => () => {},
  };
  return [await runCommandLine(args, "0", context), told];
}

it("names the word that is wrong, what there is instead, and where to read on", async () => {
  expect(await run("jobs", "frob", "a")).toEqual([
    2,
    "strata: a job cannot 'frob': there are pause, resume, cancel, speed, watch; see 'strata jobs --help'\n",
  ]);
  expect(await run("info", "a", "b")).toEqual([
    2,
    "strata: too many arguments for 'info'. Expected 1 argument but got 2; see 'strata info --help'\n",
  ]);
  expect(await run("strem")).toEqual([
    2,
    "strata: unknown command 'strem' (Did you mean stream?); see 'strata --help'\n",
  ]);
});

it("says that a directory is no image", async () => {
  const directory = mkdtempSync(`${tmpdir()}/program-`);
  expect(await run("info", directory)).toEqual([
    2,
    `strata: '${directory}' is a directory: name an image in it\n`,
  ]);
  rmSync(directory, { recursive: true });
});

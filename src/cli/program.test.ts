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

it("says what is wrong with a device or a number before it touches anything", async () => {
  const wrong = async (...args: string[]) => (await run(...args))[1];
  expect(await run("attach", "a.qcow2", "/dev/sda")).toEqual([
    2,
    "strata: '/dev/sda' is no nbd device: name one as /dev/nbd0\n",
  ]);
  expect(await wrong("detach", "/dev/nbd0p1")).toBe(
    "strata: '/dev/nbd0p1' is no nbd device: the whole device is /dev/nbd0\n",
  );
  expect(await wrong("attach", "a.qcow2", "-c", "17")).toBe(
    "strata: --connections takes a whole number from 1 to 16, not '17'\n",
  );
  expect(await wrong("attach", "a.qcow2", "--timeout", "1s")).toBe(
    "strata: --timeout takes a whole number from 1 to 86400, not '1s'\n",
  );
  expect(await wrong("attach", "a.qcow2", "--reconnect")).toBe(
    "strata: --reconnect needs the device: /dev/nbdN\n",
  );
});

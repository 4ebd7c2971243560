// The command line of the bench.

import { Command, InvalidArgumentError, Option } from "commander";
import { folder, positive, resultFile } from "../option-values.ts";
import { type CompareOptions, compareCommand } from "./compare-command.ts";
import { type CurvesOptions, curvesCommand } from "./curves-command.ts";
import { memoryFolder } from "./place.ts";

const EXAMPLES = `
Examples:
  scripts/bench --only 'read 4 KiB' --chart ratios.svg
  scripts/bench --folder /var/tmp --json ext4.json
  scripts/bench --against nbdkit
  scripts/bench curves --only chain`;

function count(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1)
    throw new InvalidArgumentError("It must be a whole number above 0.");
  return value;
}

function pattern(text: string): RegExp {
  try {
    return new RegExp(text);
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message);
  }
}

/** Options of both commands. */
function withPlace(command: Command): Command {
  return command
    .option("--folder <path>", "where the images go", folder, memoryFolder())
    .option("--json <file>", "write the result there too", resultFile);
}

const program = withPlace(
  new Command("bench")
    .description("Strata and another daemon in turn on equal images: throughput, latency, CPU and memory")
    .enablePositionalOptions()
    .addOption(
      new Option("--against <peer>", "qemu-storage-daemon, or nbdkit's file plugin on a raw image")
        .choices(["qsd", "nbdkit"])
        .default("qsd"),
    )
    .option("--pairs <n>", "runs of each, in turn", count, 5)
    .option("--seconds <n>", "length of one run", positive, 4)
    .option("--quick", "one short pair: a smoke test, not a judgement")
    .option("--cold", "measure a daemon's first seconds: without the same work on another disk before", false)
    .option("--only <regex>", "works whose name matches", pattern)
    .option("--chart <file>", "draw the ratios into that SVG file", resultFile),
)
  .addHelpText("after", EXAMPLES)
  .action((options: CompareOptions & { quick?: boolean }) =>
    compareCommand(options.quick ? { ...options, pairs: 1, seconds: 1 } : options),
  );

withPlace(
  program
    .command("curves")
    .description("Strata's cost per request by size of the disk, length of the chain, connections and uptime")
    .option("--rounds <n>", "runs of each point, in turn", count, 3)
    .option("--seconds <n>", "length of one run", positive, 3)
    .option("--uptime <seconds>", "how long one daemon is watched", positive, 60)
    .option("--every <seconds>", "one run of it in that time, light load in between", positive, 0)
    .option("--quick", "one short round: a smoke test, not a judgement")
    .option("--only <regex>", "curves whose name matches: size, chain, connections, uptime", pattern),
).action((options: CurvesOptions & { quick?: boolean }) =>
  curvesCommand({ ...options, ...(options.quick ? { rounds: 1, seconds: 1, uptime: 6 } : {}) }),
);

try {
  await program.parseAsync();
} catch (error) {
  console.error(`bench: ${(error as Error).message}`);
  process.exitCode = 1;
}

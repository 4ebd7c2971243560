import type { Command } from "commander";
import { type CommandContext, examples } from "../command-context.ts";
import { runDemo } from "../demo/run-demo.ts";
import { usageError } from "../failure.ts";

interface DemoFlags {
  readonly seed: string;
  readonly keep?: boolean;
  readonly directory?: string;
  readonly fat?: boolean;
}

export function addDemo(program: Command, context: CommandContext): void {
  program
    .command("demo")
    .description(
      "see it work: five images, a guest that writes, two live merges, and proof that nothing is lost",
    )
    .option("--seed <number>", "what the guest writes follows from it", "1")
    .option("--keep", "leave the images in place")
    .option("--directory <path>", "work there instead of in the system's folder for temporary files")
    .option("--fat", "a FAT16 file system of our own also where ext4 could be made")
    .addHelpText("after", examples("strata demo", "strata demo --seed 7 --keep"))
    .action(async (flags: DemoFlags) => {
      const seed = Number(flags.seed);
      if (!Number.isSafeInteger(seed) || seed < 0)
        throw usageError(`--seed ${flags.seed}: give a whole number`);
      const { keep, directory, fat } = flags;
      await runDemo({ seed, keep: keep === true, directory, fat: fat === true }, context);
    });
}

import type { Command } from "commander";
import { checkExitCode, imageCheck } from "../../format/qcow2/check-report.ts";
import type { RepairMode } from "../../format/qcow2/repair.ts";
import { type CommandContext, examples } from "../command-context.ts";
import { EXIT_CODES } from "../exit-codes.ts";
import { ExitRequest, usageError, withLockHelp } from "../failure.ts";
import { checkFile, checkText, repairFile } from "../image-check.ts";
import { isQcow2 } from "../open-image.ts";

interface CheckFlags {
  readonly format?: string;
  readonly repair?: string;
  readonly json?: boolean;
}

export function addCheck(program: Command, context: CommandContext): void {
  program
    .command("check <file>")
    .description("look for damage and for leaked clusters in an image that nobody writes to")
    .option("-f, --format <format>", "qcow2 or raw; otherwise by the image's first bytes")
    .option("-r, --repair <what>", "leaks: free leaked clusters; all: mend errors too")
    .option("--json", "the same members as qemu-img check --output json")
    .addHelpText(
      "after",
      examples("strata check disk.qcow2", "strata check --repair leaks disk.qcow2") +
        "\nExit codes, as qemu-img's: 0 clean, 1 the check did not finish, 2 damage, 3 leaks only, 63 nothing to check.\n",
    )
    .action(async (file: string, flags: CheckFlags) => {
      const mode = repairMode(flags.repair);
      if (flags.format === "raw" || (flags.format === undefined && !isQcow2(file))) {
        throw new ExitRequest(
          EXIT_CODES.NOT_CHECKABLE.code,
          `'${file}' is raw: there is nothing to check in it`,
        );
      }
      const json = flags.json === true;
      const tell = json ? undefined : (line: string) => context.terminal.out(`${line}\n`);
      const settings = tell === undefined ? {} : { tell };
      const checking = mode === undefined ? checkFile(file, settings) : repairFile(file, mode, settings);
      const result = await checking.catch((error: unknown) => {
        throw withLockHelp(error, "Check it when that process has ended");
      });
      context.terminal.out(
        json ? JSON.stringify(imageCheck(result, file), undefined, 4) + "\n" : checkText(result),
      );
      const code = checkExitCode(result);
      if (code !== 0) throw new ExitRequest(code);
    });
}

function repairMode(text: string | undefined): RepairMode | undefined {
  if (text === undefined || text === "leaks" || text === "all") return text;
  throw usageError(`--repair ${text}: there are leaks and all`);
}

import type { Command } from "commander";
import { checkExitCode, imageCheck } from "../../format/qcow2/check-report.ts";
import type { RepairMode } from "../../format/qcow2/repair.ts";
import { type CommandContext, examples } from "../command-context.ts";
import { EXIT_CODES } from "../exit-codes.ts";
import { ExitRequest, usageError, withLockHelp } from "../failure.ts";
import { checkFile, checkText, type Repair, repairFile, undoRepairOf } from "../image-check.ts";
import { isQcow2 } from "../open-image.ts";

interface CheckFlags {
  readonly format?: string;
  readonly repair?: string;
  readonly output?: string;
  readonly json?: boolean;
  readonly quiet?: boolean;
  /** A name; false: none; true: the default. */
  readonly backup?: string | boolean;
  readonly undo?: string;
  readonly force?: boolean;
}

const HELP = `
A repair keeps what it overwrites in FILE.before-repair. As long as nobody has written to the image since,
--undo puts it back; afterwards only with --force.

Exit codes, as qemu-img's: 0 clean, 1 the check did not finish, 2 damage, 3 leaks only, 63 nothing to check.
`;

export function addCheck(program: Command, context: CommandContext): void {
  program
    .command("check <file>")
    .description("look for damage and for leaked clusters in an image that nobody writes to")
    .option("-f, --format <format>", "qcow2 or raw; otherwise by the image's first bytes")
    .option("-r, --repair <what>", "leaks: free leaked clusters; all: mend errors too")
    .option("--output <form>", "human or json: the same members as qemu-img check")
    .option("--json", "the same as --output json")
    .option("-q, --quiet", "say nothing but errors")
    .option("--backup <file>", "where a repair keeps what it overwrites")
    .option("--no-backup", "a repair keeps nothing")
    .option("--undo <backup>", "put back what a repair has overwritten")
    .option("--force", "undo although the image was written to since: what was written may be lost")
    .addHelpText(
      "after",
      examples(
        "strata check disk.qcow2",
        "strata check --repair leaks disk.qcow2",
        "strata check --undo disk.qcow2.before-repair disk.qcow2",
      ) + HELP,
    )
    .action(async (file: string, flags: CheckFlags) => {
      if (flags.undo !== undefined) await undo(file, flags.undo, flags, context);
      else await check(file, flags, context);
    });
}

async function check(file: string, flags: CheckFlags, context: CommandContext): Promise<void> {
  const mode = repairMode(flags.repair);
  if (flags.force === true) throw usageError("--force goes with --undo");
  const json = wantsJson(flags);
  if (mode === undefined && typeof flags.backup === "string") {
    throw usageError("--backup is for a repair: add --repair leaks or --repair all");
  }
  if (flags.format === "raw" || (flags.format === undefined && !isQcow2(file))) {
    throw new ExitRequest(EXIT_CODES.NOT_CHECKABLE.code, `'${file}' is raw: there is nothing to check in it`);
  }
  const quiet = flags.quiet === true;
  const tell = (line: string) => context.terminal.err(`${line}\n`);
  const settings = quiet ? {} : { tell };
  const checking: Promise<Repair> =
    mode === undefined
      ? checkFile(file, settings).then((result) => ({ result, backup: undefined }))
      : repairFile(file, mode, { ...settings, ...backupSetting(flags) });
  const { result, backup } = await checking.catch((error: unknown) => {
    throw withLockHelp(error, "Check it when that process has ended");
  });
  const report = json ? JSON.stringify(imageCheck(result, file), undefined, 4) + "\n" : checkText(result);
  if (!quiet) context.terminal.out(report);
  if (backup !== undefined && !quiet) {
    tell(`What the repair has overwritten is kept in '${backup}'. As long as nobody writes to the image,`);
    tell(`it can be undone: strata check --undo ${backup} ${file}`);
  }
  const code = checkExitCode(result);
  if (code !== 0) throw new ExitRequest(code);
}

async function undo(file: string, backup: string, flags: CheckFlags, context: CommandContext): Promise<void> {
  if (flags.repair !== undefined) throw usageError("--undo and --repair exclude each other");
  const bytes = await undoRepairOf(file, backup, flags.force === true).catch((error: unknown) => {
    throw withLockHelp(error, "Try again when that process has ended");
  });
  if (flags.quiet !== true) {
    context.terminal.out(`${bytes} bytes of '${file}' are as they were before the repair.\n`);
  }
}

function backupSetting({ backup }: CheckFlags): { backup?: string | null } {
  if (backup === false) return { backup: null };
  return typeof backup === "string" ? { backup } : {};
}

function repairMode(text: string | undefined): RepairMode | undefined {
  if (text === undefined || text === "leaks" || text === "all") return text;
  throw usageError(`--repair ${text}: there are leaks and all`);
}

function wantsJson({ output, json }: CheckFlags): boolean {
  if (output === undefined) return json === true;
  if (output === "json" || output === "human") return output === "json";
  throw usageError(`--output ${output}: there are human and json`);
}

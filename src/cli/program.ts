// The `strata` command line: which commands there are, and how they end.

import { Command, CommanderError } from "commander";
import type { CommandContext } from "./command-context.ts";
import { addAttach } from "./commands/attach.ts";
import { addChain } from "./commands/chain.ts";
import { addCheck } from "./commands/check.ts";
import { addCreate } from "./commands/create.ts";
import { addDemo } from "./commands/demo.ts";
import { addDetach } from "./commands/detach.ts";
import { addInfo } from "./commands/info.ts";
import { addJobs } from "./commands/jobs.ts";
import { addMap } from "./commands/map.ts";
import { addMonitor } from "./commands/monitor.ts";
import { addServe } from "./commands/serve.ts";
import { addSnapshot } from "./commands/snapshot.ts";
import { addStream } from "./commands/stream.ts";
import { EXIT_CODES } from "./exit-codes.ts";
import { failureOf } from "./failure.ts";

export function buildProgram(version: string, context: CommandContext): Command {
  const { terminal } = context;
  const program = new Command("strata")
    .description("Serves chains of virtual disk images over NBD and merges them while the guest works.")
    .version(version, "-V, --version")
    .exitOverride()
    .configureOutput({
      writeOut: (text) => terminal.out(text),
      writeErr: (text) => terminal.err(text),
      // Errors are told at the end, in one line like all others.
      outputError: () => undefined,
      getOutHelpWidth: () => terminal.columns,
    })
    .addHelpText("after", "\nThe first thing to try: strata demo\n");
  addServe(program, context);
  addAttach(program, context);
  addDetach(program, context);
  addChain(program, context);
  addStream(program, context);
  addSnapshot(program, context);
  addJobs(program, context);
  addMonitor(program, context);
  addCreate(program, context);
  addInfo(program, context);
  addMap(program, context);
  addCheck(program, context);
  addDemo(program, context);
  return program;
}

/** Runs one command line (without node and script); settles to the exit code and never rejects. */
export async function runCommandLine(
  args: readonly string[],
  version: string,
  context: CommandContext,
): Promise<number> {
  const program = buildProgram(version, context);
  try {
    await program.parseAsync([...args], { from: "user" });
    return EXIT_CODES.OK.code;
  } catch (error) {
    const { line, exitCode } = error instanceof CommanderError ? usageFailure(error, args) : failureOf(error);
    if (line !== "") context.terminal.err(`${line}\n`);
    // qemu-img check has another meaning for 2, and its callers rely on it.
    return args[0] === "check" && isUsage(error, exitCode) ? EXIT_CODES.ERROR.code : exitCode;
  }
}

function isUsage(error: unknown, exitCode: number): boolean {
  const code = (error as { code?: unknown }).code;
  return exitCode === EXIT_CODES.USAGE.code && (error instanceof CommanderError || code === "USAGE");
}

function usageFailure(error: CommanderError, args: readonly string[]): { line: string; exitCode: number } {
  // Help and version were asked for, and are written.
  if (error.exitCode === 0) return { line: "", exitCode: EXIT_CODES.OK.code };
  if (error.code === "commander.help") return { line: "", exitCode: EXIT_CODES.USAGE.code };
  const command = args.find((word) => !word.startsWith("-"));
  const known = command !== undefined && error.code !== "commander.unknownCommand";
  const reason = error.message
    .replace(/^error: /, "")
    .replace(/\s*\n\s*/g, " ")
    .replace(/\.$/, "");
  return {
    line: `strata: ${reason}; see 'strata ${known ? `${command} ` : ""}--help'`,
    exitCode: EXIT_CODES.USAGE.code,
  };
}
